"""Contribution of every voxel to the evidence of trials for a text, in nats.

The contributions of a trial's voxels and the evidence of zero betas sum to the evidence of the
trial. See `mindllm.explain.evidence_path` for the formula and when it is closed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from mindllm.explain.evidence_path import Question, integrate
from mindllm.explain.features import AffineFeatures


@dataclass(frozen=True)
class Contributions:
    """Contributions of voxels to the evidence of trials.

    Parameters
    ----------
    voxels : ndarray of shape (n_trials, n_voxels)
        In nats; positive where the voxel speaks for the text.
    at_zero : ndarray of shape (n_trials,)
        Evidence of zero betas, which no voxel contributes.
    evidence : ndarray of shape (n_trials,)
        Evidence of the trials: the sum of both.
    is_closed_form : bool
        Whether the evidence is quadratic in the betas, so that the formula is closed; else one
        integral per response was computed by quadrature.
    error : float
        Largest difference of the sum from the evidence, nats.
    """

    voxels: np.ndarray
    at_zero: np.ndarray
    evidence: np.ndarray
    is_closed_form: bool
    error: float

    @property
    def mean(self) -> np.ndarray:
        """Mean over trials, (n_voxels,)."""
        return self.voxels.mean(0)


@torch.no_grad()
def contribute(features: AffineFeatures, question: Question) -> Contributions:
    """Contribution of every voxel to the evidence of trials.

    Parameters
    ----------
    features : AffineFeatures
        Of a subject's trials.
    question : Question
        What the evidence is for.

    Returns
    -------
    Contributions
    """
    path = integrate(question, features.values, features.at_zero)
    voxels = features.to_voxels(path.gradients)
    difference = voxels.sum(1) + path.at_zero - path.evidence
    return Contributions(
        voxels=voxels.numpy(),
        at_zero=path.at_zero.numpy(),
        evidence=path.evidence.numpy(),
        is_closed_form=question.is_quadratic,
        error=float(difference.abs().max()) if len(voxels) else 0.0,
    )
