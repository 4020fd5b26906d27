"""Scores as pure functions of arrays: exact match, identification with fair ties, ranks, and bootstrap intervals.

Every score here is a table of credit (R, K): what row r earns (0 to 1) if column k is the truth. A real reading looks up
its own row and column; a shuffled one looks up another row. So controls cost no call of the model.
"""

import string
import unicodedata
from collections.abc import Callable, Sequence

import numpy as np
from scipy.stats import rankdata
from scipy.stats import t as student

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
    least = rankdata(-scores, method="min", axis=1).astype(int)
    return least - 1, rankdata(-scores, method="max", axis=1).astype(int) - least + 1


def rank_credit(scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(R, C): what column c earns if rank r in its row earns weights[r] (C,), ties broken at random, in expectation.

    A row of equal scores earns the mean weight everywhere: a model that says nothing gets exactly chance.
    """
    ahead, level = ahead_and_level(scores)
    total = np.concatenate([[0.0], np.cumsum(weights)])
    return (total[ahead + level] - total[ahead]) / level


def top_k(count: int, k: int) -> np.ndarray:
    """(C,): ranks up to k earn 1."""
    return (np.arange(count) < k).astype(float)


def n_way(count: int, n: int) -> np.ndarray:
    """(C,): the chance of coming first among n - 1 others drawn at random from the rest; n = 2 is pairwise identification."""
    others, drawn = count - 1, min(n, count) - 1
    ranks = np.arange(1, count)
    return np.concatenate([[1.0], np.cumprod(np.maximum(others - ranks + 1 - drawn, 0) / (others - ranks + 1))])


def top_k_credit(scores: np.ndarray, k: int) -> np.ndarray:
    """(R, C): the chance that column c is among the k best of its row when ties are broken at random."""
    return rank_credit(scores, top_k(scores.shape[1], k))


def mean_ranks(scores: np.ndarray) -> np.ndarray:
    """(R, C): rank of each column within its row, 1 = best, ties sharing their mean rank."""
    return rankdata(-scores, method="average", axis=1)


def identification(scores: np.ndarray, true: np.ndarray, k: int = 1) -> np.ndarray:
    """(R,): whether the true column (R,) is among the k best of each row of scores (R, C), ties in expectation."""
    return top_k_credit(scores, k)[np.arange(len(scores)), true]


def rank(scores: np.ndarray, true: np.ndarray) -> np.ndarray:
    """(R,): rank of the true column (R,) in each row of scores (R, C), 1 = best, ties sharing their mean rank."""
    return mean_ranks(scores)[np.arange(len(scores)), true]


def people_means(values: np.ndarray, people: np.ndarray) -> np.ndarray:
    """(S, M): each person's mean of values (B, M), for people (B,) in sorted order."""
    return np.stack([values[people == person].mean(0) for person in np.unique(people)])


def mean(sums: np.ndarray, trials: np.ndarray) -> np.ndarray:
    """(R, M): sums (R, M) over trials (R,), each."""
    return sums / trials[:, None]


def bootstrap_interval(
    values: np.ndarray,
    clusters: Sequence[str] | np.ndarray,
    people: Sequence[str] | np.ndarray | None = None,
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
    _, person = np.unique(np.zeros(len(table)) if people is None else np.asarray(people), return_inverse=True)
    stimuli, persons = int(member.max()) + 1, int(person.max()) + 1
    sums, sizes = np.zeros((persons, stimuli, table.shape[1])), np.zeros((persons, stimuli))
    np.add.at(sums, (person, member), table)
    np.add.at(sizes, (person, member), 1)
    rng, means = np.random.default_rng(seed), []
    step = max(1, BLOCK // stimuli)
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


def permutation_means(
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
    of_rows, of_trials = groups if groups is not None else (np.zeros(len(tables[0][0])), np.zeros(count))
    pairs = [(np.flatnonzero(of_rows == g), np.flatnonzero(of_trials == g)) for g in np.unique(of_trials)]
    out, order = np.empty((permutations, len(tables))), np.empty(count, int)
    for number in range(permutations):
        for rows, trials in pairs:
            order[trials] = (
                rng.permutation(rows)[: len(trials)] if len(rows) >= len(trials) else rng.choice(rows, len(trials))
            )
        out[number] = [credit[order, true].mean() for credit, true in tables]
    return out


def sign_flips(
    differences: np.ndarray, clusters: Sequence[str] | np.ndarray, *, permutations: int = 2000, seed: int = 0
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


def people_p(differences: np.ndarray) -> np.ndarray:
    """One-sided p-value (M,) that people's mean differences (S, M) are above 0 in people at large: Student's t, S - 1 degrees."""
    spread = differences.std(0, ddof=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = differences.mean(0) / (spread / len(differences) ** 0.5)
    return np.where(np.isnan(t), np.nan, student.sf(t, len(differences) - 1))
