"""Smooth random fields."""

from dataclasses import dataclass
from typing import Self

import numpy as np


@dataclass(frozen=True)
class RandomFourierField:
    """A basis of Gaussian random fields as smooth as white noise after a Gaussian filter, at any point of space."""

    frequencies: np.ndarray  # (3, M) radians per mm
    phases: np.ndarray  # (M,)

    @classmethod
    def draw(cls, rng: np.random.Generator, fwhm_mm: float, count: int) -> Self:
        """Random Fourier features (Rahimi & Recht 2007) of the covariance exp(-d^2 / 4 s^2), s = fwhm / sqrt(8 ln 2)."""
        return cls(
            rng.normal(0, 1 / (np.sqrt(2) * fwhm_to_sigma(fwhm_mm)), (3, count)),
            rng.uniform(0, 2 * np.pi, count),
        )

    def evaluate(self, coords_mm: np.ndarray) -> np.ndarray:
        """(V, 3) positions -> (M, V) basis B: normal weights times B is a field of unit variance."""
        frequencies, phases = self.frequencies.astype(np.float32), self.phases.astype(np.float32)
        angles = frequencies.T @ coords_mm.T.astype(np.float32) + phases[:, None]
        return np.float32(np.sqrt(2 / len(self.phases))) * np.cos(angles)


def fwhm_to_sigma(fwhm_mm: float) -> float:
    """Standard deviation of a Gaussian of that full width at half maximum."""
    return fwhm_mm / np.sqrt(8 * np.log(2))
