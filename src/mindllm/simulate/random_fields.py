"""Smooth random fields."""

from dataclasses import dataclass
from typing import Self

import numpy as np


@dataclass(frozen=True)
class RandomFourierField:
    """Basis of Gaussian random fields, as smooth as white noise after a Gaussian filter.

    Attributes
    ----------
    frequencies : np.ndarray
        (3, M) in radians per mm.
    phases : np.ndarray
        (M,) in radians.

    References
    ----------
    Rahimi and Recht 2007, Random features for large-scale kernel machines.
    """

    frequencies: np.ndarray
    phases: np.ndarray

    @classmethod
    def draw(cls, rng: np.random.Generator, fwhm_mm: float, count: int) -> Self:
        """Draw random Fourier features of the covariance exp(-d^2 / 4 s^2).

        Parameters
        ----------
        rng : np.random.Generator
            Source of randomness.
        fwhm_mm : float
            Full width at half maximum of the filter, sqrt(8 ln 2) s.
        count : int
            Number of features M.
        """
        scale = 1 / (np.sqrt(2) * fwhm_to_sigma(fwhm_mm))
        return cls(rng.normal(0, scale, (3, count)), rng.uniform(0, 2 * np.pi, count))

    def evaluate(self, coords_mm: np.ndarray) -> np.ndarray:
        """Evaluate the basis B at coordinates: normal weights times B have unit variance.

        Parameters
        ----------
        coords_mm : np.ndarray
            (V, 3) coordinates in mm.

        Returns
        -------
        np.ndarray
            (M, V), float32.
        """
        frequencies, phases = self.frequencies.astype(np.float32), self.phases.astype(np.float32)
        angles = frequencies.T @ coords_mm.T.astype(np.float32) + phases[:, None]
        return np.float32(np.sqrt(2 / len(self.phases))) * np.cos(angles)


def fwhm_to_sigma(fwhm_mm: float) -> float:
    """Return the standard deviation of a Gaussian of this full width at half maximum."""
    return fwhm_mm / np.sqrt(8 * np.log(2))
