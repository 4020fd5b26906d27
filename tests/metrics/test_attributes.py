"""Attributes that texts name."""

import numpy as np
import pytest

from mindllm.metrics.attributes import attribute_scores


def test_precision_and_recall_count_what_is_named() -> None:
    true = np.array([[1, 0, 1], [0, 1, 1]], bool)
    named = np.array([[1, 1, 0], [0, 1, 0]], bool)
    scores = attribute_scores(named, true, ["a", "b"])
    assert scores.precision is not None
    assert scores.recall is not None
    assert scores.precision.value == pytest.approx(2 / 3)
    assert scores.recall.value == pytest.approx(2 / 4)
    assert scores.shuffled_precision == pytest.approx(1 / 3)  # the first text names one of b
    assert scores.shuffled_recall == pytest.approx(1 / 4)


def test_repetitions_of_a_stimulus_are_no_control_of_each_other() -> None:
    true = np.array([[1, 0], [1, 0], [0, 1], [0, 1]], bool)
    scores = attribute_scores(true, true, ["a", "a", "b", "b"])
    assert scores.precision is not None
    assert (scores.precision.value, scores.shuffled_precision) == (1, 0)


def test_texts_that_say_nothing_are_as_good_as_shuffled_ones() -> None:
    rng = np.random.default_rng(0)
    true = np.eye(5, dtype=bool)[rng.integers(5, size=400)]
    named = np.eye(5, dtype=bool)[rng.integers(5, size=400)]
    scores = attribute_scores(named, true, [str(i) for i in range(400)])
    assert scores.precision is not None
    assert scores.shuffled_precision is not None
    assert scores.precision.ci_low < scores.shuffled_precision < scores.precision.ci_high


def test_nothing_named_has_no_precision() -> None:
    scores = attribute_scores(np.zeros((2, 2), bool), np.eye(2, dtype=bool), ["a", "b"])
    assert (scores.precision, scores.shuffled_precision) == (None, None)
    assert scores.recall is not None
    assert scores.recall.value == 0
