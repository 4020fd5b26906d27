"""Scores as pure functions of arrays: exact match, identification with fair ties, ranks, and bootstrap intervals.

Every score here is a table of credit (R, K): what row r earns (0 to 1) if column k is the truth. A real reading looks up
its own row and column; a shuffled one looks up another row. So controls cost no call of the model.
"""

import string
import unicodedata
from collections.abc import Sequence

import numpy as np
from scipy.stats import rankdata

BLOCK = 2**22  # bootstrap weights in memory at once


def normalize_answer(text: str) -> str:
    """Lower case, one space between words, no punctuation at either end: what exact match compares."""
    words = unicodedata.normalize("NFKC", text).casefold().split()
    return " ".join(words).strip(string.punctuation + string.whitespace)


def match_credit(texts: Sequence[str], accepted: Sequence[Sequence[str]]) -> np.ndarray:
    """(R, S): 1 where text r equals, after normalization, any accepted answer of stimulus s."""
    answers: dict[str, list[int]] = {}
    for stimulus, some in enumerate(accepted):
        for answer in {normalize_answer(a) for a in some} - {""}:  # silence is never right
            answers.setdefault(answer, []).append(stimulus)
    credit = np.zeros((len(texts), len(accepted)))
    for row, text in enumerate(texts):
        credit[row, answers.get(normalize_answer(text), [])] = 1
    return credit


def exact_match(text: str, accepted: Sequence[str]) -> bool:
    """Whether `text` equals any accepted answer after normalization."""
    return bool(match_credit([text], [accepted])[0, 0])


def ahead_and_level(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For scores (R, C): how many columns of the row are greater, and how many are equal (itself included), each (R, C)."""
    least = rankdata(-scores, method="min", axis=1)
    return least - 1, rankdata(-scores, method="max", axis=1) - least + 1


def top_k_credit(scores: np.ndarray, k: int) -> np.ndarray:
    """(R, C): the chance that column c is among the k best of its row when ties are broken at random.

    A row of equal scores earns k / C everywhere: a model that says nothing gets exactly chance.
    """
    ahead, level = ahead_and_level(scores)
    return np.clip((k - ahead) / level, 0, 1)


def mean_ranks(scores: np.ndarray) -> np.ndarray:
    """(R, C): rank of each column within its row, 1 = best, ties sharing their mean rank."""
    return rankdata(-scores, method="average", axis=1)


def identification(scores: np.ndarray, true: np.ndarray, k: int = 1) -> np.ndarray:
    """(R,): whether the true column (R,) is among the k best of each row of scores (R, C), ties in expectation."""
    return top_k_credit(scores, k)[np.arange(len(scores)), true]


def rank(scores: np.ndarray, true: np.ndarray) -> np.ndarray:
    """(R,): rank of the true column (R,) in each row of scores (R, C), 1 = best, ties sharing their mean rank."""
    return mean_ranks(scores)[np.arange(len(scores)), true]


def bootstrap_interval(
    values: np.ndarray,
    clusters: Sequence[str] | np.ndarray,
    *,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Percentile interval of the mean of values (B,) or (B, M), resampling clusters (B,) with replacement.

    Clusters are stimuli: all trials of one, of all subjects, are drawn together, because a stimulus that is easy once is
    easy again. Returns (low, high), each () or (M,). Source: cluster bootstrap, Davison & Hinkley 1997, section 3.8.
    """
    table = np.asarray(values, float).reshape(len(values), -1)
    _, member = np.unique(np.asarray(clusters), return_inverse=True)
    count = int(member.max()) + 1
    sums = np.zeros((count, table.shape[1]))
    np.add.at(sums, member, table)
    sizes = np.bincount(member, minlength=count).astype(float)
    rng, means = np.random.default_rng(seed), []
    step = max(1, BLOCK // count)
    for start in range(0, resamples, step):
        draws = rng.multinomial(count, np.full(count, 1 / count), size=min(step, resamples - start)).astype(float)
        means.append((draws @ sums) / (draws @ sizes)[:, None])
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2], axis=0)
    shape = np.shape(values)[1:]
    return low.reshape(shape), high.reshape(shape)


def permutation_means(
    tables: Sequence[tuple[np.ndarray, np.ndarray]], *, permutations: int = 2000, seed: int | Sequence[int] = 0
) -> np.ndarray:
    """Mean credit under random permutations of the rows, (permutations, M), for M tables of (credit (B, K), true (B,)).

    Permutations are uniform (a trial may stay in place) and shared by the tables, so that the expectation is exactly the
    mean over all pairs of trials: chance, where every truth is equally frequent.
    """
    rng = np.random.default_rng(seed)
    out = np.empty((permutations, len(tables)))
    for number in range(permutations):
        order = rng.permutation(len(tables[0][1]))
        out[number] = [credit[order, true].mean() for credit, true in tables]
    return out


def p_value(observed: float | np.ndarray, null: np.ndarray) -> np.ndarray:
    """One-sided permutation p-value (M,) of observed (M,) against null (permutations, M); never 0 (Phipson & Smyth 2010)."""
    return (1 + (null >= np.asarray(observed) - 1e-12).sum(0)) / (1 + len(null))
