"""Bootstrap intervals, permutation tests and p-values over subjects and stimuli."""

from collections.abc import Callable, Sequence

import numpy as np
from scipy.stats import t as student

MAX_WEIGHTS = 2**22  # bootstrap weights in memory at once
FLIPS_AT_ONCE = 256
Groups = tuple[np.ndarray, np.ndarray]
Statistic = Callable[[np.ndarray, np.ndarray], np.ndarray]


def subject_means(values: np.ndarray, subjects: np.ndarray) -> np.ndarray:
    """Return each subject's mean of values (B, M), (n_subjects, M), in sorted order."""
    return np.stack([values[subjects == subject].mean(0) for subject in np.unique(subjects)])


def mean(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return means (R, M) of sums (R, M) over counts (R,)."""
    return sums / counts[:, None]


def bootstrap_interval(
    values: np.ndarray,
    clusters: Sequence[str] | np.ndarray,
    subjects: Sequence[str] | np.ndarray | None = None,
    *,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
    statistic: Statistic = mean,
) -> tuple[np.ndarray, np.ndarray]:
    """Compute the percentile interval of the mean, resampling clusters with replacement.

    Parameters
    ----------
    values : ndarray of shape (B,) or (B, M)
        One row per trial.
    clusters : sequence of length B
        All trials of a cluster, of all subjects, are drawn together: they are not independent.
    subjects : sequence of length B, optional
        Drawn too, independently; the mean is then the mean of the subjects' means.
    resamples, level, seed : int, float, int
        Number of resamples, level of the interval, seed.
    statistic : callable
        A subject's score (R, N) of sums (R, M) over counts (R,).

    Returns
    -------
    low, high : ndarray of shape (), (M,) or (N,)
        Ends of the interval.

    References
    ----------
    Cluster bootstrap: Davison & Hinkley 1997, section 3.8. Crossed random effects: Owen 2007.
    """
    sums, sizes = sum_by_cluster(values, clusters, subjects)
    rng, n_clusters = np.random.default_rng(seed), sizes.shape[1]
    step, means = max(1, MAX_WEIGHTS // n_clusters), []
    for start in range(0, resamples, step):
        means.append(resample(rng, sums, sizes, min(step, resamples - start), statistic))
    ends = [(1 - level) / 2, (1 + level) / 2]
    low, high = np.quantile(np.concatenate(means), ends, axis=0)
    return (low[0], high[0]) if np.ndim(values) == 1 else (low, high)


def sum_by_cluster(
    values: np.ndarray,
    clusters: Sequence[str] | np.ndarray,
    subjects: Sequence[str] | np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return sums (n_subjects, n_clusters, M) and counts (n_subjects, n_clusters) of values."""
    table = np.asarray(values, float).reshape(len(values), -1)
    labels = np.zeros(len(table)) if subjects is None else np.asarray(subjects)
    _, cluster = np.unique(np.asarray(clusters), return_inverse=True)
    _, subject = np.unique(labels, return_inverse=True)
    shape = (int(subject.max()) + 1, int(cluster.max()) + 1)
    sums, sizes = np.zeros((*shape, table.shape[1])), np.zeros(shape)
    np.add.at(sums, (subject, cluster), table)
    np.add.at(sizes, (subject, cluster), 1)
    return sums, sizes


def resample(
    rng: np.random.Generator, sums: np.ndarray, sizes: np.ndarray, count: int, statistic: Statistic
) -> np.ndarray:
    """Return the statistic of `count` resamples (at most count, N), of subjects and clusters."""
    n_subjects, n_clusters = sizes.shape
    draws = rng.multinomial(n_clusters, np.full(n_clusters, 1 / n_clusters), size=count)
    weights = rng.multinomial(n_subjects, np.full(n_subjects, 1 / n_subjects), size=count)
    draws, weights = draws.astype(float), weights.astype(float)
    total, weight = 0.0, np.zeros(count)
    for subject in range(n_subjects):
        size = draws @ sizes[subject]
        present = weights[:, subject] * (size > 0)  # a subject may have none of the drawn clusters
        score = statistic(draws @ sums[subject], np.maximum(size, 1))
        total = total + present[:, None] * score
        weight += present
    return (total / np.maximum(weight, 1)[:, None])[weight > 0]


def permutation_null(
    tables: Sequence[tuple[np.ndarray, np.ndarray]],
    groups: Groups | None = None,
    *,
    permutations: int = 2000,
    seed: int | Sequence[int] = 0,
) -> np.ndarray:
    """Compute mean scores when random rows of predictions stand in for the trials.

    Parameters
    ----------
    tables : sequence of (ndarray (R, K), ndarray (B,)), length M
        Scores of each row for each possible target, and the targets of the trials.
    groups : tuple of ndarrays (R,) and (B,), optional
        Rows stand in for trials of the same group; default: for all.
    permutations, seed : int
        Number of permutations, and their seed.

    Returns
    -------
    ndarray of shape (permutations, M)
        Means over trials. Draws are without replacement where there are enough rows, uniform (a
        trial may stay in place) and shared by the tables, so that the expectation is exactly the
        mean over all pairs: chance, where every target is equally frequent.
    """
    rng, count = np.random.default_rng(seed), len(tables[0][1])
    row_groups, trial_groups = (
        groups if groups is not None else (np.zeros(len(tables[0][0])), np.zeros(count))
    )
    pairs = [
        (np.flatnonzero(row_groups == group), np.flatnonzero(trial_groups == group))
        for group in np.unique(trial_groups)
    ]
    means, order = np.empty((permutations, len(tables))), np.empty(count, int)
    for number in range(permutations):
        for rows, trials in pairs:
            order[trials] = (
                rng.permutation(rows)[: len(trials)]
                if len(rows) >= len(trials)
                else rng.choice(rows, len(trials))
            )
        means[number] = [scores[order, targets].mean() for scores, targets in tables]
    return means


def sign_flip_null(
    differences: np.ndarray,
    clusters: Sequence[str] | np.ndarray,
    *,
    permutations: int = 2000,
    seed: int = 0,
) -> np.ndarray:
    """Compute sums of differences when the sign of each cluster is drawn at random.

    Parameters
    ----------
    differences : ndarray of shape (B, M)
        Paired differences.
    clusters : sequence of length B
        Trials of a cluster keep one sign.
    permutations, seed : int
        Number of draws, and their seed.

    Returns
    -------
    ndarray of shape (permutations, M)
        Sums over trials.

    References
    ----------
    Winkler et al. 2014, Permutation inference for the general linear model, NeuroImage 92.
    """
    _, cluster = np.unique(np.asarray(clusters), return_inverse=True)
    sums = np.zeros((int(cluster.max()) + 1, differences.shape[1]))
    np.add.at(sums, cluster, differences)
    rng = np.random.default_rng(seed)
    return np.concatenate(
        [
            rng.choice([-1.0, 1.0], (min(FLIPS_AT_ONCE, permutations - start), len(sums))) @ sums
            for start in range(0, permutations, FLIPS_AT_ONCE)
        ]
    )


def p_value(observed: float | np.ndarray, null: np.ndarray) -> np.ndarray:
    """Compute one-sided permutation p-values.

    Parameters
    ----------
    observed : float or ndarray of shape (M,)
        Observed values.
    null : ndarray of shape (permutations, M)
        Values under permutations.

    Returns
    -------
    ndarray of shape (M,)
        Never 0.

    References
    ----------
    Phipson & Smyth 2010, Permutation p-values should never be zero, SAGMB 9.

    Examples
    --------
    >>> p_value(0.5, np.zeros((9, 1)))
    array([0.1])
    """
    return (1 + (null >= np.asarray(observed) - 1e-12).sum(0)) / (1 + len(null))


def group_p_value(differences: np.ndarray) -> np.ndarray:
    """Compute one-sided p-values of the mean over subjects, at the population level.

    Parameters
    ----------
    differences : ndarray of shape (n_subjects, M)
        Mean difference of each subject.

    Returns
    -------
    ndarray of shape (M,)
        Student's t test with n_subjects - 1 degrees of freedom; NaN where nothing differs.
    """
    spread = differences.std(0, ddof=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = differences.mean(0) / (spread / len(differences) ** 0.5)
    return np.where(np.isnan(t), np.nan, student.sf(t, len(differences) - 1))
