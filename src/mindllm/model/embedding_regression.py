"""Ridge regression of sentence embeddings on query outputs: the second part of the evidence.

The encoding model says how probable a trial is under a text. Its Gaussian noise is an
approximation, and a regression in the other direction errs otherwise: together they tell texts
that were never trained on apart better than either. With ê the embedding that is predicted of a
trial and e that of a text, both on the leading principal axes of the embeddings, ê ~ N(B e, N)
where the text is true and N(0, N) where it is not, so that the logarithm of their ratio is

    gain (ê^T N^-1 B e - e^T B N^-1 B e / 2).

It is linear in the trial. The slopes B and the covariance N of the errors are those of left-out
subjects, so that directions of meaning count as far as they are predicted there. The fewer texts
there are, the closer B is kept to a diagonal matrix.
`gain` is not 1, as the encoding model has seen the noise too, but chosen together with the
temperature, in training subjects that are left out.
"""

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.special import log_softmax
from torch import Tensor

from mindllm.model.labelled_trials import LabelledScores
from mindllm.model.subject_alignment import matrix_power

PENALTIES = (1.0, 3.0, 10.0, 30.0)  # in multiples of the mean variance of the query outputs
DIRECTIONS = (30, 15, 60)  # principal axes of the embeddings; the first for every penalty
ERROR_SHRINKAGE = 0.1  # of the covariance of errors to its diagonal
SLOPE_PENALTY = 3.0  # of what slopes have beside their diagonal, in axes per text
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
class Readout:
    """Slopes and errors of predicted embeddings on their leading principal axes.

    Parameters
    ----------
    slopes : Tensor of shape (n_axes, n_axes)
        Of predicted embeddings, in columns, on true ones.
    whitening : Tensor of shape (n_axes, n_axes)
        Symmetric root of the inverse covariance of the errors.
    """

    slopes: Tensor
    whitening: Tensor

    @property
    def scale(self) -> Tensor:
        """Map (n_axes, n_axes) of embeddings to predictions with white errors."""
        return self.slopes @ self.whitening

    @property
    def weights(self) -> Tensor:
        """Matrix (n_axes, n_axes) between a predicted embedding and a text's: N^-1 B."""
        return self.whitening @ self.scale.T

    def log_ratios(self, predicted: Tensor, texts: Tensor) -> Tensor:
        """Log-ratios (n, m) of predicted embeddings (n, d) for texts (m, d), d axes or more."""
        predicted, texts = predicted[:, : len(self.slopes)], texts[:, : len(self.slopes)]
        return predicted @ self.weights @ texts.T - (texts @ self.scale).square().sum(1) / 2


@dataclass(frozen=True)
class PredictionSums:
    """Sums over trials of left-out subjects, of predicted and true embeddings on principal axes.

    Parameters
    ----------
    n_texts, n_trials : int
        n_texts: different ones, of all subjects.
    predicted, crossed, true : Tensor of shape (n_axes, n_axes)
        Products of predicted embeddings with themselves and with true ones, and of these.
    """

    n_texts: int
    n_trials: int
    predicted: Tensor
    crossed: Tensor
    true: Tensor

    @classmethod
    def of_trials(cls, predicted: Tensor, true: Tensor, n_texts: int) -> "PredictionSums":
        """Sum over trials: predicted and true embeddings (n, n_axes)."""
        return cls(n_texts, len(true), predicted.T @ predicted, predicted.T @ true, true.T @ true)

    def __add__(self, other: "PredictionSums") -> "PredictionSums":
        """Sum over the trials of both."""
        return PredictionSums(
            self.n_texts,
            self.n_trials + other.n_trials,
            self.predicted + other.predicted,
            self.crossed + other.crossed,
            self.true + other.true,
        )

    def __sub__(self, part: "PredictionSums") -> "PredictionSums":
        """Leave out trials that were summed over."""
        return PredictionSums(
            self.n_texts,
            self.n_trials - part.n_trials,
            self.predicted - part.predicted,
            self.crossed - part.crossed,
            self.true - part.true,
        )

    def readout(self, n_axes: int) -> Readout:
        """Slopes and errors on the leading axes, no more than half as many as texts."""
        n_axes = max(min(n_axes, self.n_texts // 2), 1)
        predicted, crossed, true = (
            part[:n_axes, :n_axes] for part in (self.predicted, self.crossed, self.true)
        )
        spread = true.diagonal()
        alone = crossed.diagonal() / spread.clamp_min(1e-12 * spread.max())
        penalty = SLOPE_PENALTY * len(true) / self.n_texts * spread.mean()
        rest = torch.linalg.solve(
            true + penalty * torch.eye(len(true)).to(true), crossed.T - true * alone
        )
        slopes = alone.diag() + rest
        shared = crossed @ slopes
        errors = predicted - shared - shared.T + slopes.T @ true @ slopes
        errors = (1 - ERROR_SHRINKAGE) * errors + ERROR_SHRINKAGE * errors.diagonal().diag()
        return Readout(slopes, matrix_power(errors / self.n_trials, -0.5))


@dataclass(frozen=True)
class LeftOutTrials:
    """What is said of the trials of a left-out subject by models of the others.

    Parameters
    ----------
    density_ratios : Tensor of shape (n_trials, n_texts)
        Of the encoding model, in nats.
    predicted : Tensor of shape (n_penalties, n_trials, n_axes)
        Embeddings that are predicted of the trials, on principal axes.
    texts : Tensor of shape (n_texts, n_axes)
        Embeddings of the texts on the same axes.
    targets : Tensor of int64, shape (n_trials,)
        Number of the true text.
    sums : sequence of PredictionSums
        Of this subject alone, one per penalty.
    with_labels : LabelledScores or None
        What is said when half of the trials are labelled.
    """

    density_ratios: Tensor
    predicted: Tensor
    texts: Tensor
    targets: Tensor
    sums: Sequence[PredictionSums]
    with_labels: LabelledScores | None = None


@dataclass(frozen=True)
class EvidenceScale:
    """How density ratios and log-ratios of the regression are put together.

    Parameters
    ----------
    temperature : float
        What their sum is divided by.
    gain : float
        What log-ratios of the regression are multiplied by; 0 leaves the regression out.
    penalty : int
        Number of the ridge regression's penalty.
    n_axes : int
        Principal axes that predicted embeddings are compared on.
    loss : float
        Mean negative log-probability of the true texts, in nats.
    """

    temperature: float = 1.0
    gain: float = 0.0
    penalty: int = 0
    n_axes: int = DIRECTIONS[0]
    loss: float = 0.0


def choose_scale(left_out: Sequence[LeftOutTrials]) -> EvidenceScale:
    """Choose temperature, gain, penalty and number of axes: true texts are most probable there.

    The temperature is between 0.5 and 5. For each penalty and number of axes the loss is convex
    in the inverse temperature and in the gain times it. The numbers of axes are compared at the
    best penalty. Slopes and errors are those of the other left-out subjects, if there are any.

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
    first, *others = DIRECTIONS
    scales = [scale_at(left_out, penalty, first) for penalty in range(len(PENALTIES))]
    best = min(scales, key=lambda scale: scale.loss)
    scales += [scale_at(left_out, best.penalty, n_axes) for n_axes in others]
    return min(scales, key=lambda scale: scale.loss)


def scale_at(left_out: Sequence[LeftOutTrials], penalty: int, n_axes: int) -> EvidenceScale:
    """Choose temperature and gain for one of the penalties and a number of axes."""
    n_trials = sum(len(part.targets) for part in left_out)
    total = reduce(operator.add, (part.sums[penalty] for part in left_out))
    parts = []
    for part in left_out:
        others = total - part.sums[penalty] if len(left_out) > 1 else total
        log_ratios = others.readout(n_axes).log_ratios(part.predicted[penalty], part.texts)
        parts.append((part.density_ratios.numpy(), log_ratios.numpy(), part.targets.numpy()))

    def loss(factors: np.ndarray) -> tuple[float, np.ndarray]:
        total, gradient = 0.0, np.zeros(2)
        for ratios, log_ratios, targets in parts:
            logits = factors[0] * ratios + factors[1] * log_ratios
            rows = np.arange(len(targets))
            log_probs = log_softmax(logits, axis=1)
            total -= log_probs[rows, targets].sum()
            residual = np.exp(log_probs)
            residual[rows, targets] -= 1
            gradient += (residual * ratios).sum(), (residual * log_ratios).sum()
        return total / n_trials, gradient / n_trials

    bounds = [(MIN_INVERSE_TEMPERATURE, MAX_INVERSE_TEMPERATURE), (0.0, None)]
    best = minimize(loss, np.array([1.0, 1.0]), jac=True, method="L-BFGS-B", bounds=bounds)
    inverse, product = best.x
    gain = float(product / inverse)
    return EvidenceScale(1 / float(inverse), gain, penalty, n_axes, float(best.fun))
