"""Which voxels vary with the evidence for words: activation patterns, against permuted words.

A contribution weighs a voxel by how much it helps to tell texts apart, so that a voxel that tells
nothing may have a weight (it may carry the noise of others), and one that tells much may have
none. The activation pattern of a word is what the evidence for it looks like in the brain:

    h_v = correlation over a subject's trials of the voxel's beta with the evidence for the word

A trial speaks for the word by this pattern with x_v h_v, and the map of the word is the mean of
this over the trials that name it minus that over the others. h does not know which trials name
the word, so permuting the words among trials gives valid p-values.

References
----------
Haufe et al. 2014, On the interpretation of weight vectors of linear models in multivariate
neuroimaging, NeuroImage 87.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array
from scipy.spatial import cKDTree

from mindllm.explain.regions import Region
from mindllm.explain.tables import RegionSamples, permuted_means

FWHM_PER_SD = float(np.sqrt(8 * np.log(2)))
REACH_SD = 3.0  # where a Gaussian ends
VOXELS_AT_ONCE = 4096


@dataclass(frozen=True)
class WordPattern:
    """Map of a word, or of several, by activation patterns.

    Parameters
    ----------
    name : str
    voxels : ndarray of shape (n_voxels,)
        Mean over the words of pattern times difference of the betas between the trials that name
        the word and the others.
    samples : RegionSamples
        The same by region: the mean over trials is the sum over the region.
    """

    name: str
    voxels: np.ndarray
    samples: RegionSamples


def contrast_weights(naming: np.ndarray) -> np.ndarray:
    """Weights of trials that give the mean over those that name a word minus that over the others.

    Parameters
    ----------
    naming : ndarray of bool, shape (n_trials, n_words)

    Returns
    -------
    ndarray of shape (n_trials, n_words)
        Columns sum to 0.

    Examples
    --------
    >>> contrast_weights(np.array([[True], [False], [False]]))[:, 0]
    array([ 1. , -0.5, -0.5])
    """
    counts = naming.sum(0)
    return naming / np.maximum(counts, 1) - ~naming / np.maximum(len(naming) - counts, 1)


def correlate(betas: np.ndarray, evidence: np.ndarray) -> np.ndarray:
    """Correlation over trials of voxels with evidence.

    Parameters
    ----------
    betas : ndarray of shape (n_trials, n_voxels)
    evidence : ndarray of shape (n_trials, n_words)

    Returns
    -------
    ndarray of shape (n_words, n_voxels)
        0 where one of them never varies.

    Examples
    --------
    >>> correlate(np.array([[0.0, 1.0], [1.0, 1.0], [2.0, 1.0]]), np.array([[3.0], [2.0], [1.0]]))
    array([[-1.,  0.]])
    """
    scaled = []
    for values in (betas, evidence):
        centred = values - values.mean(0)
        norm = np.linalg.norm(centred, axis=0)
        is_constant = norm <= 1e-9 * np.linalg.norm(values, axis=0)
        scaled.append(np.where(is_constant, 0, centred / np.where(is_constant, 1, norm)))
    return np.asarray(scaled[1].T @ scaled[0])


def map_pattern(
    name: str,
    betas: np.ndarray,
    evidence: np.ndarray,
    naming: np.ndarray,
    stimuli: np.ndarray,
    regions: Sequence[Region],
    permutations: int = 1000,
    seed: int = 0,
) -> WordPattern:
    """Map one or several words by the activation patterns of their evidence.

    Parameters
    ----------
    name : str
    betas : ndarray of shape (n_trials, n_voxels)
        Standardized betas of all trials of a subject.
    evidence : ndarray of shape (n_trials, n_words)
        For each word.
    naming : ndarray of bool, shape (n_trials, n_words)
        Whether the text of the trial names it.
    stimuli : ndarray of str, shape (n_trials,)
    regions : sequence of Region
    permutations, seed : int
        Of texts among trials.

    Returns
    -------
    WordPattern
    """
    n_words = evidence.shape[1]
    patterns = correlate(betas, evidence)
    weights = contrast_weights(naming)
    voxels = np.mean(patterns * (weights.T @ betas), 0)
    sums = np.stack([sum_products(betas, pattern, regions) for pattern in patterns], 1)
    null = permuted_means(weights, sums, permutations, seed) / n_words
    values = len(betas) * np.einsum("tk,tkr->tr", weights, sums) / n_words
    return WordPattern(name, voxels, RegionSamples(regions, values, stimuli, null))


def sum_products(betas: np.ndarray, pattern: np.ndarray, regions: Sequence[Region]) -> np.ndarray:
    """Sums (n_trials, n_regions) over regions of betas (n_trials, n_voxels) times a pattern."""
    return np.stack([betas[:, r.voxels] @ pattern[r.voxels] for r in regions], 1)


def smooth(coords_mm: np.ndarray, values: np.ndarray, fwhm_mm: float) -> np.ndarray:
    """Smooth numbers of voxels with a Gaussian, over the voxels that there are.

    Parameters
    ----------
    coords_mm : ndarray of shape (n_voxels, 3)
    values : ndarray of shape (..., n_voxels)
    fwhm_mm : float
        Full width at half maximum; 0: not at all.

    Returns
    -------
    ndarray of shape (..., n_voxels)
        Weighted means, so that a constant stays the same.

    Examples
    --------
    >>> coords = np.array([[0.0, 0, 0], [3, 0, 0], [90, 0, 0]])
    >>> smooth(coords, np.array([1.0, 0.0, 5.0]), 6.0).round(2).tolist()
    [0.67, 0.33, 5.0]
    """
    if fwhm_mm <= 0:
        return np.asarray(values)
    sd = fwhm_mm / FWHM_PER_SD
    tree, n_voxels = cKDTree(coords_mm), len(coords_mm)
    flat = np.asarray(values).reshape(-1, n_voxels).T
    parts = []
    for start in range(0, n_voxels, VOXELS_AT_ONCE):
        part = cKDTree(coords_mm[start : start + VOXELS_AT_ONCE])
        pairs = part.sparse_distance_matrix(tree, REACH_SD * sd, output_type="coo_matrix")
        weights = np.exp(-0.5 * (pairs.data / sd) ** 2)
        kernel = csr_array((weights, (pairs.row, pairs.col)), shape=(part.n, n_voxels))
        parts.append(kernel @ flat / kernel.sum(1)[:, None])
    return np.concatenate(parts).T.reshape(np.shape(values))
