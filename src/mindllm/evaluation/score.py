"""Step 2: scores per trial of every condition, and how sure it is that fMRI is above it.

A condition has one row of predictions per trial; or rows that stand in for trials, of which each
trial scores the mean. So shuffled trials need no further call of the model, and do not depend on
one random draw.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mindllm.evaluation.conditions import ALL_SUBJECTS, CONDITIONS
from mindllm.evaluation.evaluation_set import EvaluationSet
from mindllm.evaluation.results import (
    ConditionPredictions,
    MetricRow,
    SubjectPredictions,
    TrialScores,
)
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

N_RESAMPLES = N_PERMUTATIONS = 2000


def score_predictions(
    predictions: SubjectPredictions,
    task: EvaluationSet,
    *,
    permutations: int = N_PERMUTATIONS,
    seed: int | Sequence[int] = 0,
) -> TrialScores:
    """Score one subject's predictions under every condition, trial by trial.

    Parameters
    ----------
    predictions, task : SubjectPredictions, EvaluationSet
        Predictions of B trials; candidates and references.
    permutations, seed : int, int or sequence of int
        Number of permutations of the null distributions, and their seed.

    Returns
    -------
    TrialScores
        Scores, and what their tests need.
    """
    stimuli, target = task.columns(predictions.stimuli)
    scores, expected, ranks, nulls = {}, {}, {}, {}
    for condition, predicted in predictions.conditions.items():
        tables = score_tables(predicted, task, stimuli, target)
        rows, means = mean_rows([table for table, _ in tables], predicted.groups)
        scores[condition] = np.stack(
            [mean[rows, column] for mean, (_, column) in zip(means, tables, strict=True)], 1
        )
        if predicted.log_likelihoods is not None:
            rank_rows, (rank_means,) = mean_rows(
                [mean_ranks(predicted.log_likelihoods)], predicted.groups
            )
            ranks[condition] = rank_means[rank_rows, target]
        if CONDITIONS[condition].kind in ("fmri", "trained", "baseline"):
            expected[condition] = np.stack([table.mean(0)[column] for table, column in tables], 1)
        if CONDITIONS[condition].kind == "shuffled":
            nulls[condition] = permutation_null(
                tables, predicted.groups, permutations=permutations, seed=seed
            )
    return TrialScores(
        subject=predictions.subject,
        scores=scores,
        expected_scores=expected,
        null_distributions=nulls,
        ranks=ranks,
        stimuli=np.asarray(predictions.stimuli),
        target_indices=target,
        subjects=np.full(len(target), predictions.subject),
    )


def score_tables(
    predictions: ConditionPredictions,
    task: EvaluationSet,
    stimuli: np.ndarray,
    target: np.ndarray,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return, per metric, the scores of each row for each possible target, and trials' columns.

    Scores are (R, K) with K stimuli or candidates; columns are (B,): `stimuli` or `target`.
    """
    tables = []
    for metric in METRICS.values():
        values = predictions.ranking_scores(metric.ranked_by)
        if metric.rank_weights is None:
            tables.append((exact_match_scores(predictions.texts, task.references), stimuli))
        elif values is None:
            shape = (len(predictions.texts), len(task.candidates))
            tables.append((np.full(shape, np.nan), target))
        else:
            tables.append((rank_scores(values, metric.weights(len(task.candidates))), target))
    return tables


def mean_rows(
    tables: Sequence[np.ndarray], groups: Groups | None
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Return the row of each trial (B,) in tables (R, K), or in their means over groups."""
    if groups is None:
        return np.arange(len(tables[0])), list(tables)
    row_groups, trial_groups = groups
    names, rows = np.unique(trial_groups, return_inverse=True)
    means = [np.stack([table[row_groups == name].mean(0) for name in names]) for table in tables]
    return rows, means


def pool_subjects(subjects: Sequence[TrialScores]) -> TrialScores:
    """Put the trials of several subjects together.

    Parameters
    ----------
    subjects : sequence of TrialScores
        One per subject.

    Returns
    -------
    TrialScores
        Of ALL_SUBJECTS, with the conditions that were measured in every subject. Each subject
        counts alike, also in the null distributions.
    """

    def common(parts: Sequence[Mapping[str, np.ndarray]]) -> list[str]:
        return [name for name in parts[0] if all(name in part for part in parts)]

    def join(parts: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
        return {c: np.concatenate([part[c] for part in parts]) for c in common(parts)}

    nulls = [s.null_distributions for s in subjects]
    return TrialScores(
        subject=ALL_SUBJECTS,
        scores=join([s.scores for s in subjects]),
        expected_scores=join([s.expected_scores for s in subjects]),
        null_distributions={c: np.mean([null[c] for null in nulls], axis=0) for c in common(nulls)},
        ranks=join([s.ranks for s in subjects]),
        stimuli=np.concatenate([s.stimuli for s in subjects]),
        target_indices=np.concatenate([s.target_indices for s in subjects]),
        subjects=np.concatenate([s.subjects for s in subjects]),
    )


@dataclass(frozen=True, slots=True)
class ConditionSummary:
    """Means, intervals and tests of one condition, each (M,); None where there is no test."""

    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    difference: np.ndarray
    difference_low: np.ndarray
    difference_high: np.ndarray
    p_values: np.ndarray | None
    group_p_values: np.ndarray | None
    mean_rank: float | None


def summarize_scores(
    scores: TrialScores, n_candidates: int, *, resamples: int = N_RESAMPLES, seed: int = 0
) -> list[MetricRow]:
    """Summarize scores as one row per condition and metric.

    Parameters
    ----------
    scores : TrialScores
        Of one subject, or of all.
    n_candidates : int
        For the chance levels.
    resamples, seed : int
        Of the bootstrap.

    Returns
    -------
    list of MetricRow
        Differences are fMRI minus the condition. Metrics that fMRI has no score of, such as those
        by evidence for a model without encoding model, have no rows.
    """
    measured = np.flatnonzero(np.isfinite(scores.scores["fmri"]).any(0)).tolist()
    return [
        metric_row(scores, condition, column, summary, n_candidates)
        for condition, summary in summarize_conditions(scores, resamples, seed).items()
        for column in measured
    ]


def summarize_conditions(
    scores: TrialScores, resamples: int, seed: int
) -> dict[str, ConditionSummary]:
    """Return means, intervals and tests of every condition; one bootstrap serves all of them."""
    fmri, names = scores.scores["fmri"], list(scores.scores)
    values = np.stack([scores.scores[c] for c in names], 1)  # (B, conditions, M)
    both = np.concatenate([values, fmri[:, None] - values], 1).reshape(len(fmri), -1)
    low, high = (
        side.reshape(2, len(names), len(METRICS))
        for side in bootstrap_interval(
            both, scores.target_indices, scores.subjects, resamples=resamples, seed=seed
        )
    )
    several = len(np.unique(scores.subjects)) > 1
    summaries = {}
    for n, condition in enumerate(names):
        difference = fmri - scores.scores[condition]
        group_p_values = None
        if several and condition != "fmri":
            group_p_values = group_p_value(subject_means(difference, scores.subjects))
        mean_rank = None
        if condition in scores.ranks:
            mean_rank = float(scores.mean(scores.ranks[condition][:, None])[0])
        summaries[condition] = ConditionSummary(
            mean=scores.mean(scores.scores[condition]),
            low=low[0, n],
            high=high[0, n],
            difference=scores.mean(difference),
            difference_low=low[1, n],
            difference_high=high[1, n],
            p_values=permutation_p_values(scores, condition, seed),
            group_p_values=group_p_values,
            mean_rank=mean_rank,
        )
    return summaries


def metric_row(
    scores: TrialScores,
    condition: str,
    column: int,
    summary: ConditionSummary,
    n_candidates: int,
) -> MetricRow:
    """Return the row of one condition and metric (a column of the scores)."""
    name, metric = list(METRICS.items())[column]
    value = finite_or_none(summary.mean[column])
    compared = (
        condition != "fmri" and value is not None and bool(np.isfinite(summary.difference[column]))
    )

    def test(p_values: np.ndarray | None) -> float | None:
        return None if p_values is None or value is None else finite_or_none(p_values[column])

    with_rank = name == "identification_top1" and summary.mean_rank is not None
    return MetricRow(
        subject=scores.subject,
        condition=condition,
        metric=name,
        value=value,
        ci_low=finite_or_none(summary.low[column]),
        ci_high=finite_or_none(summary.high[column]),
        chance_level=metric.chance(n_candidates),
        n_trials=len(scores.stimuli),
        n_subjects=len(np.unique(scores.subjects)),
        p_value=test(summary.p_values),
        group_p_value=test(summary.group_p_values),
        difference=float(summary.difference[column]) if compared else None,
        difference_ci_low=float(summary.difference_low[column]) if compared else None,
        difference_ci_high=float(summary.difference_high[column]) if compared else None,
        n_stimuli=len(np.unique(scores.stimuli)),
        mean_rank=summary.mean_rank if with_rank else None,
        mean_rank_chance=(n_candidates + 1) / 2 if with_rank else None,
    )


def finite_or_none(value: float) -> float | None:
    """Return a number as JSON can hold it: None for NaN and infinity."""
    return float(value) if np.isfinite(value) else None


def permutation_p_values(scores: TrialScores, condition: str, seed: int) -> np.ndarray | None:
    """Compute one-sided p-values that fMRI is above a condition.

    Parameters
    ----------
    scores : TrialScores
        Scores of B trials in M metrics.
    condition : str
        `fmri` itself is tested against shuffled trials.
    seed : int
        Of the sign flips.

    Returns
    -------
    ndarray of shape (M,) or None
        NaN where there is no test. Shuffled conditions: where the mean score of fMRI stands among
        means under permutations of the trials. Conditions that know nothing of the trial: the same,
        but the null distribution is moved up to the condition where this is better than shuffled
        trials. Conditions that read the trial: sign flips of the answers' differences, after each
        condition's expected score was subtracted, which removes its preferences. None for upper
        references, which know a part of the target.

    References
    ----------
    Sign flips: Winkler et al. 2014, NeuroImage 92.
    """
    fmri, kind = scores.mean(scores.scores["fmri"]), CONDITIONS[condition].kind
    if kind == "reference":
        return None
    shuffled = scores.null_distributions["shuffled_trials"]
    if kind == "fmri":
        return p_value(fmri, shuffled)
    if kind == "shuffled":
        return p_value(fmri, scores.null_distributions[condition])
    if kind == "blind":
        excess = scores.mean(scores.scores[condition]) - scores.mean(
            scores.scores["shuffled_trials"]
        )
        moved = shuffled + np.maximum(np.nan_to_num(excess), 0)
        return np.where(np.isfinite(excess), p_value(fmri, moved), np.nan)
    difference, usable = centred_difference(scores, condition)
    null = sign_flip_null(difference, scores.target_indices, permutations=N_PERMUTATIONS, seed=seed)
    return np.where(usable, p_value(difference.sum(0), null), np.nan)


def centred_difference(scores: TrialScores, condition: str) -> tuple[np.ndarray, np.ndarray]:
    """Subtract a condition from fMRI, each above its expected score.

    Parameters
    ----------
    scores : TrialScores
        Scores of B trials in M metrics.
    condition : str
        A condition with expected scores.

    Returns
    -------
    difference : ndarray of shape (B, M)
        Each subject weighs alike.
    usable : ndarray of bool, shape (M,)
        Where it is defined.
    """
    fmri, other = (scores.scores[c] - scores.expected_scores[c] for c in ("fmri", condition))
    subjects, sizes = np.unique(scores.subjects, return_counts=True)
    weights = sizes[np.searchsorted(subjects, scores.subjects)][:, None]
    difference = (fmri - other) / weights
    return np.nan_to_num(difference), np.isfinite(difference).all(0)
