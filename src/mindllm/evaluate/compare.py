"""Two models on the same trials, paired: whether one reads more than the other."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mindllm.evaluate.evaluation_set import Task
from mindllm.evaluate.results import FORMAT, Readings, Said
from mindllm.evaluate.score import excess, judge, pool, tabulate
from mindllm.evaluate.text_scores import TEXT_METRICS, text_scores
from mindllm.metrics.captions import no_java
from mindllm.metrics.inference import p_value, sign_flips
from mindllm.metrics.registry import METRICS
from mindllm.utils.errors import InputError
from mindllm.utils.files import read_json
from mindllm.utils.seeds import own_seed

WHAT = "a report (made by `mindllm evaluate`)"
Key = tuple[str, int, str]


@dataclass(frozen=True)
class Kept:
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
        own = {"brain": said(a, keys, a.candidates), "other_model": said(b, keys, a.candidates)}
        own["shuffled"] = own["brain"].for_all(len(keys))
        people.append(Readings(subject, np.array([key[2] for key in keys]), own))
    task = task_of(a, people)
    pooled = pool([judge(r, task, seed=own_seed(seed, r.subject)) for r in people])
    rows = {(r["condition"], r["metric"]): r for r in tabulate(pooled, len(task.candidates), seed=seed)}
    apart = excess(pooled, "other_model")[0]
    p = p_value(np.abs(apart.sum(0)), np.abs(sign_flips(apart, pooled.answers, seed=seed)))
    out = [
        row(metric, rows["brain", metric], rows["other_model", metric]) | {"p_value": float(p[i])}
        for i, metric in enumerate(METRICS)
    ]
    if no_java() is None:
        texts = {(r["condition"], r["metric"]): r for r in text_scores(people, task, seed)}  # everybody's come last
        out += [row(metric, texts["brain", metric], texts["other_model", metric]) for metric in TEXT_METRICS]
    return {"first": a.name, "second": b.name, "people": len(people), "trials": len(a.predictions), "candidates": len(a.candidates), "seed": seed, "rows": out}  # fmt: skip


def row(metric: str, own: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """One metric of both."""
    found = {"metric": metric, "first": own["value"], "second": other["value"]}
    return found | {name: other[name] for name in ("difference", "difference_low", "difference_high")}


def load(folder: Path) -> Kept:
    """What a report folder keeps. Raises InputError if it is none, or of another version."""
    content = read_json(folder / "report.json", WHAT)
    if content.get("format") != FORMAT:
        raise InputError(
            f"{folder} has report format {content.get('format')}; this version of mindllm compares format {FORMAT}. Evaluate the model anew."
        )
    try:
        lines = (folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
        with np.load(folder / "likelihoods.npz", allow_pickle=False) as file:
            arrays = dict(file)
    except (OSError, ValueError) as error:
        raise InputError(f"{folder} lacks what a report keeps ({error}). Evaluate the model anew.") from error
    records = [json.loads(line) for line in lines]
    keys = [(r["subject"], r["trial"], r["stimulus"]) for r in records]
    likelihood: dict[Key, np.ndarray] = {}
    counts = {
        subject: sum(key[0] == subject for key in keys)
        for subject in arrays
        if subject not in ("candidates", "no_brain")
    }
    if odd := [subject for subject, count in counts.items() if count != len(arrays[subject])]:
        raise InputError(
            f"{folder}: predictions.jsonl has {counts[odd[0]]} trials of {odd[0]}, likelihoods.npz {len(arrays[odd[0]])}. One of them was changed; evaluate the model anew."
        )
    for subject in {key[0] for key in keys}:
        likelihood |= dict(zip([key for key in keys if key[0] == subject], arrays[subject].astype(float), strict=True))
    names = arrays["candidates"].tolist()
    return Kept(
        str(folder),
        dict(zip(keys, records, strict=True)),
        likelihood,
        arrays["no_brain"].astype(float),
        names,
    )


def check_same(a: Kept, b: Kept) -> None:
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


def said(kept: Kept, keys: list[Key], candidates: list[str]) -> Said:
    """What a model said of these trials, with the candidates in this order."""
    order = [kept.candidates.index(text) for text in candidates]
    likelihood = np.stack([kept.likelihood[key] for key in keys])[:, order]
    return Said(likelihood, [kept.predictions[key]["decoded"] for key in keys], kept.blind[order])


def task_of(kept: Kept, people: list[Readings]) -> Task:
    """The task as the records tell it."""
    about = {key[2]: record for key, record in kept.predictions.items()}
    stimuli = sorted(about)
    truth = np.array([kept.candidates.index(about[s]["truth"]) for s in stimuli])
    rows = {r.subject: np.arange(len(r.stimuli)) for r in people}
    return Task(
        rows, dict.fromkeys(rows, ""), stimuli, [about[s]["accepted"] for s in stimuli], kept.candidates, truth, "", ""
    )
