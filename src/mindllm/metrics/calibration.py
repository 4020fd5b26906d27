"""Calibration: whether the evidence of an answer, log p(answer | scan) - log p(answer | no brain), tells that it is right."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import log_softmax
from scipy.stats import binomtest
from sklearn.metrics import roc_auc_score

BINS = 8


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
    """

    prediction: CalibrationCurve
    top_candidate: CalibrationCurve
    probability: CalibrationCurve
    expected_calibration_error: float


def calibration(predictions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """AUROC of the evidence, of decoded text and of the likeliest candidate, and the reliability of the candidates' probabilities.

    The probability of a candidate is its likelihood over the sum of all candidates': every one is as likely beforehand.
    """
    text = (
        np.array([p["evidence"] for p in predictions]),
        np.array([p["exact_match"] for p in predictions], float),
    )
    gain = np.array([p["likeliest_gain"] for p in predictions])
    sure = np.array([p["likeliest_probability"] for p in predictions])
    hit = np.array([p["likeliest"][0] == p["truth"] for p in predictions], float)
    curve = reliability(sure, hit)
    return {
        "decoded": {
            "auroc": auroc(*text),
            "right": float(text[1].mean()),
            "curve": reliability(*text),
        },
        "likeliest": {
            "auroc": auroc(gain, hit),
            "right": float(hit.mean()),
            "curve": reliability(gain, hit),
        },
        "probability": {
            "auroc": auroc(sure, hit),
            "curve": curve,
            "expected_calibration_error": sum(b["n"] * abs(b["mean"] - b["right"]) for b in curve)
            / len(predictions),
        },
    }


def auroc(score: np.ndarray, right: np.ndarray) -> dict[str, float] | None:
    """Area under the ROC curve with its 95 % bootstrap interval over trials; None where all are right, or none is."""
    if not 0 < right.sum() < len(right):
        return None
    values: list[float] = []
    rng = np.random.default_rng(0)
    while len(values) < 500:
        some = rng.integers(len(right), size=len(right))
        if 0 < right[some].sum() < len(some):
            values.append(roc_auc_score(right[some], score[some]))
    low, high = np.quantile(values, [0.025, 0.975])
    return {
        "value": float(roc_auc_score(right, score)),
        "ci_low": float(low),
        "ci_high": float(high),
    }


def reliability(score: np.ndarray, right: np.ndarray) -> list[dict[str, float]]:
    """Trials in bins of equal count by score: its mean, and the share that is right with Wilson's 95 % interval."""
    bins = []
    for some in np.array_split(
        np.argsort(score, kind="stable"), min(BINS, max(1, len(score) // 5))
    ):
        low, high = binomtest(int(right[some].sum()), len(some)).proportion_ci(method="wilson")
        bins.append(
            {
                "mean": float(score[some].mean()),
                "right": float(right[some].mean()),
                "n": len(some),
                "ci_low": float(low),
                "ci_high": float(high),
            }
        )
    return bins


def probabilities(likelihood: np.ndarray) -> np.ndarray:
    """(B, C): the candidates' probabilities, if one of them is true and each was as likely beforehand."""
    return np.exp(log_softmax(likelihood, axis=1))
