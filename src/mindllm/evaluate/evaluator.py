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
from mindllm.evaluate.ablation import ablation
from mindllm.evaluate.conditions import ALL
from mindllm.evaluate.confusion import confusion
from mindllm.evaluate.evaluation_set import Task, choose_task
from mindllm.evaluate.noise_ceiling import noise_ceiling
from mindllm.evaluate.predict import ORACLE, Gathered, gather
from mindllm.evaluate.protocols import protocols
from mindllm.evaluate.records import describe, predict
from mindllm.evaluate.results import Report, Said
from mindllm.evaluate.score import judge, pool, tabulate
from mindllm.evaluate.text_scores import text_scores
from mindllm.metrics.calibration import calibration
from mindllm.metrics.captions import no_java
from mindllm.model.modeling import MindLLM
from mindllm.report.summary import verdict
from mindllm.utils.errors import InputError
from mindllm.utils.progress import bars, waiting
from mindllm.utils.seeds import own_seed

Controls = Literal["standard", "full"]
PAIRS = "shuffled-pairs"  # the folder of the model trained on them, within the report's


def evaluate(
    model: MindLLM,
    store: Store,
    subjects: Sequence[str] | None = None,
    out: str | Path | None = None,
    *,
    split: str | None = None,
    question: str | None = None,
    controls: Controls = "standard",
    batch_size: int = 16,
    seed: int = 0,
    progress: Progress | bool | None = None,
    model_name: str | None = None,
    pictures: bool = True,
    **options: Any,
) -> Report:
    """Let the model read trials it was not trained on, score it beside its controls, and write the report to `out`.

    Trials: the split `test`; of subjects never trained on that have none, all. `split` names another.  question: None takes
    the data set's own.  controls: `full` also trains the model anew on shuffled pairs, into `out`, and leaves out regions.
    progress: None draws bars, False none, or one to add to.  options: go to the model's `generate`.
    Raises InputError where there is nothing fair to evaluate, a stimulus has no answer, or the model says NaN.
    """
    started, begun = datetime.now(UTC), time.monotonic()
    check_controls(controls)
    if controls == "full" and out is None:
        raise InputError("controls=full trains a model on shuffled pairs; give a folder `out` for it.")
    task = choose_task(store, model.card, subjects, split, question, model.ask()[0]["content"])
    folder = Path(str(out)) / PAIRS if controls == "full" else None
    with as_in_use(model), choose_bars(progress) as shown:
        found = gather(
            model, store, task, pairs_folder=folder, batch_size=batch_size, options=options, seed=seed, progress=shown
        )
        report = measure(store, task, found, controls, seed, shown)
    meta = describe(model, store, task, found.people, model_name, seed, batch_size, options) | report.meta
    meta |= {"time": started.isoformat(timespec="seconds"), "seconds": round(time.monotonic() - begun, 1)}
    meta["verdict"] = verdict(report.rows, report.texts, meta)
    report = replace(report, meta=meta)
    if out is not None:
        if pictures:
            from mindllm.report.brain_figures import draw  # nilearn and matplotlib are slow to import

            drawn, regions = draw(model, [store.space(subject) for subject in task.rows], report.content)
            report.pictures.update(drawn)
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


def measure(
    store: Store, task: Task, found: Gathered, controls: Controls, seed: int, progress: Progress | None
) -> Report:
    """Score what was said, and read more where a score needs it; `meta` holds these findings alone."""
    card, people = found.reader.model.card, found.people
    outcomes = [judge(r, task, seed=own_seed(seed, r.subject)) for r in people]
    rows = [row for o in [*outcomes, pool(outcomes)] for row in tabulate(o, len(task.candidates), seed=seed)]
    without_java = no_java()
    with waiting(progress, "text scores"):
        texts = for_all(text_scores(people, task, seed)) if without_java is None else []
    parts = protocols(card, store, task, found, rows, texts, seed, progress)
    predictions = [p for r in people for p in predict(store, task, found.reader, r)]
    meta = {
        "oracle_clusters": ORACLE,
        "missing": found.missing,
        "no_text_scores": without_java,
        "controls": controls,
        "noise_ceiling": {s: ceiling for s in task.rows if (ceiling := noise_ceiling(store, task, s))},
        "calibration": calibration(predictions),
        "ablation": ablation(found.reader, store, task, people, seed, progress) if controls == "full" else None,
        "confusion": confusion(store, task, people, found.meanings, seed),
    }
    return Report(rows, texts, parts, predictions, meta, matrices(found))


def matrices(found: Gathered) -> dict[str, np.ndarray]:
    """The likelihoods that are kept: of each person's trials, and without a brain."""

    def kept(said: Said) -> np.ndarray:
        assert said.likelihood is not None
        return said.likelihood.astype(np.float32)

    return {r.subject: kept(r.said["brain"]) for r in found.people} | {"no_brain": kept(found.reader.no_brain)[0]}


def for_all(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows, with those of a single person standing for everybody too."""
    return rows if any(row["subject"] == ALL for row in rows) else [*rows, *({**row, "subject": ALL} for row in rows)]


@contextmanager
def choose_bars(progress: Progress | bool | None) -> Iterator[Progress | None]:
    """The bars to draw on: those given, own ones, or none."""
    if isinstance(progress, Progress):
        yield progress
    elif progress is False:
        yield None
    else:
        with bars(Console(stderr=True), transient=True) as own:
            yield own
