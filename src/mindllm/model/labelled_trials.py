"""What a subject's labelled trials say of its other trials, beyond what subjects have in common.

The encoding model reads the leading principal components of the query outputs, on which subjects
agree. What is left of two trials of one text in one subject is alike too: z and z', standardized
and without the leading components, have a product in the metric of their covariance S,

    k(z, z') = z^T S^-1 z' / mean of z^T S^-1 z,

that is larger for one text than for two. n labelled trials of a text are worth n / (1 + (n - 1) b)
of one, with b the mean of k for one text. The sum over labelled trials of k(z, z_i) times a
direction d_i in the space of sentence embeddings, d_i^T e(c) close to 1 for the text of trial i and
to 0 for the other training texts, is added to the embedding that the regression predicts, so the
evidence stays linear in the trial. How much it counts (`EncodingModel.label_gain`) is learned in
training subjects that are left out, of which half of the trials are labelled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.nn import functional as F

from mindllm.model.subject_alignment import (
    MAX_ALIGNMENT_TRIALS,
    SAME_TRIAL,
    LabelledTrials,
    evenly_spaced,
)

COVARIANCE_SHRINKAGE = 0.7  # of the covariance to a multiple of the identity
DIRECTION_RIDGE = 0.1  # in squared norms of one text's centred embedding
MAX_GAIN = 200.0
MIN_REST = 1e-6  # of the variance of the trials, outside the components


def compare_with_labels(
    standardized: Tensor, rows: Tensor, components: Tensor
) -> LabelledTrials | None:
    """Labelled trials with the weights that compare others with them, and no directions yet.

    None where the components leave nothing of the trials.

    Parameters
    ----------
    standardized : Tensor of shape (n_trials, num_queries)
        All trials of the subject.
    rows : Tensor of int64, shape (n_labels,)
        The labelled ones.
    components : Tensor of shape (num_queries, rank)
        Leading principal components, which are left out.
    """
    rest = standardized - standardized @ components @ components.T
    sample = rest[evenly_spaced(len(rest), MAX_ALIGNMENT_TRIALS)]
    _, scales, axes = torch.linalg.svd(sample, full_matrices=False)
    variances = scales.square() / len(sample)
    if variances.sum() <= MIN_REST * standardized.square().sum(1).mean():
        return None
    floor = COVARIANCE_SHRINKAGE * variances.sum() / rest.shape[1]
    precision = 1 / ((1 - COVARIANCE_SHRINKAGE) * variances + floor)

    def weigh(values: Tensor) -> Tensor:
        return values / floor + (values @ axes.T * (precision - 1 / floor)) @ axes

    norm = (sample * weigh(sample)).sum(1).mean()
    weights = weigh(rest[rows]).T / norm
    return LabelledTrials(standardized[rows], weights, torch.zeros(len(rows), 0).to(weights))


def point_to_texts(
    labelled: LabelledTrials,
    embeddings: Tensor,
    texts: Tensor,
    correlation: float,
    gain: float = 1.0,
) -> LabelledTrials:
    """Labelled trials with directions that tell their texts from the training texts.

    Parameters
    ----------
    labelled : LabelledTrials
    embeddings : Tensor of shape (n_labels, embedding_dim)
        Centred unit embeddings of the texts of the labelled trials.
    texts : Tensor of shape (n_texts, embedding_dim)
        Those of the training texts.
    correlation : float
        b, the mean of k for two trials of one text.
    gain : float
        What directions are multiplied by.
    """
    counts = (embeddings @ embeddings.T > 1 - SAME_TRIAL).sum(1, keepdim=True)
    gram = texts.T @ texts + DIRECTION_RIDGE * torch.eye(texts.shape[1]).to(texts)
    directions = torch.linalg.solve(gram, embeddings.T).T
    return replace(labelled, directions=gain * directions / (1 + (counts - 1) * correlation))


@dataclass(frozen=True)
class LabelledScores:
    """What is said of trials of a left-out subject when half of its trials are labelled.

    Parameters
    ----------
    density_ratios, similarities : Tensor of shape (n_trials, n_texts)
        Of the encoding model, in nats; of the labelled trials.
    targets : Tensor of int64, shape (n_trials,)
        Number of the true text.
    correlation : float
        Mean of k for two trials of one text.
    """

    density_ratios: Tensor
    similarities: Tensor
    targets: Tensor
    correlation: float


def choose_label_gain(parts: Sequence[LabelledScores], temperature: float) -> float:
    """Gain of labelled trials at which the true texts are most probable; 0 where there is none.

    Parameters
    ----------
    parts : sequence of LabelledScores
    temperature : float
        Of the evidence.
    """
    if not parts:
        return 0.0

    def loss(gain: float) -> float:
        losses = [
            F.cross_entropy((p.density_ratios + gain * p.similarities) / temperature, p.targets)
            for p in parts
        ]
        return float(torch.stack(losses).mean())

    best = minimize_scalar(loss, bounds=(0.0, MAX_GAIN), method="bounded")
    return float(best.x) if best.fun < loss(0.0) else 0.0


def mean_correlation(parts: Sequence[LabelledScores]) -> float:
    """Mean of k for two trials of one text over subjects, 0 or more."""
    return max(sum(part.correlation for part in parts) / max(len(parts), 1), 0.0)


def halve(targets: Tensor) -> Tensor:
    """Divide trials into two halves, 0 and 1 (n_trials,), by turns for each text.

    Examples
    --------
    >>> halve(torch.tensor([4, 2, 4, 2, 4])).tolist()
    [0, 0, 1, 1, 0]
    """
    order = torch.argsort(targets, stable=True)
    halves = torch.empty_like(targets)
    halves[order] = torch.arange(len(targets)) % 2
    return halves
