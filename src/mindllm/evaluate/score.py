"""Credit per trial of every condition, and how sure it is that the brain is above it.

A condition is what some reader said: likelihoods and texts, one row per trial; or rows that stand in for trials, of which
each trial earns the mean. So shuffled scans cost no further call of the model, and have no luck of the draw.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mindllm.evaluate.conditions import ALL, CONDITIONS
from mindllm.evaluate.evaluation_set import Task
from mindllm.evaluate.results import Outcome, Readings, Said
from mindllm.metrics.exact_match import match_credit
from mindllm.metrics.identification import mean_ranks, rank_credit
from mindllm.metrics.inference import (
    Groups,
    bootstrap_interval,
    p_value,
    people_means,
    people_p,
    permutation_means,
    sign_flips,
)
from mindllm.metrics.registry import METRICS

RESAMPLES = PERMUTATIONS = 2000


def judge(
    readings: Readings, task: Task, *, permutations: int = PERMUTATIONS, seed: int | Sequence[int] = 0
) -> Outcome:
    """Score one person's readings under every condition, trial by trial."""
    shown, true = task.columns(readings.stimuli)
    credit, luck, ranks, nulls = {}, {}, {}, {}
    for condition, said in readings.said.items():
        tables = credit_tables(said, task, shown, true)
        rows, of_rows = mean_rows([table for table, _ in tables], said.groups)
        credit[condition] = np.stack([t[rows, column] for t, (_, column) in zip(of_rows, tables, strict=True)], 1)
        if said.likelihood is not None:
            places, (place,) = mean_rows([mean_ranks(said.likelihood)], said.groups)
            ranks[condition] = place[places, true]
        if CONDITIONS[condition].kind in ("brain", "trained", "baseline"):
            luck[condition] = np.stack([table.mean(0)[column] for table, column in tables], 1)
        if CONDITIONS[condition].kind == "shuffled":
            nulls[condition] = permutation_means(tables, said.groups, permutations=permutations, seed=seed)
    return Outcome(
        readings.subject, credit, luck, nulls, ranks, np.asarray(readings.stimuli), true,
        np.full(len(shown), readings.subject),
    )  # fmt: skip


def credit_tables(said: Said, task: Task, shown: np.ndarray, true: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Per metric what each reading (row) earns for each possible truth (column), and every trial's own column."""
    out = []
    for metric in METRICS.values():
        scores = said.gain if metric.gain else said.likelihood
        if metric.ranks is None:
            out.append((match_credit(said.texts, task.accepted), shown))
        elif scores is None:
            out.append((np.full((len(said.texts), len(task.candidates)), np.nan), true))
        else:
            out.append((rank_credit(scores, metric.weights(len(task.candidates))), true))
    return out


def mean_rows(tables: Sequence[np.ndarray], groups: Groups | None) -> tuple[np.ndarray, list[np.ndarray]]:
    """The row of each trial (B,) in tables (R, K), or in their means over the rows of a group."""
    if groups is None:
        return np.arange(len(tables[0])), list(tables)
    names, place = np.unique(groups[1], return_inverse=True)
    return place, [np.stack([table[groups[0] == name].mean(0) for name in names]) for table in tables]


def pool(outcomes: Sequence[Outcome]) -> Outcome:
    """Everybody together, as far as a condition was measured in everybody; each person counts alike."""

    def everywhere(parts: Sequence[Mapping[str, np.ndarray]]) -> list[str]:
        return [name for name in parts[0] if all(name in part for part in parts)]

    joined = {
        kind: {c: np.concatenate([part[c] for part in parts]) for c in everywhere(parts)}
        for kind, parts in (
            ("credit", [o.credit for o in outcomes]),
            ("luck", [o.luck for o in outcomes]),
            ("ranks", [o.ranks for o in outcomes]),
        )
    }
    parts = [o.nulls for o in outcomes]
    nulls = {c: np.mean([part[c] for part in parts], axis=0) for c in everywhere(parts)}
    stimuli, answers, people = (
        np.concatenate([getattr(o, name) for o in outcomes]) for name in ("stimuli", "answers", "people")
    )
    return Outcome(ALL, stimuli=stimuli, answers=answers, people=people, nulls=nulls, **joined)


def tabulate(outcome: Outcome, candidates: int, *, resamples: int = RESAMPLES, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of the report, one per condition and metric: value, interval, n, chance; `difference` is brain minus the condition.

    p_value: one-sided, that the brain is above the condition. people_p: likewise, in people at large.
    """
    brain, names = outcome.credit["brain"], list(outcome.credit)
    values = np.stack([outcome.credit[c] for c in names], 1)  # (B, conditions, M)
    both = np.concatenate([values, brain[:, None] - values], 1).reshape(len(brain), -1)
    low, high = (
        side.reshape(2, len(names), len(METRICS))
        for side in bootstrap_interval(both, outcome.answers, outcome.people, resamples=resamples, seed=seed)
    )
    persons = len(np.unique(outcome.people))
    rows = []
    for n, condition in enumerate(names):
        own = outcome.credit[condition]
        p = tested(outcome, condition, seed)
        wide = people_p(people_means(brain - own, outcome.people)) if persons > 1 else None
        mean, apart = outcome.mean(own), outcome.mean(brain - own)
        for m, (name, metric) in enumerate(METRICS.items()):
            row: dict[str, Any] = {"subject": outcome.subject, "condition": condition, "metric": name}
            row |= {"value": number(mean[m]), "ci_low": number(low[0, n, m]), "ci_high": number(high[0, n, m])}
            row |= {"n": len(brain), "n_stimuli": len(np.unique(outcome.stimuli)), "n_people": persons}
            row["chance"] = metric.chance(candidates)
            if condition != "brain" and row["value"] is not None and np.isfinite(apart[m]):
                row |= {
                    "difference": apart[m].item(),
                    "difference_low": low[1, n, m].item(),
                    "difference_high": high[1, n, m].item(),
                }
            if p is not None and np.isfinite(p[m]) and row["value"] is not None:
                row["p_value"] = float(p[m])
            if wide is not None and condition != "brain" and np.isfinite(wide[m]) and row["value"] is not None:
                row["people_p"] = float(wide[m])
            if name == "identification_top1" and condition in outcome.ranks:
                places = outcome.ranks[condition][:, None]
                row |= {"mean_rank": outcome.mean(places)[0].item(), "mean_rank_chance": (candidates + 1) / 2}
            rows.append(row)
    return rows


def number(value: float) -> float | None:
    """A number for JSON: None where there is none."""
    return float(value) if np.isfinite(value) else None


def tested(outcome: Outcome, condition: str, seed: int) -> np.ndarray | None:
    """One-sided p-values (M,) that the brain is above a condition; of the brain itself, that it is above shuffled scans.

    Shuffled: where the brain's mean stands among means under permutations of the scans. Blind: the same, but that the null
    is moved up to the condition where this is better than shuffled scans. What reads the trials itself: random signs of
    the answers' differences, each reader counted above what its own other readings earn, which removes its preferences.
    References are no controls: they know a part of the truth.
    """
    brain, kind = outcome.mean(outcome.credit["brain"]), CONDITIONS[condition].kind
    if kind == "brain":
        return p_value(brain, outcome.nulls["shuffled"])
    if kind == "shuffled":
        return p_value(brain, outcome.nulls[condition])
    if kind == "reference":
        return None
    if kind == "blind":
        short = outcome.mean(outcome.credit[condition]) - outcome.mean(outcome.credit["shuffled"])
        return np.where(
            np.isfinite(short), p_value(brain, outcome.nulls["shuffled"] + np.maximum(np.nan_to_num(short), 0)), np.nan
        )
    apart, usable = excess(outcome, condition)
    return np.where(
        usable, p_value(apart.sum(0), sign_flips(apart, outcome.answers, permutations=PERMUTATIONS, seed=seed)), np.nan
    )


def excess(outcome: Outcome, condition: str) -> tuple[np.ndarray, np.ndarray]:
    """(B, M): the brain's credit above its own luck, minus the condition's above its own, each person weighing alike; and
    (M,) where this can be told."""
    brain, own = (outcome.credit[c] - outcome.luck[c] for c in ("brain", condition))
    persons, sizes = np.unique(outcome.people, return_counts=True)
    apart = (brain - own) / sizes[np.searchsorted(persons, outcome.people)][:, None]
    return np.nan_to_num(apart), np.isfinite(apart).all(0)
