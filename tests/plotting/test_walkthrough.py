"""Figures of the walk-through are PNG, also of matrices without any content."""

import numpy as np

from mindllm.plotting.walkthrough import plot_fourier_features, plot_matrices, plot_two_passes

PNG = b"\x89PNG"


def test_figures_are_drawn() -> None:
    distances_mm = np.arange(3.0)
    curves = plot_fourier_features(distances_mm, np.ones((3, 2)), ["a", "b"], distances_mm)
    matrices = plot_matrices([np.zeros((2, 3)), np.eye(2)], ["a", "b"], ["x", "y"], "rows")
    same = plot_two_passes([(distances_mm, distances_mm)], ["same"])
    other = plot_two_passes([(distances_mm, -distances_mm)], ["same"])
    assert all(png.startswith(PNG) for png in (curves, matrices, same, other))
    assert same != other
