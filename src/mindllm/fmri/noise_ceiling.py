"""Noise ceilings as data sets publish them, in one unit."""

import numpy as np


def noise_ceiling_percent(ncsnr: np.ndarray, n_repetitions: int = 1) -> np.ndarray:
    """Convert noise ceiling signal-to-noise ratios to noise ceilings.

    Parameters
    ----------
    ncsnr : ndarray of shape (n_voxels,)
        Standard deviation of the signal over that of the noise, NaN where unknown.
    n_repetitions : int
        Number of trials that are averaged.

    Returns
    -------
    ndarray of shape (n_voxels,)
        Percent of the variance of the mean over `n_repetitions` trials that a perfect model could
        explain, NaN where unknown.

    References
    ----------
    Allen et al. 2022, Nature Neuroscience 25:116; NSD data manual, "Functional data".

    Examples
    --------
    >>> noise_ceiling_percent(np.array([0.0, 1.0]), n_repetitions=3)
    array([ 0., 75.])
    """
    return 100 * ncsnr**2 / (ncsnr**2 + 1 / n_repetitions)


def ncsnr_from_noise_ceiling(percent: np.ndarray, inverse_n_trials: float = 1.0) -> np.ndarray:
    """Convert noise ceilings to noise ceiling signal-to-noise ratios.

    Parameters
    ----------
    percent : ndarray of shape (n_voxels,)
        Noise ceilings in percent; values outside [0, 100) are no noise ceilings.
    inverse_n_trials : float
        Mean of 1/n over the stimuli, n being the number of trials that were averaged for the
        noise ceiling; 1: the noise ceiling of single trials.

    Returns
    -------
    ndarray of shape (n_voxels,), float32
        ncsnr s of NC = 100 s^2 / (s^2 + `inverse_n_trials`), NaN where there is no noise ceiling.

    References
    ----------
    NSD data manual, "Functional data".

    Examples
    --------
    >>> ncsnr_from_noise_ceiling(np.array([0.0, 50.0, np.nan]))
    array([ 0.,  1., nan], dtype=float32)
    """
    percent = np.asarray(percent, np.float64)
    is_known = (percent >= 0) & (percent < 100)
    known_percent = np.where(is_known, percent, 0)
    ncsnr = np.sqrt(inverse_n_trials * known_percent / (100 - known_percent))
    return np.where(is_known, ncsnr, np.nan).astype(np.float32)
