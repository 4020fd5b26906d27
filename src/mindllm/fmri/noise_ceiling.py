"""Noise ceilings as data sets publish them, in one unit."""

import numpy as np


def noise_ceiling_percent(ncsnr: np.ndarray, n_repetitions: int = 1) -> np.ndarray:
    """(V,) per cent of the variance that a perfect model could explain in the mean of so many trials, NaN where unknown."""
    return 100 * ncsnr**2 / (ncsnr**2 + 1 / n_repetitions)


def ncsnr_from_noise_ceiling(percent: np.ndarray, share: float = 1.0) -> np.ndarray:
    """(V,) noise ceiling signal-to-noise ratio of noise ceilings in per cent, NaN where there is none.

    share: the mean of 1/n over the stimuli, n being the trials averaged for the ceiling; 1: the ceiling of single trials.
    NC = 100 s^2 / (s^2 + share) (NSD data manual, "Functional data").
    """
    percent = np.asarray(percent, np.float64)
    known = (percent >= 0) & (percent < 100)
    kept = np.where(known, percent, 0)
    return np.where(known, np.sqrt(share * kept / (100 - kept)), np.nan).astype(np.float32)
