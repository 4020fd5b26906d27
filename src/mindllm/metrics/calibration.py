"""Calibration: whether log-likelihood ratios and probabilities tell right from wrong."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import log_softmax
from scipy.stats import binomtest
from sklearn.metrics import roc_auc_score

N_BINS = 8
N_RESAMPLES = 500
N_COVERAGES = 40  # points of the risk-coverage curve


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
    brier = (probabilities**2).sum(1) - 2 * of_target + 1

    def error(sample: np.ndarray) -> float:
        return expected_calibration_error(reliability(largest[sample], correct[sample]))

    order = np.argsort(-largest, kind="stable")
    counts = np.unique(np.linspace(1, len(order), min(N_COVERAGES, len(order))).astype(int))
    accuracy = np.cumsum(correct[order])[counts - 1] / counts
    return EvidenceCalibration(
        probability=calibration_curve(largest, correct),
        expected_calibration_error=bootstrap_estimate(error, len(rows)),
        brier_score=bootstrap_estimate(lambda sample: float(brier[sample].mean()), len(rows)),
        negative_log_likelihood=bootstrap_estimate(
            lambda sample: float(-np.log(of_target[sample].clip(1e-300)).mean()), len(rows)
        ),
        coverage=tuple((counts / len(order)).tolist()),
        accuracy=tuple(accuracy.tolist()),
    )


def bootstrap_estimate(statistic: Callable[[np.ndarray], float], n_trials: int) -> Estimate:
    """Return a statistic of trials, by their numbers, with its 95 % bootstrap interval."""
    rng = np.random.default_rng(0)
    values = [statistic(rng.integers(n_trials, size=n_trials)) for _ in range(N_RESAMPLES)]
    low, high = np.quantile(values, [0.025, 0.975])
    return Estimate(statistic(np.arange(n_trials)), float(low), float(high))


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
    values: list[float] = []
    rng = np.random.default_rng(0)
    while len(values) < N_RESAMPLES:
        sample = rng.integers(len(correct), size=len(correct))
        if 0 < correct[sample].sum() < len(sample):
            values.append(roc_auc_score(correct[sample], scores[sample]))
    low, high = np.quantile(values, [0.025, 0.975])
    return Estimate(float(roc_auc_score(correct, scores)), float(low), float(high))


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
    for members in np.array_split(order, min(N_BINS, max(1, len(scores) // 5))):
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
