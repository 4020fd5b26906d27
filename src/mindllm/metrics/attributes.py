"""Attributes that texts name, such as agents or places, against those of what trials are about."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mindllm.metrics.calibration import Estimate, bootstrap_estimate


@dataclass(frozen=True, slots=True)
class AttributeScores:
    """How well texts name what trials are about, beside texts of trials about something else.

    Parameters
    ----------
    precision : Estimate or None
        Fraction of what is named that is true, in [0, 1], with its 95 % bootstrap interval over
        stimuli; None where nothing is named.
    recall : Estimate or None
        Fraction of what is true that is named; None where nothing is true.
    shuffled_precision, shuffled_recall : float or None
        The same of each text and the targets of all other stimuli.
    """

    precision: Estimate | None
    recall: Estimate | None
    shuffled_precision: float | None
    shuffled_recall: float | None


def attribute_scores(
    is_named: np.ndarray, is_true: np.ndarray, stimuli: Sequence[str]
) -> AttributeScores:
    """Measure how well texts name the values of attributes.

    Parameters
    ----------
    is_named : ndarray of bool, shape (n_trials, n_values)
        Values that the text about each trial names.
    is_true : ndarray of bool, shape (n_trials, n_values)
        Values that what the trial is about has.
    stimuli : sequence of str
        Of the trials; two or more different ones.

    Returns
    -------
    AttributeScores

    Examples
    --------
    >>> is_named = np.array([[True, False], [True, False]])
    >>> scores = attribute_scores(is_named, np.eye(2, dtype=bool), ["dog", "cat"])
    >>> scores.recall.value, scores.shuffled_recall
    (0.5, 0.5)
    """
    hits = (is_named & is_true).sum(1)
    shared, labels = is_named.astype(float) @ is_true.T.astype(float), np.asarray(stimuli)
    differs = labels[:, None] != labels[None]
    shuffled = (shared * differs).sum(1) / differs.sum(1)
    n_named, n_true = is_named.sum(1), is_true.sum(1)
    return AttributeScores(
        precision=_ratio(hits, n_named, labels) if n_named.any() else None,
        recall=_ratio(hits, n_true, labels) if n_true.any() else None,
        shuffled_precision=float(shuffled.sum() / n_named.sum()) if n_named.any() else None,
        shuffled_recall=float(shuffled.sum() / n_true.sum()) if n_true.any() else None,
    )


def _ratio(numerator: np.ndarray, denominator: np.ndarray, stimuli: np.ndarray) -> Estimate:
    """Ratio of two sums over trials, with its interval over stimuli."""
    names, index = np.unique(stimuli, return_inverse=True)
    above, below = (np.bincount(index, values) for values in (numerator, denominator))

    def divide(sample: np.ndarray) -> np.ndarray:
        total = below[sample].sum(1)
        nan = np.full_like(total, np.nan)  # a sample of stimuli about which nothing is named
        return np.divide(above[sample].sum(1), total, out=nan, where=total > 0)

    return bootstrap_estimate(divide, len(names))
