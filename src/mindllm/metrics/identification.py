"""Identification of the target among candidates, from scores; ties count in expectation.

Scores of a metric are a table (R, K): what row r scores, in [0, 1], if column k is the target. A
trial looks up its own row and column; a shuffled one looks up another row. So controls need no
further call of the model.

References
----------
Kay, Naselaris, Prenger & Gallant 2008, Identifying natural images from human brain activity,
Nature 452.
"""

import numpy as np
from scipy.stats import rankdata


def count_greater_and_tied(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Count, for each column of scores (R, C), greater and equal columns of its row.

    Parameters
    ----------
    scores : ndarray of shape (R, C)
        Any scores.

    Returns
    -------
    n_greater, n_tied : ndarray of int, shape (R, C)
        A column is tied with itself.
    """
    least = rankdata(-scores, method="min", axis=1).astype(int)
    most = rankdata(-scores, method="max", axis=1).astype(int)
    return least - 1, most - least + 1


def rank_scores(scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Score each candidate by its rank.

    Parameters
    ----------
    scores : ndarray of shape (R, C)
        Scores of C candidates.
    weights : ndarray of shape (C,)
        Score of each rank, best first.

    Returns
    -------
    ndarray of shape (R, C)
        The expected weight if ties are broken at random. A row of equal scores gets the mean
        weight everywhere: a model that does not depend on its input gets exactly chance.

    Examples
    --------
    >>> rank_scores(np.array([[5.0, 3.0, 3.0]]), top_k_weights(3, 2))
    array([[1. , 0.5, 0.5]])
    """
    n_greater, n_tied = count_greater_and_tied(scores)
    total = np.concatenate([[0.0], np.cumsum(weights)])
    return (total[n_greater + n_tied] - total[n_greater]) / n_tied


def top_k_weights(count: int, k: int) -> np.ndarray:
    """Return 1 for the ranks up to k of `count`, (count,)."""
    return (np.arange(count) < k).astype(float)


def n_way_weights(count: int, n: int) -> np.ndarray:
    """Compute the probability of each rank to be first among n candidates.

    Parameters
    ----------
    count : int
        Number of candidates C.
    n : int
        The target and n - 1 others drawn at random; 2 is 2-way identification.

    Returns
    -------
    ndarray of shape (C,)
        The exact mean over all draws.

    References
    ----------
    Takagi & Nishimoto 2023, CVPR, report n-way identification accuracy.
    """
    n_others, n_drawn = count - 1, min(n, count) - 1
    left = n_others - np.arange(1, count) + 1
    return np.concatenate([[1.0], np.cumprod(np.maximum(left - n_drawn, 0) / left)])


def top_k_scores(scores: np.ndarray, k: int) -> np.ndarray:
    """Return the probability (R, C) that each column is among the k best of its row."""
    return rank_scores(scores, top_k_weights(scores.shape[1], k))


def mean_ranks(scores: np.ndarray) -> np.ndarray:
    """Return the rank of each column in its row (R, C), 1 = best, ties sharing their mean."""
    return rankdata(-scores, method="average", axis=1)


def identification(scores: np.ndarray, targets: np.ndarray, k: int = 1) -> np.ndarray:
    """Score whether the target is among the k best.

    Parameters
    ----------
    scores : ndarray of shape (R, C)
        Scores of C candidates.
    targets : ndarray of int, shape (R,)
        Column of the target.
    k : int
        How many count.

    Returns
    -------
    ndarray of shape (R,)
        In [0, 1]; between them for ties.
    """
    return top_k_scores(scores, k)[np.arange(len(scores)), targets]


def rank(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return the rank of the target column (R,) in scores (R, C), 1 = best, ties sharing it."""
    return mean_ranks(scores)[np.arange(len(scores)), targets]
