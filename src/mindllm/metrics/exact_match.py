"""Exact match of texts after normalization."""

import string
import unicodedata
from collections.abc import Sequence

import numpy as np


def normalize_answer(text: str) -> str:
    """Lower case, one space between words, no punctuation at either end: what exact match compares."""
    words = unicodedata.normalize("NFKC", text).casefold().split()
    return " ".join(words).strip(string.punctuation + string.whitespace)


def exact_match_scores(texts: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """(R, S): 1 where text r equals, after normalization, any accepted answer of stimulus s."""
    answers: dict[str, list[int]] = {}
    for stimulus, some in enumerate(references):
        for answer in {normalize_answer(a) for a in some} - {""}:  # silence is never right
            answers.setdefault(answer, []).append(stimulus)
    credit = np.zeros((len(texts), len(references)))
    for row, text in enumerate(texts):
        credit[row, answers.get(normalize_answer(text), [])] = 1
    return credit


def exact_match(text: str, references: Sequence[str]) -> bool:
    """Whether `text` equals any accepted answer after normalization."""
    return bool(exact_match_scores([text], [references])[0, 0])
