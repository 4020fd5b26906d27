"""Bootstrap intervals, permutations and p-values over people and stimuli."""

from collections.abc import Callable, Sequence

import numpy as np
from scipy.stats import t as student

CHUNK_SIZE = 2**22  # bootstrap weights in memory at once


def subject_means(values: np.ndarray, subjects: np.ndarray) -> np.ndarray:
    """(S, M): each person's mean of values (B, M), for people (B,) in sorted order."""
    return np.stack([values[subjects == person].mean(0) for person in np.unique(subjects)])


def mean(sums: np.ndarray, trials: np.ndarray) -> np.ndarray:
    """(R, M): sums (R, M) over trials (R,), each."""
    return sums / trials[:, None]


def bootstrap_interval(
    values: np.ndarray,
    clusters: Sequence[str] | np.ndarray,
    subjects: Sequence[str] | np.ndarray | None = None,
    *,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
    statistic: Callable[[np.ndarray, np.ndarray], np.ndarray] = mean,
) -> tuple[np.ndarray, np.ndarray]:
    """Percentile interval of the mean of values (B,) or (B, M), resampling clusters (B,) with replacement.

    Clusters are stimuli: all trials of one, of all people, are drawn together, because a stimulus that is easy once is
    easy again. people (B,): these are drawn too, independently, and the mean is the mean of their means, so that the
    interval speaks of other people and other stimuli. statistic: a person's score (R, N) of sums (R, M) over trials (R,),
    where it is no mean. Returns (low, high), each () or (M,), or (N,).
    Sources: cluster bootstrap, Davison & Hinkley 1997, section 3.8; crossed random effects, Owen 2007.
    """
    table = np.asarray(values, float).reshape(len(values), -1)
    _, member = np.unique(np.asarray(clusters), return_inverse=True)
    _, person = np.unique(
        np.zeros(len(table)) if subjects is None else np.asarray(subjects), return_inverse=True
    )
    stimuli, persons = int(member.max()) + 1, int(person.max()) + 1
    sums, sizes = np.zeros((persons, stimuli, table.shape[1])), np.zeros((persons, stimuli))
    np.add.at(sums, (person, member), table)
    np.add.at(sizes, (person, member), 1)
    rng, means = np.random.default_rng(seed), []
    step = max(1, CHUNK_SIZE // stimuli)
    for start in range(0, resamples, step):
        count = min(step, resamples - start)
        draws = rng.multinomial(stimuli, np.full(stimuli, 1 / stimuli), size=count).astype(float)
        weights = rng.multinomial(persons, np.full(persons, 1 / persons), size=count).astype(float)
        total, weight = 0.0, np.zeros(count)
        for p in range(persons):
            size = draws @ sizes[p]
            here = weights[:, p] * (size > 0)  # someone who saw none of the drawn stimuli
            total = total + here[:, None] * statistic(draws @ sums[p], np.maximum(size, 1))
            weight += here
        means.append((total / np.maximum(weight, 1)[:, None])[weight > 0])
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2], axis=0)
    return (low[0], high[0]) if np.ndim(values) == 1 else (low, high)


Groups = tuple[np.ndarray, np.ndarray]


def permutation_null(
    tables: Sequence[tuple[np.ndarray, np.ndarray]],
    groups: Groups | None = None,
    *,
    permutations: int = 2000,
    seed: int | Sequence[int] = 0,
) -> np.ndarray:
    """Mean credit (permutations, M) when random rows stand in for the trials, for M tables of (credit (R, K), true (B,)).

    groups: of the rows (R,) and of the trials (B,); stand-ins come from a trial's own group, all rows by default. Draws are
    without replacement where there are enough rows. They are uniform (a trial may stay in place) and shared by the tables,
    so that the expectation is exactly the mean over all pairs: chance, where every truth is equally frequent.
    """
    rng = np.random.default_rng(seed)
    count = len(tables[0][1])
    of_rows, of_trials = (
        groups if groups is not None else (np.zeros(len(tables[0][0])), np.zeros(count))
    )
    pairs = [
        (np.flatnonzero(of_rows == g), np.flatnonzero(of_trials == g)) for g in np.unique(of_trials)
    ]
    out, order = np.empty((permutations, len(tables))), np.empty(count, int)
    for number in range(permutations):
        for rows, trials in pairs:
            order[trials] = (
                rng.permutation(rows)[: len(trials)]
                if len(rows) >= len(trials)
                else rng.choice(rows, len(trials))
            )
        out[number] = [credit[order, true].mean() for credit, true in tables]
    return out


def sign_flip_null(
    differences: np.ndarray,
    clusters: Sequence[str] | np.ndarray,
    *,
    permutations: int = 2000,
    seed: int = 0,
) -> np.ndarray:
    """Sums of differences (B, M) when the sign of each cluster (stimulus) is drawn at random, (permutations, M)."""
    _, member = np.unique(np.asarray(clusters), return_inverse=True)
    sums = np.zeros((int(member.max()) + 1, differences.shape[1]))
    np.add.at(sums, member, differences)
    rng = np.random.default_rng(seed)
    return np.concatenate(
        [
            rng.choice([-1.0, 1.0], (min(256, permutations - start), len(sums))) @ sums
            for start in range(0, permutations, 256)
        ]
    )


def p_value(observed: float | np.ndarray, null: np.ndarray) -> np.ndarray:
    """One-sided permutation p-value (M,) of observed (M,) against null (permutations, M); never 0 (Phipson & Smyth 2010)."""
    return (1 + (null >= np.asarray(observed) - 1e-12).sum(0)) / (1 + len(null))


def group_p_value(differences: np.ndarray) -> np.ndarray:
    """One-sided p-value (M,) that people's mean differences (S, M) are above 0 in people at large: Student's t, S - 1 degrees."""
    spread = differences.std(0, ddof=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = differences.mean(0) / (spread / len(differences) ** 0.5)
    return np.where(np.isnan(t), np.nan, student.sf(t, len(differences) - 1))
