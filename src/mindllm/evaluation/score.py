"""Credit per trial of every condition, and how sure it is that the brain is above it.

A condition is what some reader said: likelihoods and texts, one row per trial; or rows that stand in for trials, of which
each trial earns the mean. So shuffled scans cost no further call of the model, and have no luck of the draw.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mindllm.evaluation.conditions import ALL_SUBJECTS, CONDITIONS
from mindllm.evaluation.evaluation_set import EvaluationSet
from mindllm.evaluation.results import ConditionPredictions, SubjectPredictions, TrialScores
from mindllm.metrics.exact_match import exact_match_scores
from mindllm.metrics.identification import mean_ranks, rank_scores
from mindllm.metrics.inference import (
    Groups,
    bootstrap_interval,
    group_p_value,
    p_value,
    permutation_null,
    sign_flip_null,
    subject_means,
)
from mindllm.metrics.registry import METRICS

RESAMPLES = PERMUTATIONS = 2000


def score_predictions(
    readings: SubjectPredictions,
    task: EvaluationSet,
    *,
    permutations: int = PERMUTATIONS,
    seed: int | Sequence[int] = 0,
) -> TrialScores:
    """Score one person's readings under every condition, trial by trial."""
    shown, true = task.columns(readings.stimuli)
    credit, luck, ranks, nulls = {}, {}, {}, {}
    for condition, said in readings.conditions.items():
        tables = score_tables(said, task, shown, true)
        rows, of_rows = mean_rows([table for table, _ in tables], said.groups)
        credit[condition] = np.stack(
            [t[rows, column] for t, (_, column) in zip(of_rows, tables, strict=True)], 1
        )
        if said.log_likelihoods is not None:
            places, (place,) = mean_rows([mean_ranks(said.log_likelihoods)], said.groups)
            ranks[condition] = place[places, true]
        if CONDITIONS[condition].kind in ("fmri", "trained", "baseline"):
            luck[condition] = np.stack([table.mean(0)[column] for table, column in tables], 1)
        if CONDITIONS[condition].kind == "shuffled":
            nulls[condition] = permutation_null(
                tables, said.groups, permutations=permutations, seed=seed
            )
    return TrialScores(
        readings.subject, credit, luck, nulls, ranks, np.asarray(readings.stimuli), true,
        np.full(len(shown), readings.subject),
    )  # fmt: skip


def score_tables(
    said: ConditionPredictions, task: EvaluationSet, shown: np.ndarray, true: np.ndarray
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Per metric what each reading (row) earns for each possible truth (column), and every trial's own column."""
    out = []
    for metric in METRICS.values():
        scores = said.log_likelihood_ratios if metric.uses_llr else said.log_likelihoods
        if metric.rank_weights is None:
            out.append((exact_match_scores(said.texts, task.references), shown))
        elif scores is None:
            out.append((np.full((len(said.texts), len(task.candidates)), np.nan), true))
        else:
            out.append((rank_scores(scores, metric.weights(len(task.candidates))), true))
    return out


def mean_rows(
    tables: Sequence[np.ndarray], groups: Groups | None
) -> tuple[np.ndarray, list[np.ndarray]]:
    """The row of each trial (B,) in tables (R, K), or in their means over the rows of a group."""
    if groups is None:
        return np.arange(len(tables[0])), list(tables)
    names, place = np.unique(groups[1], return_inverse=True)
    return place, [
        np.stack([table[groups[0] == name].mean(0) for name in names]) for table in tables
    ]


def pool_subjects(outcomes: Sequence[TrialScores]) -> TrialScores:
    """Everybody together, as far as a condition was measured in everybody; each person counts alike."""

    def everywhere(parts: Sequence[Mapping[str, np.ndarray]]) -> list[str]:
        return [name for name in parts[0] if all(name in part for part in parts)]

    joined = {
        kind: {c: np.concatenate([part[c] for part in parts]) for c in everywhere(parts)}
        for kind, parts in (
            ("scores", [o.scores for o in outcomes]),
            ("expected_scores", [o.expected_scores for o in outcomes]),
            ("ranks", [o.ranks for o in outcomes]),
        )
    }
    parts = [o.null_distributions for o in outcomes]
    nulls = {c: np.mean([part[c] for part in parts], axis=0) for c in everywhere(parts)}
    stimuli, answers, people = (
        np.concatenate([getattr(o, name) for o in outcomes])
        for name in ("stimuli", "target_indices", "subjects")
    )
    return TrialScores(
        ALL_SUBJECTS,
        stimuli=stimuli,
        target_indices=answers,
        subjects=people,
        null_distributions=nulls,
        **joined,
    )


def summarize_scores(
    outcome: TrialScores, candidates: int, *, resamples: int = RESAMPLES, seed: int = 0
) -> list[dict[str, Any]]:
    """Rows of the report, one per condition and metric: value, interval, n, chance; `difference` is brain minus the condition.

    p_value: one-sided, that the brain is above the condition. people_p: likewise, in people at large.
    """
    brain, names = outcome.scores["fmri"], list(outcome.scores)
    values = np.stack([outcome.scores[c] for c in names], 1)  # (B, conditions, M)
    both = np.concatenate([values, brain[:, None] - values], 1).reshape(len(brain), -1)
    low, high = (
        side.reshape(2, len(names), len(METRICS))
        for side in bootstrap_interval(
            both, outcome.target_indices, outcome.subjects, resamples=resamples, seed=seed
        )
    )
    persons = len(np.unique(outcome.subjects))
    rows = []
    for n, condition in enumerate(names):
        own = outcome.scores[condition]
        p = permutation_p_values(outcome, condition, seed)
        wide = group_p_value(subject_means(brain - own, outcome.subjects)) if persons > 1 else None
        mean, apart = outcome.mean(own), outcome.mean(brain - own)
        for m, (name, metric) in enumerate(METRICS.items()):
            row: dict[str, Any] = {
                "subject": outcome.subject,
                "condition": condition,
                "metric": name,
            }
            row |= {
                "value": number(mean[m]),
                "ci_low": number(low[0, n, m]),
                "ci_high": number(high[0, n, m]),
            }
            row |= {
                "n": len(brain),
                "n_stimuli": len(np.unique(outcome.stimuli)),
                "n_subjects": persons,
            }
            row["chance_level"] = metric.chance(candidates)
            if condition != "fmri" and row["value"] is not None and np.isfinite(apart[m]):
                row |= {
                    "difference": apart[m].item(),
                    "difference_ci_low": low[1, n, m].item(),
                    "difference_ci_high": high[1, n, m].item(),
                }
            if p is not None and np.isfinite(p[m]) and row["value"] is not None:
                row["p_value"] = float(p[m])
            if (
                wide is not None
                and condition != "fmri"
                and np.isfinite(wide[m])
                and row["value"] is not None
            ):
                row["group_p_value"] = float(wide[m])
            if name == "identification_top1" and condition in outcome.ranks:
                places = outcome.ranks[condition][:, None]
                row |= {
                    "mean_rank": outcome.mean(places)[0].item(),
                    "mean_rank_chance": (candidates + 1) / 2,
                }
            rows.append(row)
    return rows


def number(value: float) -> float | None:
    """A number for JSON: None where there is none."""
    return float(value) if np.isfinite(value) else None


def permutation_p_values(outcome: TrialScores, condition: str, seed: int) -> np.ndarray | None:
    """One-sided p-values (M,) that the brain is above a condition; of the brain itself, that it is above shuffled scans.

    Shuffled: where the brain's mean stands among means under permutations of the scans. Blind: the same, but that the null
    is moved up to the condition where this is better than shuffled scans. What reads the trials itself: random signs of
    the answers' differences, each reader counted above what its own other readings earn, which removes its preferences.
    References are no controls: they know a part of the truth.
    """
    brain, kind = outcome.mean(outcome.scores["fmri"]), CONDITIONS[condition].kind
    if kind == "fmri":
        return p_value(brain, outcome.null_distributions["shuffled_trials"])
    if kind == "shuffled":
        return p_value(brain, outcome.null_distributions[condition])
    if kind == "reference":
        return None
    if kind == "blind":
        short = outcome.mean(outcome.scores[condition]) - outcome.mean(
            outcome.scores["shuffled_trials"]
        )
        return np.where(
            np.isfinite(short),
            p_value(
                brain,
                outcome.null_distributions["shuffled_trials"] + np.maximum(np.nan_to_num(short), 0),
            ),
            np.nan,
        )
    apart, usable = centred_difference(outcome, condition)
    return np.where(
        usable,
        p_value(
            apart.sum(0),
            sign_flip_null(apart, outcome.target_indices, permutations=PERMUTATIONS, seed=seed),
        ),
        np.nan,
    )


def centred_difference(outcome: TrialScores, condition: str) -> tuple[np.ndarray, np.ndarray]:
    """(B, M): the brain's credit above its own luck, minus the condition's above its own, each person weighing alike; and
    (M,) where this can be told."""
    brain, own = (outcome.scores[c] - outcome.expected_scores[c] for c in ("fmri", condition))
    persons, sizes = np.unique(outcome.subjects, return_counts=True)
    apart = (brain - own) / sizes[np.searchsorted(persons, outcome.subjects)][:, None]
    return np.nan_to_num(apart), np.isfinite(apart).all(0)
