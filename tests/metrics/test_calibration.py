"""Calibration of probabilities among candidates."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from mindllm.metrics.calibration import (
    calibration_errors,
    evidence_calibration,
    expected_calibration_error,
    reliability,
    roc_areas,
)

RNG = np.random.default_rng(0)


def draw(n_trials: int, sharpness: float) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities that are true, and targets drawn by them."""
    logits = sharpness * RNG.normal(size=(n_trials, 6))
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    targets = np.array([RNG.choice(6, p=row) for row in probabilities])
    return probabilities, targets


def test_true_probabilities_are_calibrated_and_sharpened_ones_are_not() -> None:
    probabilities, targets = draw(2000, 2.0)
    right = evidence_calibration(probabilities, targets)
    assert right.expected_calibration_error.value < 0.04
    sharp = probabilities**3
    wrong = evidence_calibration(sharp / sharp.sum(1, keepdims=True), targets)
    assert wrong.expected_calibration_error.ci_low > right.expected_calibration_error.ci_high
    assert wrong.brier_score.value > right.brier_score.value
    assert wrong.negative_log_likelihood.value > right.negative_log_likelihood.value


def test_scores_of_a_few_trials_by_hand() -> None:
    probabilities = np.array([[0.7, 0.2, 0.1], [0.5, 0.3, 0.2]])
    result = evidence_calibration(probabilities, np.array([0, 1]))
    assert result.brier_score.value == pytest.approx(
        np.mean([0.3**2 + 0.2**2 + 0.1**2, 0.5**2 + 0.7**2 + 0.2**2])
    )
    assert result.negative_log_likelihood.value == pytest.approx(-np.log([0.7, 0.3]).mean())
    # The surest trial is right, the other one is not.
    assert result.coverage == (0.5, 1.0)
    assert result.accuracy == (1.0, 0.5)
    assert result.probability.accuracy == 0.5


def test_areas_and_errors_of_many_samples_are_those_of_each() -> None:
    rng = np.random.default_rng(1)
    scores = rng.integers(6, size=40) / 6  # with ties
    correct = (rng.random(40) < scores).astype(float)
    samples = np.vstack([np.arange(40), rng.integers(40, size=(20, 40))])
    areas = [roc_auc_score(correct[s], scores[s]) for s in samples]
    np.testing.assert_allclose(roc_areas(scores, correct, samples), areas)
    errors = [expected_calibration_error(reliability(scores[s], correct[s])) for s in samples]
    np.testing.assert_allclose(calibration_errors(scores, correct, samples), errors)
    assert np.isnan(roc_areas(scores, np.ones(40), samples)).all()
