"""Evaluate a model on a store: what it reads from scans beside its controls, as a table, JSON and one HTML page."""

import json
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Group
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from mindllm.data.store import Store
from mindllm.errors import InputError
from mindllm.evaluate.controls import ALL, Blind, Readings, judge, pool, tabulate
from mindllm.evaluate.page import as_html, as_markdown, as_table
from mindllm.evaluate.record import PERMUTATIONS, RESAMPLES, describe, predict
from mindllm.evaluate.task import Task, choose_task
from mindllm.evaluate.verdict import seen_sentence, verdict
from mindllm.files import whole_file, write_json
from mindllm.model import MindLLM


@dataclass(frozen=True)
class Report:
    """`rows` (subject x condition x metric), what was said (`predictions`, one per trial), and how it was measured (`meta`)."""

    rows: list[dict[str, Any]]
    predictions: list[dict[str, Any]]
    meta: dict[str, Any]
    likelihoods: dict[str, Any]  # arrays: per subject (B, C), and `no_brain` (C,)
    pictures: dict[str, bytes] = field(default_factory=dict)

    def value(self, metric: str, condition: str = "brain", subject: str = ALL) -> float | None:
        """One value of the table."""
        return next(
            r["value"] for r in self.rows if (r["metric"], r["condition"], r["subject"]) == (metric, condition, subject)
        )

    def table(self) -> Group:
        """The verdict and the scores beside their controls, to print with rich."""
        return as_table(self.rows, self.meta)

    def write(self, out: str | Path) -> None:
        """Write report.json, .md and .html, pictures, predictions.jsonl and likelihoods.npz into the folder `out`."""
        out = Path(out)
        with whole_file(out / "predictions.jsonl") as path:
            path.write_text(
                "".join(json.dumps(p, ensure_ascii=False) + "\n" for p in self.predictions), encoding="utf-8"
            )
        with whole_file(out / "likelihoods.npz") as path:
            np.savez_compressed(path, candidates=np.array(self.meta["candidates"]), **self.likelihoods)
        for name, picture in self.pictures.items():
            kind, whose, theme = name.split("|")
            if theme == "light":
                with whole_file(out / "pictures" / f"{kind}-{whose}.png") as path:
                    path.write_bytes(picture)
        with whole_file(out / "report.md") as path:
            path.write_text(as_markdown(self.rows, self.predictions, self.meta), encoding="utf-8")
        with whole_file(out / "report.html") as path:
            path.write_text(as_html(self.rows, self.predictions, self.meta, self.pictures), encoding="utf-8")
        write_json(out / "report.json", {"verdict": self.meta["verdict"], "rows": self.rows, "meta": self.meta})


def evaluate(
    model: MindLLM,
    store: Store,
    subjects: Sequence[str] | None = None,
    out: str | Path | None = None,
    *,
    split: str | None = None,
    question: str | None = None,
    batch_size: int = 16,
    seed: int = 0,
    progress: Progress | bool | None = None,
    model_name: str | None = None,
    pictures: bool = True,
    **options: Any,
) -> Report:
    """Let the model read trials it was not trained on, score it beside its controls, and write the report to `out`.

    Trials: the split `test`; of subjects never trained on that have none, all. `split` names another.  question: None takes
    the data set's own.  progress: None draws a bar, False none, or one to add to.  options: go to the model's `generate`.
    Raises InputError where there is nothing fair to evaluate, a stimulus has no answer, or the model says NaN.
    """
    started, begun = datetime.now(UTC), time.monotonic()
    task = choose_task(store, model.card, subjects, split, question, model.ask()[0]["content"])
    training = model.training
    model.eval()
    try:
        with bar(progress, sum(map(len, task.rows.values()))) as advance:
            blind = read_blind(model, task, options)
            readings = [
                read_subject(model, store, task, subject, batch_size, options, advance) for subject in task.rows
            ]
    finally:
        model.train(training)
    outcomes = [judge(r, task, blind, permutations=PERMUTATIONS, seed=own_seed(seed, r.subject)) for r in readings]
    rows = [
        row
        for o in [*outcomes, pool(outcomes)]
        for row in tabulate(o, len(task.candidates), resamples=RESAMPLES, seed=seed)
    ]
    predictions = [p for r in readings for p in predict(store, task, r, blind)]
    meta = describe(model, store, task, blind, model_name, seed, batch_size, options)
    meta |= {"time": started.isoformat(timespec="seconds"), "seconds": round(time.monotonic() - begun, 1)}
    meta["verdict"] = [*verdict(rows, meta), seen_sentence(meta)]
    matrices = {r.subject: r.likelihood.astype(np.float32) for r in readings} | {
        "no_brain": blind.likelihood.astype(np.float32)
    }
    report = Report(rows, predictions, meta, matrices)
    if out is not None:
        if pictures:
            from mindllm.evaluate.pictures import draw  # nilearn and matplotlib are slow to import

            drawn, regions = draw(model, [store.space(subject) for subject in task.rows], rows)
            report.pictures.update(drawn)
            meta["attention_by_region"] = regions
        report.write(out)
    return report


def own_seed(seed: int, subject: str) -> list[int]:
    """A subject's own random numbers: the same whoever is evaluated beside them."""
    return [seed, zlib.crc32(subject.encode())]


def read_blind(model: MindLLM, task: Task, options: Mapping[str, Any]) -> Blind:
    """What the model says without a brain: read once, for it is the same for every trial."""
    tokens = model.no_brain[None]
    likelihood = finite(model.score(tokens, task.candidates, task.question).double().numpy(), "the mean fMRI token")[0]
    return Blind(
        likelihood, model.generate(tokens, [model.ask(task.question)], **options)[0], model.card.get("answers")
    )


def read_subject(
    model: MindLLM,
    store: Store,
    task: Task,
    subject: str,
    batch_size: int,
    options: Mapping[str, Any],
    advance: Callable[[int], None],
) -> Readings:
    """Likelihoods of all candidates and free-running texts for every evaluated trial of one subject."""
    rows, space = task.rows[subject], store.space(subject)
    likelihood, texts = [], []
    # The attention over the voxels is made once per call of encode, so many trials are encoded at once.
    for some in np.array_split(rows, range(16 * batch_size, len(rows), 16 * batch_size)):
        for tokens in model.encode(store.values(subject, some), space).split(batch_size):
            likelihood.append(model.score(tokens, task.candidates, task.question).double().numpy())
            texts += model.generate(tokens, [model.ask(task.question)] * len(tokens), **options)
            advance(len(tokens))
    stimuli = store.trials(subject)["stimulus"].to_numpy()[rows].tolist()
    assert len(texts) == len(stimuli) == sum(map(len, likelihood)), "a trial was lost"
    return Readings(subject, finite(np.concatenate(likelihood), subject), texts, stimuli)


def finite(likelihood: np.ndarray, where: str) -> np.ndarray:
    """The likelihoods, or an InputError if the model says NaN or infinity."""
    bad = int((~np.isfinite(likelihood)).any(1).sum())
    if bad:
        raise InputError(
            f"the model gives NaN or infinite likelihoods for {bad} of {len(likelihood)} trials ({where}); its training has probably diverged. Train it again, with a smaller learning rate."
        )
    return likelihood


@contextmanager
def bar(progress: Progress | bool | None, total: int) -> Iterator[Callable[[int], None]]:
    """Yield a function that is told how many trials were read; it moves a bar with the time left."""
    if isinstance(progress, Progress):
        task = progress.add_task("evaluating", total=total)
        yield lambda count: progress.advance(task, count)
    elif progress is False:
        yield lambda count: None
    else:
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("trials"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        from rich.console import Console

        with Progress(*columns, console=Console(stderr=True), transient=True) as own:
            task = own.add_task("evaluating", total=total)
            yield lambda count: own.advance(task, count)
