"""Figures of the walk-through of the method, as PNG bytes."""

from collections.abc import Sequence

import numpy as np

from mindllm.plotting.style import new_figure, style_axes, to_png

DPI = 90


def plot_fourier_features(
    distances_mm: np.ndarray, cosines: np.ndarray, labels: Sequence[str], similarity: np.ndarray
) -> bytes:
    """Draw Fourier features along an axis, and how alike two voxels' features are over distance.

    Parameters
    ----------
    distances_mm : ndarray of shape (n_points,)
        Distance along one axis.
    cosines : ndarray of shape (n_points, n_wavelengths)
        Cosine features at these distances.
    labels : sequence of str
        One per wavelength.
    similarity : ndarray of shape (n_points,)
        Cosine similarity of the Fourier features with those at 0 mm.

    Returns
    -------
    bytes
        PNG.
    """
    figure = new_figure(10, 3)
    left, right = figure.subplots(1, 2)
    for curve, label in zip(cosines.T, labels, strict=True):
        left.plot(distances_mm, curve, lw=1.5, label=label)
    left.set(xlabel="position on an axis (mm)", ylabel="cosine feature")
    left.legend(frameon=False, fontsize=8, ncol=4, loc="lower center", bbox_to_anchor=(0.5, 1))
    right.plot(distances_mm, similarity, lw=1.8, color="#e4572e")
    right.set(xlabel="distance of two voxels on an axis (mm)", ylabel="similarity of features")
    for axes in (left, right):
        style_axes(axes)
        axes.axhline(0, color="#c9d1d9", lw=0.8, zorder=0)
    figure.tight_layout()
    return to_png(figure, DPI)


def plot_matrices(
    matrices: Sequence[np.ndarray],
    titles: Sequence[str],
    xlabels: Sequence[str],
    ylabel: str,
    width: float = 10,
    height: float = 3,
) -> bytes:
    """Draw matrices side by side, each with one scale of colors that is symmetric around 0.

    Parameters
    ----------
    matrices : sequence of ndarray of shape (n_rows, n_columns)
        All with the same rows.
    titles, xlabels : sequence of str
        One per matrix.
    ylabel : str
        What the rows are.
    width, height : float
        Size in inches.

    Returns
    -------
    bytes
        PNG.
    """
    figure = new_figure(width, height)
    grid = figure.subplots(1, len(matrices), squeeze=False, sharey=True)[0]
    for axes, matrix, title, xlabel in zip(grid, matrices, titles, xlabels, strict=True):
        limit = float(np.abs(matrix).max()) or 1.0
        image = axes.imshow(
            matrix, aspect="auto", cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest"
        )
        axes.set_title(title, fontsize=9)
        axes.set_xlabel(xlabel)
        style_axes(axes)
        figure.colorbar(image, ax=axes, fraction=0.04, pad=0.02).ax.tick_params(labelsize=7)
    grid[0].set_ylabel(ylabel)
    figure.tight_layout()
    return to_png(figure, DPI)


def plot_two_passes(
    passes: Sequence[tuple[np.ndarray, np.ndarray]], titles: Sequence[str]
) -> bytes:
    """Draw the numbers of one forward pass against those of a second one of the same input.

    Parameters
    ----------
    passes : sequence of (ndarray, ndarray), each of shape (n_numbers,)
        Pairs to compare, one panel each.
    titles : sequence of str
        One per panel.

    Returns
    -------
    bytes
        PNG.
    """
    figure = new_figure(7, 3.3)
    grid = figure.subplots(1, len(passes), squeeze=False, sharex=True, sharey=True)[0]
    for axes, (first, second), title in zip(grid, passes, titles, strict=True):
        axes.plot(first, second, ".", ms=2, color="#4a90c4", rasterized=True)
        axes.set_title(title, fontsize=9)
        axes.set(xlabel="first pass")
        style_axes(axes)
    grid[0].set_ylabel("second pass")
    figure.tight_layout()
    return to_png(figure, DPI)
