"""Calibration: whether log-likelihood ratios and probabilities tell right from wrong."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from scipy.special import log_softmax
from scipy.stats import binomtest

N_BINS = 8
N_RESAMPLES = 500
N_COVERAGES = 40  # points of the risk-coverage curve
MAX_NUMBERS = 2**22  # in the samples of trials that are held at once
Statistic = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its 95 % interval."""

    value: float
    ci_low: float
    ci_high: float


@dataclass(frozen=True, slots=True)
class CalibrationBin:
    """Trials of similar scores: their mean score, and the fraction that is right.

    The interval is Wilson's, of the accuracy, 95 %.
    """

    mean_score: float
    accuracy: float
    n_trials: int
    ci_low: float
    ci_high: float


@dataclass(frozen=True, slots=True)
class CalibrationCurve:
    """How well one score tells right from wrong; auroc is None where all are right, or none is."""

    auroc: Estimate | None
    accuracy: float
    bins: tuple[CalibrationBin, ...]


@dataclass(frozen=True, slots=True)
class EvidenceCalibration:
    """Calibration of the candidates' probabilities by evidence, each as likely beforehand.

    Parameters
    ----------
    probability : CalibrationCurve
        Candidate with the most evidence by its probability in [0, 1].
    expected_calibration_error : Estimate
        Of that probability, in [0, 1].
    brier_score : Estimate
        Mean squared distance of the probabilities from the truth, summed over candidates: in
        [0, 2], 0 is best.
    negative_log_likelihood : Estimate
        Of the target, in nats; log(n_candidates) is that of guessing.
    coverage, accuracy : tuple of float
        Accuracy among the fraction of trials with the highest probabilities: the risk-coverage
        curve.
    """

    probability: CalibrationCurve
    expected_calibration_error: Estimate
    brier_score: Estimate
    negative_log_likelihood: Estimate
    coverage: tuple[float, ...]
    accuracy: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class CalibrationResult:
    """Calibration of the generated text and of the most likely candidate.

    Parameters
    ----------
    prediction : CalibrationCurve
        Generated text by its log-likelihood ratio in nats.
    top_candidate : CalibrationCurve
        Most likely candidate by its log-likelihood ratio in nats.
    probability : CalibrationCurve
        Most likely candidate by its probability in [0, 1].
    expected_calibration_error : float
        Of that probability, in [0, 1].
    evidence : EvidenceCalibration or None
        Of the candidates' probabilities by evidence; None without encoding model.
    """

    prediction: CalibrationCurve
    top_candidate: CalibrationCurve
    probability: CalibrationCurve
    expected_calibration_error: float
    evidence: EvidenceCalibration | None = None


def calibration(
    prediction_llr: np.ndarray,
    prediction_correct: np.ndarray,
    candidate_llr: np.ndarray,
    candidate_probability: np.ndarray,
    candidate_correct: np.ndarray,
    evidence: EvidenceCalibration | None = None,
) -> CalibrationResult:
    """Measure how well three scores of B trials tell right from wrong.

    Parameters
    ----------
    prediction_llr : ndarray of shape (B,)
        Log-likelihood ratio of the generated text, in nats.
    prediction_correct : ndarray of shape (B,)
        1 where the generated text is right, else 0.
    candidate_llr : ndarray of shape (B,)
        Log-likelihood ratio of the most likely candidate, in nats.
    candidate_probability : ndarray of shape (B,)
        Its probability among the candidates, in [0, 1].
    candidate_correct : ndarray of shape (B,)
        1 where it is the target, else 0.
    evidence : EvidenceCalibration, optional
        Of the same trials.

    Returns
    -------
    CalibrationResult
        AUROC, accuracy and reliability curve of each, and the expected calibration error.

    References
    ----------
    Expected calibration error: Naeini, Cooper & Hauskrecht 2015, AAAI; here in bins of equal count.
    """
    probability = calibration_curve(candidate_probability, candidate_correct)
    return CalibrationResult(
        prediction=calibration_curve(prediction_llr, prediction_correct),
        top_candidate=calibration_curve(candidate_llr, candidate_correct),
        probability=probability,
        expected_calibration_error=expected_calibration_error(probability.bins),
        evidence=evidence,
    )


def evidence_calibration(probabilities: np.ndarray, targets: np.ndarray) -> EvidenceCalibration:
    """Measure the calibration of probabilities among candidates.

    Parameters
    ----------
    probabilities : ndarray of shape (B, C)
        Each row adds up to one.
    targets : ndarray of int, shape (B,)
        Number of each trial's target.

    Returns
    -------
    EvidenceCalibration
        Intervals are 95 % bootstrap intervals over trials.

    References
    ----------
    Brier 1950, Monthly Weather Review 78; risk and coverage: Geifman & El-Yaniv 2017, NeurIPS.
    """
    rows = np.arange(len(targets))
    of_target, largest = probabilities[rows, targets], probabilities.max(1)
    correct = (probabilities.argmax(1) == targets).astype(float)
    brier, loss = (probabilities**2).sum(1) - 2 * of_target + 1, -np.log(of_target.clip(1e-300))
    order = np.argsort(-largest, kind="stable")
    counts = np.unique(np.linspace(1, len(order), min(N_COVERAGES, len(order))).astype(int))
    accuracy = np.cumsum(correct[order])[counts - 1] / counts
    return EvidenceCalibration(
        probability=calibration_curve(largest, correct),
        expected_calibration_error=bootstrap_estimate(
            partial(calibration_errors, largest, correct), len(rows)
        ),
        brier_score=bootstrap_estimate(lambda sample: brier[sample].mean(1), len(rows)),
        negative_log_likelihood=bootstrap_estimate(lambda sample: loss[sample].mean(1), len(rows)),
        coverage=tuple((counts / len(order)).tolist()),
        accuracy=tuple(accuracy.tolist()),
    )


def bootstrap_estimate(statistic: Statistic, n_trials: int) -> Estimate:
    """Return a statistic with its 95 % bootstrap interval over trials.

    Parameters
    ----------
    statistic : callable
        Gets numbers of trials (n_samples, n_trials), and returns a value for each sample.
    n_trials : int

    Returns
    -------
    Estimate
        Samples whose value is NaN are left out of the interval.
    """
    rng, step = np.random.default_rng(0), max(MAX_NUMBERS // n_trials, 1)
    sizes = [min(step, N_RESAMPLES - start) for start in range(0, N_RESAMPLES, step)]
    values = [statistic(rng.integers(n_trials, size=(size, n_trials))) for size in sizes]
    low, high = np.nanquantile(np.concatenate(values), [0.025, 0.975])
    return Estimate(float(statistic(np.arange(n_trials)[None])[0]), float(low), float(high))


def calibration_curve(scores: np.ndarray, correct: np.ndarray) -> CalibrationCurve:
    """Return AUROC, accuracy and reliability of scores (B,) for correct (B,), 0 or 1."""
    return CalibrationCurve(
        auroc(scores, correct), float(correct.mean()), reliability(scores, correct)
    )


def expected_calibration_error(bins: tuple[CalibrationBin, ...]) -> float:
    """Return the mean distance of probability and accuracy over bins, weighed by their trials."""
    total = sum(b.n_trials * abs(b.mean_score - b.accuracy) for b in bins)
    return total / sum(b.n_trials for b in bins)


def auroc(scores: np.ndarray, correct: np.ndarray) -> Estimate | None:
    """Compute the area under the ROC curve with its 95 % bootstrap interval over trials.

    Parameters
    ----------
    scores : ndarray of shape (B,)
        Larger means more likely right.
    correct : ndarray of shape (B,)
        1 where right, else 0.

    Returns
    -------
    Estimate or None
        In [0, 1]; 0.5 tells nothing. None where all are right, or none is.

    Examples
    --------
    >>> import numpy as np
    >>> auroc(np.array([0.1, 0.4, 0.8, 0.9]), np.array([0.0, 0, 1, 1])).value
    1.0
    """
    if not 0 < correct.sum() < len(correct):
        return None
    return bootstrap_estimate(partial(roc_areas, scores, correct), len(correct))


def roc_areas(scores: np.ndarray, correct: np.ndarray, samples: np.ndarray) -> np.ndarray:
    """Return the area under the ROC curve of each sample; NaN where all are right, or none is.

    Parameters
    ----------
    scores, correct : ndarray of shape (B,)
    samples : ndarray of int, shape (n_samples, n)
        Numbers of trials.
    """
    values, ranks = np.unique(scores, return_inverse=True)
    cells = np.arange(len(samples))[:, None] * len(values) + ranks[samples]
    size, shape = len(samples) * len(values), (len(samples), len(values))
    total = np.bincount(cells.ravel(), minlength=size).reshape(shape)
    right = np.bincount(cells.ravel(), correct[samples].ravel(), size).reshape(shape)
    wrong = total - right
    pairs = (right * (wrong.cumsum(1) - wrong / 2)).sum(1)  # a tie counts one half
    n_pairs = right.sum(1) * wrong.sum(1)
    return np.where(n_pairs > 0, pairs / np.maximum(n_pairs, 1), np.nan)


def calibration_errors(
    probabilities: np.ndarray, correct: np.ndarray, samples: np.ndarray
) -> np.ndarray:
    """Return the expected calibration error of each sample of trials, in bins of equal count.

    Parameters
    ----------
    probabilities, correct : ndarray of shape (B,)
    samples : ndarray of int, shape (n_samples, n)
        Numbers of trials.
    """
    order = np.argsort(probabilities[samples], axis=1, kind="stable")
    surplus = np.take_along_axis(probabilities[samples] - correct[samples], order, 1)
    starts = [part[0] for part in split_into_bins(np.arange(samples.shape[1]))]
    return np.abs(np.add.reduceat(surplus, starts, axis=1)).sum(1) / samples.shape[1]


def split_into_bins(order: np.ndarray) -> list[np.ndarray]:
    """Split sorted trials into at most 8 bins, of at least 5 trials where there are as many."""
    return np.array_split(order, min(N_BINS, max(1, len(order) // 5)))


def reliability(scores: np.ndarray, correct: np.ndarray) -> tuple[CalibrationBin, ...]:
    """Sort trials into bins of equal count by score.

    Parameters
    ----------
    scores, correct : ndarray of shape (B,)
        Scores, and 1 where right, else 0.

    Returns
    -------
    tuple of CalibrationBin
        At most 8, with at least 5 trials each where there are as many.

    References
    ----------
    Interval: Wilson 1927, JASA 22.
    """
    bins = []
    order = np.argsort(scores, kind="stable")
    for members in split_into_bins(order):
        n_correct = int(correct[members].sum())
        low, high = binomtest(n_correct, len(members)).proportion_ci(method="wilson")
        bins.append(
            CalibrationBin(
                mean_score=float(scores[members].mean()),
                accuracy=float(correct[members].mean()),
                n_trials=len(members),
                ci_low=float(low),
                ci_high=float(high),
            )
        )
    return tuple(bins)


def candidate_probabilities(log_likelihoods: np.ndarray) -> np.ndarray:
    """Return the candidates' probabilities (B, C), each being as likely beforehand.

    Parameters
    ----------
    log_likelihoods : ndarray of shape (B, C)
        In nats.
    """
    return np.exp(log_softmax(log_likelihoods, axis=1))
