"""Two models on the same trials, paired: whether one reads more than the other."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mindllm.evaluation.evaluation_set import EvaluationSet
from mindllm.evaluation.results import FORMAT, ConditionPredictions, SubjectPredictions
from mindllm.evaluation.score import (
    centred_difference,
    pool_subjects,
    score_predictions,
    summarize_scores,
)
from mindllm.evaluation.text_scores import TEXT_METRICS, text_scores
from mindllm.metrics.captions import java_unavailable_reason
from mindllm.metrics.inference import p_value, sign_flip_null
from mindllm.metrics.registry import METRICS
from mindllm.utils.errors import InputError
from mindllm.utils.files import read_json
from mindllm.utils.seeds import subject_seed
from mindllm.utils.validation import check_format

WHAT = "a report (made by `mindllm evaluate`)"
Key = tuple[str, int, str]


@dataclass(frozen=True)
class SavedEvaluation:
    """What a report folder keeps: its name, one record per trial, and the likelihoods of the candidates."""

    name: str
    predictions: Mapping[Key, Mapping[str, Any]]
    likelihood: Mapping[Key, np.ndarray]
    blind: np.ndarray
    candidates: list[str]


def compare(first: str | Path, second: str | Path, seed: int = 0) -> dict[str, Any]:
    """Rows per metric: value of each, the paired difference (first minus second) with its 95 % interval, and a two-sided p.

    The interval is a bootstrap over people and answers; p draws the signs of the answers' differences at random, each
    model counted above the mean of its own other readings. Raises InputError where the reports are not of the same trials
    and candidates.
    """
    a, b = load(Path(first)), load(Path(second))
    check_same(a, b)
    people = []
    for subject in sorted({key[0] for key in a.predictions}):
        keys = [key for key in a.predictions if key[0] == subject]
        own = {"fmri": said(a, keys, a.candidates), "other_model": said(b, keys, a.candidates)}
        own["shuffled_trials"] = own["fmri"].broadcast_to_trials(len(keys))
        people.append(SubjectPredictions(subject, np.array([key[2] for key in keys]), own))
    task = task_of(a, people)
    pooled = pool_subjects(
        [score_predictions(r, task, seed=subject_seed(seed, r.subject)) for r in people]
    )
    rows = {
        (r["condition"], r["metric"]): r
        for r in summarize_scores(pooled, len(task.candidates), seed=seed)
    }
    apart = centred_difference(pooled, "other_model")[0]
    p = p_value(
        np.abs(apart.sum(0)), np.abs(sign_flip_null(apart, pooled.target_indices, seed=seed))
    )
    out = [
        row(metric, rows["fmri", metric], rows["other_model", metric]) | {"p_value": float(p[i])}
        for i, metric in enumerate(METRICS)
    ]
    if java_unavailable_reason() is None:
        texts = {
            (r["condition"], r["metric"]): r for r in text_scores(people, task, seed)
        }  # everybody's come last
        out += [
            row(metric, texts["fmri", metric], texts["other_model", metric])
            for metric in TEXT_METRICS
        ]
    return {"first": a.name, "second": b.name, "people": len(people), "trials": len(a.predictions), "candidates": len(a.candidates), "seed": seed, "rows": out}  # fmt: skip


def row(metric: str, own: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """One metric of both."""
    found = {"metric": metric, "first": own["value"], "second": other["value"]}
    return found | {
        name: other[name] for name in ("difference", "difference_ci_low", "difference_ci_high")
    }


def load(folder: Path) -> SavedEvaluation:
    """What a report folder keeps. Raises InputError if it is none, or of another version."""
    content = read_json(folder / "report.json", WHAT)
    check_format(folder, "report", content.get("format"), FORMAT, "Evaluate the model anew.")
    try:
        lines = (folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
        with np.load(folder / "likelihoods.npz", allow_pickle=False) as file:
            arrays = dict(file)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{folder} lacks what a report keeps ({error}). Evaluate the model anew."
        ) from error
    records = [json.loads(line) for line in lines]
    keys = [(r["subject"], r["trial_index"], r["stimulus"]) for r in records]
    likelihood: dict[Key, np.ndarray] = {}
    counts = {
        subject: sum(key[0] == subject for key in keys)
        for subject in arrays
        if subject not in ("candidates", "null_tokens")
    }
    if odd := [subject for subject, count in counts.items() if count != len(arrays[subject])]:
        raise InputError(
            f"{folder}: predictions.jsonl has {counts[odd[0]]} trials of {odd[0]}, likelihoods.npz {len(arrays[odd[0]])}. One of them was changed; evaluate the model anew."
        )
    for subject in {key[0] for key in keys}:
        likelihood |= dict(
            zip(
                [key for key in keys if key[0] == subject],
                arrays[subject].astype(float),
                strict=True,
            )
        )
    names = arrays["candidates"].tolist()
    return SavedEvaluation(
        str(folder),
        dict(zip(keys, records, strict=True)),
        likelihood,
        arrays["null_tokens"].astype(float),
        names,
    )


def check_same(a: SavedEvaluation, b: SavedEvaluation) -> None:
    """Raise InputError unless both are about the same trials and candidates."""
    apart = a.predictions.keys() ^ b.predictions.keys()
    if apart:
        first = sorted(apart)[0]
        raise InputError(
            f"the reports are not about the same trials: {len(apart)} of {len({*a.predictions, *b.predictions})} are in one of them alone (first: trial {first[1]} of {first[0]}). Evaluate both models on the same people and split."
        )
    differ = sorted(set(a.candidates) ^ set(b.candidates))
    if differ:
        raise InputError(
            f"the reports have other candidate answers, {len(differ)} of them in one alone (first: {differ[0]!r}). Evaluate both models on the same store."
        )


def said(kept: SavedEvaluation, keys: list[Key], candidates: list[str]) -> ConditionPredictions:
    """What a model said of these trials, with the candidates in this order."""
    order = [kept.candidates.index(text) for text in candidates]
    likelihood = np.stack([kept.likelihood[key] for key in keys])[:, order]
    return ConditionPredictions(
        likelihood, [kept.predictions[key]["decoded"] for key in keys], kept.blind[order]
    )


def task_of(kept: SavedEvaluation, people: list[SubjectPredictions]) -> EvaluationSet:
    """The task as the records tell it."""
    about = {key[2]: record for key, record in kept.predictions.items()}
    stimuli = sorted(about)
    truth = np.array([kept.candidates.index(about[s]["truth"]) for s in stimuli])
    rows = {r.subject: np.arange(len(r.stimuli)) for r in people}
    return EvaluationSet(
        rows,
        dict.fromkeys(rows, ""),
        stimuli,
        [about[s]["accepted"] for s in stimuli],
        kept.candidates,
        truth,
        "",
        "",
    )
