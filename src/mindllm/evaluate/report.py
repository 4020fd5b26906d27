"""Evaluate a model on a store: what it reads from scans beside its controls, as tables, JSON and one HTML page."""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from rich.console import Console, Group
from rich.progress import Progress

from mindllm.data.store import Store
from mindllm.errors import InputError
from mindllm.evaluate.ablation import ablation
from mindllm.evaluate.categories import confusion
from mindllm.evaluate.ceiling import noise_ceiling
from mindllm.evaluate.conditions import ALL
from mindllm.evaluate.controls import Said, judge, pool, tabulate
from mindllm.evaluate.evidence import calibration
from mindllm.evaluate.gather import ORACLE, Gathered, gather, own_seed
from mindllm.evaluate.page import as_html, as_markdown, as_table
from mindllm.evaluate.protocols import protocols
from mindllm.evaluate.record import describe, predict
from mindllm.evaluate.task import Task, choose_task
from mindllm.evaluate.texts import text_scores
from mindllm.evaluate.verdict import verdict
from mindllm.files import whole_file, write_json
from mindllm.model import MindLLM
from mindllm.progress import bars, waiting
from mindllm.score.captions import no_java

FORMAT = 2
Controls = Literal["standard", "full"]
PAIRS = "shuffled-pairs"  # the folder of the model trained on them, within the report's


@dataclass(frozen=True)
class Report:
    """`rows` (subject x condition x metric), `texts` (likewise, the field's text scores), `protocols`, what was said
    (`predictions`, one per trial), and how it was measured (`meta`)."""

    rows: list[dict[str, Any]]
    texts: list[dict[str, Any]]
    protocols: list[dict[str, Any]]
    predictions: list[dict[str, Any]]
    meta: dict[str, Any]
    likelihoods: dict[str, Any]  # arrays: per subject (B, C), and `no_brain` (C,)
    pictures: dict[str, bytes] = field(default_factory=dict)

    def value(self, metric: str, condition: str = "brain", subject: str = ALL) -> float | None:
        """One value of the table; None where the condition was not measured."""
        keys = (metric, condition, subject)
        return next((r["value"] for r in self.rows if (r["metric"], r["condition"], r["subject"]) == keys), None)

    @property
    def content(self) -> dict[str, Any]:
        """What report.json holds."""
        return {
            "format": FORMAT, "verdict": self.meta["verdict"], "rows": self.rows, "texts": self.texts,
            "protocols": self.protocols, "meta": self.meta,
        }  # fmt: skip

    def table(self) -> Group:
        """The verdict and the scores beside their controls, to print with rich."""
        return as_table(self.content, self.predictions)

    def write(self, out: str | Path) -> None:
        """Write report.json, .md and .html, pictures, predictions.jsonl and likelihoods.npz into the folder `out`."""
        out = Path(out)
        with whole_file(out / "predictions.jsonl") as path:
            lines = (json.dumps(p, ensure_ascii=False) + "\n" for p in self.predictions)
            path.write_text("".join(lines), encoding="utf-8")
        with whole_file(out / "likelihoods.npz") as path:
            np.savez_compressed(path, candidates=np.array(self.meta["candidates"]), **self.likelihoods)
        for name, picture in self.pictures.items():
            kind, whose, theme = name.split("|")
            if theme == "light":
                with whole_file(out / "pictures" / f"{kind}-{whose}.png") as path:
                    path.write_bytes(picture)
        with whole_file(out / "report.md") as path:
            path.write_text(as_markdown(self.content, self.predictions, self.pictures), encoding="utf-8")
        with whole_file(out / "report.html") as path:
            path.write_text(as_html(self.content, self.predictions, self.pictures), encoding="utf-8")
        write_json(out / "report.json", self.content)


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
            from mindllm.evaluate.pictures import draw  # nilearn and matplotlib are slow to import

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
