"""Two results about the same trials, paired: whether one model scores more than the other."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mindllm.evaluation.evaluation_set import EvaluationSet
from mindllm.evaluation.results import (
    ConditionPredictions,
    EvaluationResult,
    MetricRow,
    SubjectPredictions,
)
from mindllm.evaluation.score import (
    centred_difference,
    pool_subjects,
    score_predictions,
    summarize_scores,
)
from mindllm.evaluation.text_scores import TEXT_METRICS, try_text_scores
from mindllm.metrics.captions import java_unavailable_reason
from mindllm.metrics.inference import p_value, sign_flip_null
from mindllm.metrics.registry import METRICS
from mindllm.utils.errors import InputError
from mindllm.utils.seeds import subject_seed

TrialKey = tuple[str, int, str]


@dataclass(frozen=True, slots=True)
class ComparisonRow:
    """One metric of both models, in [0, 1]; difference: first minus second, with its interval.

    p_value is two-sided; None: not tested (text scores).
    """

    metric: str
    first: float | None
    second: float | None
    difference: float | None
    difference_ci_low: float | None
    difference_ci_high: float | None
    p_value: float | None = None


@dataclass(frozen=True, slots=True)
class ComparisonResult:
    """Two models on the same trials; first and second are the folders of their results."""

    first: str
    second: str
    n_subjects: int
    n_trials: int
    n_candidates: int
    seed: int
    rows: tuple[ComparisonRow, ...]


def compare(first: str | Path, second: str | Path, seed: int = 0) -> ComparisonResult:
    """Compare two saved results, trial by trial.

    Parameters
    ----------
    first, second : str or Path
        Folders written by `EvaluationResult.save`.
    seed : int
        Of the bootstrap and the sign flips.

    Returns
    -------
    ComparisonResult
        Intervals are bootstraps over subjects and answers. p-values flip the signs of the answers'
        differences at random, after each model's expected score was subtracted.

    Raises
    ------
    InputError
        If the results are not about the same trials and candidates.
    """
    a, b = EvaluationResult.load(first), EvaluationResult.load(second)
    check_same_trials(a, b)
    subjects, task = paired_predictions(a, b), rebuild_evaluation_set(a)
    pooled = pool_subjects(
        [score_predictions(p, task, seed=subject_seed(seed, p.subject)) for p in subjects]
    )
    scores = summarize_scores(pooled, len(task.candidates), seed=seed)
    difference, _ = centred_difference(pooled, "other_model")
    null = sign_flip_null(difference, pooled.target_indices, seed=seed)
    p_values = p_value(np.abs(difference.sum(0)), np.abs(null))
    measured = {row.metric for row in scores}
    tested = {m: float(p) for m, p in zip(METRICS, p_values, strict=True) if m in measured}
    rows = comparison_rows(scores, list(tested), list(tested.values()))
    if java_unavailable_reason() is None:
        texts, _ = try_text_scores(subjects, task, seed)
        metrics = TEXT_METRICS if texts else ()
        rows += comparison_rows(texts, metrics, [None] * len(metrics))
    return ComparisonResult(
        first=str(first),
        second=str(second),
        n_subjects=len(subjects),
        n_trials=len(a.predictions),
        n_candidates=len(task.candidates),
        seed=seed,
        rows=tuple(rows),
    )


def comparison_rows(
    rows: Sequence[MetricRow], metrics: Sequence[str], p_values: Sequence[float | None]
) -> list[ComparisonRow]:
    """Return one row per metric; of several subjects' rows the last, which is of all subjects."""
    by_key = {(row.condition, row.metric): row for row in rows}
    return [
        ComparisonRow(
            metric=metric,
            first=by_key["fmri", metric].value,
            second=by_key["other_model", metric].value,
            difference=by_key["other_model", metric].difference,
            difference_ci_low=by_key["other_model", metric].difference_ci_low,
            difference_ci_high=by_key["other_model", metric].difference_ci_high,
            p_value=p,
        )
        for metric, p in zip(metrics, p_values, strict=True)
    ]


def trial_keys(result: EvaluationResult) -> list[TrialKey]:
    """Return subject, trial index and stimulus of every record."""
    return [(r.subject, r.trial_index, r.stimulus) for r in result.predictions]


def check_same_trials(a: EvaluationResult, b: EvaluationResult) -> None:
    """Raise InputError unless both are about the same trials and candidates."""
    keys = set(trial_keys(a)), set(trial_keys(b))
    if unmatched := sorted(keys[0] ^ keys[1]):
        subject, trial_index, _ = unmatched[0]
        raise InputError(
            f"the reports are not about the same trials: {len(unmatched)} of "
            f"{len(keys[0] | keys[1])} are in one of them alone (first: trial {trial_index} of "
            f"{subject}). Evaluate both models on the same subjects and split."
        )
    if different := sorted(set(a.run_info.candidates) ^ set(b.run_info.candidates)):
        raise InputError(
            f"the reports have other candidate answers, {len(different)} of them in one alone "
            f"(first: {different[0]!r}). Evaluate both models on the same store."
        )


def paired_predictions(a: EvaluationResult, b: EvaluationResult) -> list[SubjectPredictions]:
    """Return both models' predictions by subject, the second as `other_model`."""
    subjects = []
    for subject in sorted(a.log_likelihoods):
        keys = [key for key in trial_keys(a) if key[0] == subject]
        first = saved_predictions(a, keys, a.run_info.candidates)
        conditions = {
            "fmri": first,
            "other_model": saved_predictions(b, keys, a.run_info.candidates),
            "shuffled_trials": first.broadcast_to_trials(len(keys)),
        }
        stimuli = np.array([stimulus for _, _, stimulus in keys])
        subjects.append(SubjectPredictions(subject, stimuli, conditions))
    return subjects


def saved_predictions(
    result: EvaluationResult, keys: Sequence[TrialKey], candidates: Sequence[str]
) -> ConditionPredictions:
    """Return a model's predictions of a subject's trials, with the candidates in this order."""
    subject = keys[0][0]
    records = [r for r in result.predictions if r.subject == subject]
    row = {(r.subject, r.trial_index, r.stimulus): i for i, r in enumerate(records)}
    rows = [row[key] for key in keys]
    order = [result.run_info.candidates.index(text) for text in candidates]
    evidence = result.evidence.get(subject)
    return ConditionPredictions(
        result.log_likelihoods[subject][rows][:, order].astype(float),
        [records[i].prediction for i in rows],
        result.null_log_likelihoods[order].astype(float),
        evidence=None if evidence is None else evidence[rows][:, order].astype(float),
    )


def rebuild_evaluation_set(result: EvaluationResult) -> EvaluationSet:
    """Return the evaluation set as the records tell it."""
    by_stimulus = {record.stimulus: record for record in result.predictions}
    stimuli, candidates = sorted(by_stimulus), list(result.run_info.candidates)
    counts = {subject: len(values) for subject, values in result.log_likelihoods.items()}
    return EvaluationSet(
        trial_indices={subject: np.arange(count) for subject, count in sorted(counts.items())},
        splits=dict.fromkeys(counts, ""),
        stimuli=stimuli,
        references=[by_stimulus[s].references for s in stimuli],
        candidates=candidates,
        target_indices=np.array([candidates.index(by_stimulus[s].target) for s in stimuli]),
        question=result.run_info.question,
        question_source=result.run_info.question_source,
    )
