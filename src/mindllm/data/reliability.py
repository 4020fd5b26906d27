"""Reliability of the responses to repeated stimuli, estimated from a store's own betas."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mindllm.data.store import Store

MIN_REPEATED_STIMULI = 8
MAX_STIMULI = 1000  # per subject


@dataclass(frozen=True)
class Reliability:
    """Reliability of a subject's standardized betas.

    Attributes
    ----------
    n_stimuli : int
        Stimuli with several trials that were used.
    n_trials : int
        Their trials.
    ncsnr : np.ndarray
        (n_voxels,) standard deviation of the signal over that of the noise, of single trials.
    split_half : np.ndarray
        (n_voxels,) correlation over stimuli of the mean of every other trial of a stimulus with
        that of its remaining ones; NaN for a voxel that never varies.
    """

    n_stimuli: int
    n_trials: int
    ncsnr: np.ndarray
    split_half: np.ndarray


def estimate_reliability(
    store: Store, subject: str, rng: np.random.Generator
) -> Reliability | None:
    """Estimate the reliability of a subject's standardized betas.

    Parameters
    ----------
    store : Store
    subject : str
    rng : numpy.random.Generator
        Draws 1000 stimuli where more were repeated.

    Returns
    -------
    Reliability or None
        None where fewer than 8 stimuli have several trials.

    References
    ----------
    Allen et al. 2022, Nature Neuroscience 25:116, noise ceiling: the variance of the noise is the
    mean over stimuli of the variance over trials, that of the signal what is left of the total.
    """
    trials = store.trials(subject).reset_index(drop=True)
    rows_by_stimulus = trials.groupby("stimulus").indices.values()
    groups = [np.asarray(rows) for rows in rows_by_stimulus if len(rows) > 1]
    if len(groups) < MIN_REPEATED_STIMULI:
        return None
    groups = [groups[i] for i in np.sort(rng.permutation(len(groups))[:MAX_STIMULI])]
    n_voxels = len(store.masker(subject))
    noise, total, half = np.zeros(n_voxels), np.zeros((3, n_voxels)), np.zeros((5, n_voxels))
    for rows in groups:
        betas = store.betas(subject, rows, standardize=True).astype(np.float64)
        noise += betas.var(0, ddof=1)
        total += np.stack([np.full(n_voxels, len(rows)), betas.sum(0), (betas**2).sum(0)])
        a, b = betas[::2].mean(0), betas[1::2].mean(0)
        half += np.stack([a, b, a * a, b * b, a * b])
    noise /= len(groups)
    signal = np.maximum(total[2] / total[0] - (total[1] / total[0]) ** 2 - noise, 0)
    mean_a, mean_b, square_a, square_b, product = half / len(groups)
    spread = np.sqrt(np.maximum((square_a - mean_a**2) * (square_b - mean_b**2), 0))
    ncsnr = np.sqrt(np.divide(signal, noise, out=np.zeros(n_voxels), where=noise > 0))
    correlation = np.full(n_voxels, np.nan)
    np.divide(product - mean_a * mean_b, spread, out=correlation, where=spread > 1e-12)
    return Reliability(len(groups), sum(map(len, groups)), ncsnr, correlation)
