"""What a score stands beside: the same model with shuffled scans, with no brain, and a constant answer."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mindllm.evaluate.scores import (
    bootstrap_interval,
    match_credit,
    mean_ranks,
    normalize_answer,
    p_value,
    permutation_means,
    top_k_credit,
)
from mindllm.evaluate.task import Task

CONDITIONS = ("brain", "shuffled", "no_brain", "constant")
METRICS = (
    "exact_match",
    "identification_top1",
    "identification_top5",
    "identification_gain_top1",
    "identification_gain_top5",
)
ALL = "all"
Credit = dict[str, np.ndarray]


@dataclass(frozen=True)
class Readings:
    """What the model said about B trials of one subject: `likelihood` (B, C) in nats and free-running `texts` (B,)."""

    subject: str
    likelihood: np.ndarray
    texts: Sequence[str]
    stimuli: Sequence[str]  # (B,) what was shown


@dataclass(frozen=True)
class Blind:
    """What is said without a scan: the no-brain likelihoods (C,) and text; how often training had each answer (None: unknown)."""

    likelihood: np.ndarray
    text: str
    training_answers: Mapping[str, int] | None


@dataclass(frozen=True)
class Outcome:
    """One subject's credit per trial, condition -> (B, metrics), the ranks of the truth, and the shuffled means (permutations, metrics)."""

    subject: str
    credit: Mapping[str, np.ndarray]
    ranks: Mapping[str, np.ndarray]
    shuffled: np.ndarray
    stimuli: np.ndarray


def credits(
    likelihood: np.ndarray, blind: np.ndarray, texts: Sequence[str], accepted: Sequence[Sequence[str]]
) -> Credit:
    """Per metric what each reading (row) earns for each possible truth (column): stimuli for exact match, else candidates."""
    gain = likelihood - blind
    tables = [
        match_credit(texts, accepted),
        *(top_k_credit(scores, k) for scores in (likelihood, gain) for k in (1, 5)),
    ]
    return dict(zip(METRICS, tables, strict=True))


def constant_credits(task: Task, answers: Mapping[str, int]) -> tuple[Credit, np.ndarray]:
    """Credit (1, K) of always giving the most frequent training answer, and the frequencies (1, C) of the candidates.

    Several answers may be equally frequent: credit is what a random one of them earns. A constant does not depend on the
    scan, so its gain is 0 for every candidate and earns chance.
    """
    counts: Counter[str] = Counter()
    for text, count in answers.items():
        counts[normalize_answer(text)] += count
    frequency = np.array([[counts[normalize_answer(text)] for text in task.candidates]], float)
    table = credits(frequency, frequency, [""], task.accepted)
    table["exact_match"] = match_credit(most_frequent(answers), task.accepted).mean(0, keepdims=True)
    return table, frequency


def most_frequent(answers: Mapping[str, int]) -> list[str]:
    """The answers given to the most training trials, sorted."""
    return sorted(text for text, count in answers.items() if count == max(answers.values()))


def judge(
    readings: Readings, task: Task, blind: Blind, *, permutations: int = 2000, seed: int | Sequence[int] = 0
) -> Outcome:
    """Score one subject's readings and their controls, trial by trial."""
    shown, true = task.columns(readings.stimuli)
    columns = [shown if metric == "exact_match" else true for metric in METRICS]
    trials = np.arange(len(true))
    own = credits(readings.likelihood, blind.likelihood, readings.texts, task.accepted)
    none = credits(blind.likelihood[None], blind.likelihood, [blind.text], task.accepted)
    tables = [own[metric] for metric in METRICS]
    places = mean_ranks(readings.likelihood)
    credit = {
        "brain": np.stack([table[trials, column] for table, column in zip(tables, columns, strict=True)], 1),
        # The mean over all trials is the exact expectation over uniform permutations.
        "shuffled": np.stack([table.mean(0)[column] for table, column in zip(tables, columns, strict=True)], 1),
        "no_brain": np.stack([none[metric][0, column] for metric, column in zip(METRICS, columns, strict=True)], 1),
    }
    ranks = {
        "brain": places[trials, true],
        "shuffled": places.mean(0)[true],
        "no_brain": mean_ranks(blind.likelihood[None])[0, true],
    }
    if blind.training_answers:
        table, frequency = constant_credits(task, blind.training_answers)
        credit["constant"] = np.stack(
            [table[metric][0, column] for metric, column in zip(METRICS, columns, strict=True)], 1
        )
        ranks["constant"] = mean_ranks(frequency)[0, true]
    null = permutation_means(list(zip(tables, columns, strict=True)), permutations=permutations, seed=seed)
    return Outcome(readings.subject, credit, ranks, null, np.asarray(readings.stimuli))


def pool(outcomes: Sequence[Outcome]) -> Outcome:
    """All subjects together: trials side by side; scans were shuffled within each person."""
    sizes = np.array([len(outcome.stimuli) for outcome in outcomes], float)
    null = np.tensordot(sizes / sizes.sum(), np.stack([outcome.shuffled for outcome in outcomes]), 1)
    credit = {c: np.concatenate([o.credit[c] for o in outcomes]) for c in outcomes[0].credit}
    ranks = {c: np.concatenate([o.ranks[c] for o in outcomes]) for c in outcomes[0].ranks}
    return Outcome(ALL, credit, ranks, null, np.concatenate([o.stimuli for o in outcomes]))


def tabulate(outcome: Outcome, candidates: int, *, resamples: int = 2000, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of the report: one per condition and metric, with value, interval, n, chance; `difference` is brain minus the control."""
    brain = outcome.credit["brain"]
    rows = []
    for condition in CONDITIONS:
        own = outcome.credit.get(condition)
        low, high, p = intervals(outcome, condition, resamples, seed) if own is not None else (None, None, None)
        gap = (
            bootstrap_interval(brain - own, outcome.stimuli, resamples=resamples, seed=seed)
            if own is not None and condition != "brain"
            else None
        )
        for i, metric in enumerate(METRICS):
            row: dict[str, Any] = {"subject": outcome.subject, "condition": condition, "metric": metric}
            row |= {"value": None if own is None else float(own[:, i].mean())}
            row |= {
                "ci_low": None if low is None else float(low[i]),
                "ci_high": None if high is None else float(high[i]),
            }
            row |= {
                "n": len(brain),
                "n_stimuli": len(set(outcome.stimuli.tolist())),
                "chance": chance(metric, candidates),
            }
            row |= {
                "interval": "2.5 to 97.5 % of the permutations" if condition == "shuffled" else "bootstrap over stimuli"
            }
            if p is not None:
                row["p_value"] = float(p[i])
            if gap is not None and own is not None:
                row |= {
                    "difference": float((brain - own)[:, i].mean()),
                    "difference_low": float(gap[0][i]),
                    "difference_high": float(gap[1][i]),
                }
            if metric == "identification_top1" and condition in outcome.ranks:
                row |= {"mean_rank": float(outcome.ranks[condition].mean()), "mean_rank_chance": (candidates + 1) / 2}
            rows.append(row)
    return rows


def intervals(
    outcome: Outcome, condition: str, resamples: int, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """(low, high, p-value or None) per metric: a bootstrap over stimuli; for shuffled scans the spread of single shuffles."""
    own = outcome.credit[condition]
    if condition == "shuffled":
        low, high = np.quantile(outcome.shuffled, [0.025, 0.975], axis=0)
        # A rare hit can leave both quantiles at 0 below a mean just above it.
        return np.minimum(low, own.mean(0)), np.maximum(high, own.mean(0)), None
    low, high = bootstrap_interval(own, outcome.stimuli, resamples=resamples, seed=seed)
    return low, high, p_value(own.mean(0), outcome.shuffled) if condition == "brain" else None


def chance(metric: str, candidates: int) -> float | None:
    """What guessing earns; free-running text has no chance level of its own."""
    return None if metric == "exact_match" else min(1.0, int(metric[-1]) / candidates)
