"""Exact match of texts after normalization."""

import string
import unicodedata
from collections.abc import Sequence

import numpy as np


def normalize_answer(text: str) -> str:
    """Put a text in the form that exact match compares.

    It is case-folded, NFKC, with one space between words and no punctuation at either end.

    Examples
    --------
    >>> normalize_answer("  A  DOG runs.")
    'a dog runs'
    """
    words = unicodedata.normalize("NFKC", text).casefold().split()
    return " ".join(words).strip(string.punctuation + string.whitespace)


def exact_match_scores(texts: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """Compare every text with the references of every stimulus.

    Parameters
    ----------
    texts : sequence of str, length R
        Predictions.
    references : sequence of sequence of str, length S
        Accepted answers of each stimulus.

    Returns
    -------
    ndarray of shape (R, S)
        1 where text r equals a reference of stimulus s after normalization, else 0. An empty text
        never does.
    """
    columns: dict[str, list[int]] = {}
    for stimulus, answers in enumerate(references):
        for answer in {normalize_answer(a) for a in answers} - {""}:
            columns.setdefault(answer, []).append(stimulus)
    scores = np.zeros((len(texts), len(references)))
    for row, text in enumerate(texts):
        scores[row, columns.get(normalize_answer(text), [])] = 1
    return scores


def exact_match(text: str, references: Sequence[str]) -> bool:
    """Return whether a text equals any of its references after normalization."""
    return bool(exact_match_scores([text], [references])[0, 0])
