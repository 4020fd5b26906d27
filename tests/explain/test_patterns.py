"""Activation patterns, contrasts and smoothing."""

import numpy as np
import pytest

from mindllm.explain.patterns import contrast_weights, correlate, map_pattern, smooth
from mindllm.explain.regions import Region


def test_the_pattern_is_where_the_evidence_comes_from_not_what_cancels_noise() -> None:
    """A voxel of noise alone helps to read another, so it has a weight, but no pattern."""
    rng = np.random.default_rng(0)
    word, noise = rng.normal(size=4000), rng.normal(size=4000)
    betas = np.stack([word + noise, noise, rng.normal(size=4000)], 1)
    evidence = (betas[:, 0] - betas[:, 1])[:, None]  # weights 1, -1, 0
    pattern = correlate(betas, evidence)[0]
    assert pattern[0] == pytest.approx(0.5**0.5, abs=0.03)
    assert np.abs(pattern[1:]).max() < 0.05


def test_a_voxel_or_evidence_that_never_varies_has_no_pattern() -> None:
    betas = np.stack([np.arange(5.0), np.full(5, 3.0)], 1)
    assert correlate(betas, np.full((5, 1), 2.0)).tolist() == [[0, 0]]
    assert correlate(betas, np.arange(5.0)[:, None]).round(6).tolist() == [[1, 0]]


def test_regions_are_sums_of_voxels_and_contrasts_sum_to_zero() -> None:
    rng = np.random.default_rng(1)
    betas, naming = rng.normal(size=(30, 12)), rng.random((30, 3)) < 0.4
    regions = [Region("a", str(n), np.arange(12) // 4 == n) for n in range(3)]
    evidence = rng.normal(size=(30, 3))
    result = map_pattern("w", betas, evidence, naming, np.arange(30).astype(str), regions, 9)
    sums = [result.voxels[region.voxels].sum() for region in regions]
    np.testing.assert_allclose(result.samples.values.mean(0), sums)
    assert result.samples.null.shape == (9, 3)
    np.testing.assert_allclose(contrast_weights(naming).sum(0), 0, atol=1e-12)


def test_smoothing_keeps_constants_and_spreads_a_point() -> None:
    coords = 3.0 * np.argwhere(np.ones((9, 9, 9)))
    np.testing.assert_allclose(smooth(coords, np.full(729, 2.5), 8.0), 2.5)
    point = np.zeros((2, 729))
    point[:, 364] = 1  # the middle
    smoothed = smooth(coords, point, 8.0)
    assert smoothed.shape == (2, 729)
    distances = np.linalg.norm(coords - coords[364], axis=1)
    ratio = smoothed[0, distances == 3].mean() / smoothed[0, 364]
    assert ratio == pytest.approx(np.exp(-4 * np.log(2) * (3 / 8) ** 2))
    assert smooth(coords, point, 0.0) is point
