"""Evaluate a model on a store: what it reads from scans beside its controls, as tables, JSON and one HTML page."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from rich.console import Console
from rich.progress import Progress

from mindllm.data.store import Store
from mindllm.evaluation.ablation import ablation
from mindllm.evaluation.conditions import ALL_SUBJECTS
from mindllm.evaluation.confusion import confusion
from mindllm.evaluation.evaluation_set import EvaluationSet, build_evaluation_set
from mindllm.evaluation.legacy import DictResult
from mindllm.evaluation.noise_ceiling import noise_ceiling
from mindllm.evaluation.predict import N_ORACLE_CLUSTERS, Predictions, predict_conditions
from mindllm.evaluation.protocols import protocols
from mindllm.evaluation.records import describe_run, trial_records
from mindllm.evaluation.results import ConditionPredictions
from mindllm.evaluation.score import pool_subjects, score_predictions, summarize_scores
from mindllm.evaluation.text_scores import text_scores
from mindllm.metrics.calibration import calibration
from mindllm.metrics.captions import java_unavailable_reason
from mindllm.model.modeling import MindLLM
from mindllm.report.summary import summarize_findings
from mindllm.utils.errors import InputError
from mindllm.utils.progress import make_progress, spinner
from mindllm.utils.seeds import subject_seed

Controls = Literal["default", "all"]
PAIRS = "shuffled-pairs"  # the folder of the model trained on them, within the report's


def evaluate(
    model: MindLLM,
    store: Store,
    subjects: Sequence[str] | None = None,
    out: str | Path | None = None,
    *,
    split: str | None = None,
    question: str | None = None,
    controls: Controls = "default",
    batch_size: int = 16,
    seed: int = 0,
    progress: Progress | bool | None = None,
    model_name: str | None = None,
    pictures: bool = True,
    **options: Any,
) -> DictResult:
    """Let the model read trials it was not trained on, score it beside its controls, and write the report to `out`.

    Trials: the split `test`; of subjects never trained on that have none, all. `split` names another.  question: None takes
    the data set's own.  controls: `full` also trains the model anew on shuffled pairs, into `out`, and leaves out regions.
    progress: None draws bars, False none, or one to add to.  options: go to the model's `generate`.
    Raises InputError where there is nothing fair to evaluate, a stimulus has no answer, or the model says NaN.
    """
    started, begun = datetime.now(UTC), time.monotonic()
    check_controls(controls)
    if controls == "all" and out is None:
        raise InputError(
            "controls=full trains a model on shuffled pairs; give a folder `out` for it."
        )
    task = build_evaluation_set(
        store, model.model_card, subjects, split, question, model.build_conversation()[0]["content"]
    )
    folder = Path(str(out)) / PAIRS if controls == "all" else None
    with as_in_use(model), choose_bars(progress) as shown:
        found = predict_conditions(
            model,
            store,
            task,
            pairs_folder=folder,
            batch_size=batch_size,
            options=options,
            seed=seed,
            progress=shown,
        )
        report = score_all(store, task, found, controls, seed, shown)
    meta = (
        describe_run(model, store, task, found.subjects, model_name, seed, batch_size, options)
        | report.meta
    )
    meta |= {
        "time": started.isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - begun, 1),
    }
    meta["verdict"] = summarize_findings(report.rows, report.text_scores, meta)
    report = replace(report, meta=meta)
    if out is not None:
        if pictures:
            from mindllm.report.brain_figures import (
                draw_figures,  # nilearn and matplotlib are slow to import
            )

            drawn, regions = draw_figures(
                model, [store.masker(subject) for subject in task.trial_indices], report.content
            )
            report.figures.update(drawn)
            meta["attention_by_region"] = regions
        report.write(out)
    return report


def check_controls(controls: str) -> None:
    """Raise InputError unless there are such controls; a command asks before it loads the model."""
    if controls not in get_args(Controls):
        raise InputError(f"controls={controls!r}: expected {' or '.join(get_args(Controls))}.")


@contextmanager
def as_in_use(model: MindLLM) -> Iterator[None]:
    """Without dropout, until the block ends."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def score_all(
    store: Store,
    task: EvaluationSet,
    found: Predictions,
    controls: Controls,
    seed: int,
    progress: Progress | None,
) -> DictResult:
    """Score what was said, and read more where a score needs it; `meta` holds these findings alone."""
    card, people = found.predictor.model.model_card, found.subjects
    outcomes = [score_predictions(r, task, seed=subject_seed(seed, r.subject)) for r in people]
    rows = [
        row
        for o in [*outcomes, pool_subjects(outcomes)]
        for row in summarize_scores(o, len(task.candidates), seed=seed)
    ]
    without_java = java_unavailable_reason()
    with spinner(progress, "text scores"):
        texts = for_all(text_scores(people, task, seed)) if without_java is None else []
    parts = protocols(card, store, task, found, rows, texts, seed, progress)
    predictions = [p for r in people for p in trial_records(store, task, found.predictor, r)]
    meta = {
        "oracle_clusters": N_ORACLE_CLUSTERS,
        "missing": found.skipped_conditions,
        "no_text_scores": without_java,
        "controls": controls,
        "noise_ceiling": {
            s: ceiling for s in task.trial_indices if (ceiling := noise_ceiling(store, task, s))
        },
        "calibration": calibration(predictions),
        "ablation": ablation(found.predictor, store, task, people, seed, progress)
        if controls == "all"
        else None,
        "confusion": confusion(store, task, people, found.answer_embeddings, seed),
    }
    return DictResult(rows, texts, parts, predictions, meta, matrices(found))


def matrices(found: Predictions) -> dict[str, np.ndarray]:
    """The likelihoods that are kept: of each person's trials, and without a brain."""

    def kept(said: ConditionPredictions) -> np.ndarray:
        assert said.log_likelihoods is not None
        return said.log_likelihoods.astype(np.float32)

    return {r.subject: kept(r.conditions["fmri"]) for r in found.subjects} | {
        "null_tokens": kept(found.predictor.null_predictions)[0]
    }


def for_all(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows, with those of a single person standing for everybody too."""
    return (
        rows
        if any(row["subject"] == ALL_SUBJECTS for row in rows)
        else [*rows, *({**row, "subject": ALL_SUBJECTS} for row in rows)]
    )


@contextmanager
def choose_bars(progress: Progress | bool | None) -> Iterator[Progress | None]:
    """The bars to draw on: those given, own ones, or none."""
    if isinstance(progress, Progress):
        yield progress
    elif progress is False:
        yield None
    else:
        with make_progress(Console(stderr=True), transient=True) as own:
            yield own
