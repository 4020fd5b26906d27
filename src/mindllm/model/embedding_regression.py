"""Ridge regression of sentence embeddings on query outputs: the second part of the evidence.

The encoding model says how probable a trial is under a text. Its Gaussian noise is an
approximation, and a regression in the other direction errs otherwise: together they tell texts
that were never trained on apart better than either. With ê the embedding that is predicted of a
trial and e that of a text, ê ~ N(scale e, noise) where the text is true and N(0, noise) where it
is not, so that the logarithm of their ratio is

    gain (ê^T e - scale / 2),    gain = scale / noise variance.

It is linear in the trial. `gain` is not taken from the noise, which the encoding model has seen
too, but chosen together with the temperature, in training subjects that are left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.special import log_softmax
from torch import Tensor

from mindllm.model.labelled_trials import LabelledScores

PENALTIES = (1.0, 3.0, 10.0, 30.0)  # in multiples of the mean variance of the query outputs
MIN_INVERSE_TEMPERATURE, MAX_INVERSE_TEMPERATURE = 0.2, 2.0


@dataclass(frozen=True)
class RegressionSums:
    """Sums over trials that ridge regression needs.

    Parameters
    ----------
    n_trials : int
    gram : Tensor of shape (num_queries, num_queries)
        Of standardized query outputs.
    moments : Tensor of shape (num_queries, embedding_dim)
        Their products with the embeddings of the trials' texts.
    """

    n_trials: int
    gram: Tensor
    moments: Tensor

    @classmethod
    def of_trials(cls, values: Tensor, embeddings: Tensor) -> "RegressionSums":
        """Sum over trials (n, num_queries) and the embeddings (n, embedding_dim) of their texts."""
        return cls(len(values), values.T @ values, values.T @ embeddings)

    def __add__(self, other: "RegressionSums") -> "RegressionSums":
        """Sum over the trials of both."""
        return RegressionSums(
            self.n_trials + other.n_trials, self.gram + other.gram, self.moments + other.moments
        )

    def __sub__(self, part: "RegressionSums") -> "RegressionSums":
        """Leave out trials that were summed over."""
        return RegressionSums(
            self.n_trials - part.n_trials, self.gram - part.gram, self.moments - part.moments
        )

    def weights(self, penalties: Sequence[float]) -> list[Tensor]:
        """Weights of ridge regression at each penalty; see `ridge_weights`."""
        eigenvalues, vectors = torch.linalg.eigh(self.gram / self.n_trials)
        rotated = vectors.T @ self.moments / self.n_trials
        mean = eigenvalues.clamp_min(0).mean()
        return [vectors @ (rotated / (eigenvalues + p * mean)[:, None]) for p in penalties]


def ridge_weights(values: Tensor, targets: Tensor, penalties: Sequence[float]) -> list[Tensor]:
    """Weights (num_queries, embedding_dim) of ridge regression at each penalty.

    Parameters
    ----------
    values : Tensor of shape (n_trials, num_queries)
        Standardized query outputs.
    targets : Tensor of shape (n_trials, embedding_dim)
    penalties : sequence of float
        In multiples of the mean variance of the query outputs.

    Returns
    -------
    list of Tensor
        Of as many as there are penalties; by the smaller of the two products of the values.
    """
    n_trials, num_queries = values.shape
    if n_trials >= num_queries:
        return RegressionSums.of_trials(values, targets).weights(penalties)
    eigenvalues, vectors = torch.linalg.eigh(values @ values.T / n_trials)
    rotated = vectors.T @ targets / n_trials
    mean = eigenvalues.clamp_min(0).sum() / num_queries
    solved = [vectors @ (rotated / (eigenvalues + p * mean)[:, None]) for p in penalties]
    return [values.T @ rows for rows in solved]


@dataclass(frozen=True)
class LeftOutTrials:
    """What is said of the trials of a left-out subject by models of the others.

    Parameters
    ----------
    density_ratios : Tensor of shape (n_trials, n_texts)
        Of the encoding model, in nats.
    similarities : Tensor of shape (n_penalties, n_trials, n_texts)
        Of the embeddings that are predicted of a trial with those of the texts.
    targets : Tensor of int64, shape (n_trials,)
        Number of the true text.
    with_labels : LabelledScores or None
        What is said when half of the trials are labelled.
    """

    density_ratios: Tensor
    similarities: Tensor
    targets: Tensor
    with_labels: LabelledScores | None = None


@dataclass(frozen=True)
class EvidenceScale:
    """How density ratios and similarities are put together.

    Parameters
    ----------
    temperature : float
        What their sum is divided by.
    gain : float
        What similarities are multiplied by; 0 leaves the regression out.
    penalty : float
        Of the ridge regression.
    similarity : float
        Mean similarity with the true text.
    loss : float
        Mean negative log-probability of the true texts, in nats.
    """

    temperature: float = 1.0
    gain: float = 0.0
    penalty: float = PENALTIES[0]
    similarity: float = 0.0
    loss: float = 0.0


def choose_scale(left_out: Sequence[LeftOutTrials]) -> EvidenceScale:
    """Choose temperature, gain and penalty at which the true texts are most probable.

    The temperature is between 0.5 and 5. For each penalty the loss is convex in the inverse
    temperature and in the gain times it.

    Parameters
    ----------
    left_out : sequence of LeftOutTrials
        Of each training subject that was left out; none: the default scale.

    Returns
    -------
    EvidenceScale
    """
    if not left_out:
        return EvidenceScale()
    return min((scale_at(left_out, i) for i in range(len(PENALTIES))), key=lambda s: s.loss)


def scale_at(left_out: Sequence[LeftOutTrials], penalty: int) -> EvidenceScale:
    """Choose temperature and gain for one of the penalties."""
    n_trials = sum(len(part.targets) for part in left_out)
    of_true = [
        part.similarities[penalty].gather(1, part.targets[:, None]).sum() for part in left_out
    ]
    similarity = float(sum(of_true)) / n_trials

    parts = [
        (p.density_ratios.numpy(), p.similarities[penalty].numpy(), p.targets.numpy())
        for p in left_out
    ]

    def loss(factors: np.ndarray) -> tuple[float, np.ndarray]:
        total, gradient = 0.0, np.zeros(2)
        for ratios, similarities, targets in parts:
            logits = factors[0] * ratios + factors[1] * similarities
            rows = np.arange(len(targets))
            log_probs = log_softmax(logits, axis=1)
            total -= log_probs[rows, targets].sum()
            residual = np.exp(log_probs)
            residual[rows, targets] -= 1
            gradient += (residual * ratios).sum(), (residual * similarities).sum()
        return total / n_trials, gradient / n_trials

    bounds = [(MIN_INVERSE_TEMPERATURE, MAX_INVERSE_TEMPERATURE), (0.0, None)]
    best = minimize(loss, np.array([1.0, 1.0]), jac=True, method="L-BFGS-B", bounds=bounds)
    inverse, product = best.x
    return EvidenceScale(
        1 / float(inverse),
        float(product / inverse) if similarity > 0 else 0.0,
        PENALTIES[penalty],
        similarity,
        float(best.fun),
    )
