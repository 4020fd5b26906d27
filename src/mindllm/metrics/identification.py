"""Identification as pure functions of arrays: ranks and credit of the truth among candidates, ties broken fairly.

Every score here is a table of credit (R, K): what row r earns (0 to 1) if column k is the truth. A real reading looks up
its own row and column; a shuffled one looks up another row. So controls cost no call of the model.
"""

import numpy as np
from scipy.stats import rankdata


def count_greater_and_tied(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For scores (R, C): how many columns of the row are greater, and how many are equal (itself included), each (R, C)."""
    least = rankdata(-scores, method="min", axis=1).astype(int)
    return least - 1, rankdata(-scores, method="max", axis=1).astype(int) - least + 1


def rank_scores(scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(R, C): what column c earns if rank r in its row earns weights[r] (C,), ties broken at random, in expectation.

    A row of equal scores earns the mean weight everywhere: a model that says nothing gets exactly chance.
    """
    ahead, level = count_greater_and_tied(scores)
    total = np.concatenate([[0.0], np.cumsum(weights)])
    return (total[ahead + level] - total[ahead]) / level


def top_k_weights(count: int, k: int) -> np.ndarray:
    """(C,): ranks up to k earn 1."""
    return (np.arange(count) < k).astype(float)


def n_way_weights(count: int, n: int) -> np.ndarray:
    """(C,): the chance of coming first among n - 1 others drawn at random from the rest; n = 2 is pairwise identification."""
    others, drawn = count - 1, min(n, count) - 1
    ranks = np.arange(1, count)
    return np.concatenate(
        [[1.0], np.cumprod(np.maximum(others - ranks + 1 - drawn, 0) / (others - ranks + 1))]
    )


def top_k_scores(scores: np.ndarray, k: int) -> np.ndarray:
    """(R, C): the chance that column c is among the k best of its row when ties are broken at random."""
    return rank_scores(scores, top_k_weights(scores.shape[1], k))


def mean_ranks(scores: np.ndarray) -> np.ndarray:
    """(R, C): rank of each column within its row, 1 = best, ties sharing their mean rank."""
    return rankdata(-scores, method="average", axis=1)


def identification(scores: np.ndarray, true: np.ndarray, k: int = 1) -> np.ndarray:
    """(R,): whether the true column (R,) is among the k best of each row of scores (R, C), ties in expectation."""
    return top_k_scores(scores, k)[np.arange(len(scores)), true]


def rank(scores: np.ndarray, true: np.ndarray) -> np.ndarray:
    """(R,): rank of the true column (R,) in each row of scores (R, C), 1 = best, ties sharing their mean rank."""
    return mean_ranks(scores)[np.arange(len(scores)), true]
