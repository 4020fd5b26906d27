"""The whole road in a few minutes: simulate people, train on all but one, decode that one, and print the controls."""

import json
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from mindllm.data.store import Store
from mindllm.datasets.bids import BIDSReader
from mindllm.evaluation.evaluator import evaluate
from mindllm.evaluation.legacy import DictResult
from mindllm.model.modeling import MindLLM
from mindllm.simulate.configuration import SimulateConfig
from mindllm.simulate.simulator import simulate, summary
from mindllm.training.configuration import StageConfig, TrainConfig
from mindllm.training.trainer import train

SCENES = SimulateConfig(train_stimuli=40, val_stimuli=8, test_stimuli=40, n_repetitions=3)
# Shorter than the defaults: what two CPU cores do in a few minutes.
TRAINING = TrainConfig(
    alignment=StageConfig(max_steps=120, batch_size=480),
    instruction_tuning=StageConfig(max_steps=60, batch_size=16, learning_rate=1e-3),
)
logger = logging.getLogger(__name__)


def demo(
    out: str | Path,
    console: Console,
    make_progress: Callable[[], Progress],
    n_subjects: int = 8,
    seed: int = 0,
    llm: str | None = None,
) -> DictResult:
    """Simulate, prepare, train, decode and evaluate in the folder `out`. A step that is already done is not done again."""
    out = Path(out)
    console.rule("1/4  simulate people with real anatomy and a planted code (about 15 s)")
    if not (out / "bids").exists():
        simulate(
            out / "bids",
            SCENES.model_copy(update={"n_subjects": n_subjects, "seed": seed}),
            progress=lambda line: console.print(f"[dim]{line}[/dim]"),
        )
    console.print(summary(out / "bids"))

    console.rule("2/4  prepare: NIfTI and tables into a store (about 20 s)")
    if not (out / "store").exists():
        with make_progress() as progress:
            BIDSReader(out / "bids").prepare(out / "store", progress=progress)
    store = Store(out / "store")
    *trained, left_out = store.subjects

    console.rule(
        f"3/4  train on {trained[0]} to {trained[-1]}; {left_out} is left out (about 5 min on two cores)"
    )
    config = TRAINING.model_copy(update={"seed": seed, "language_model": llm})
    with make_progress() as progress:
        train(store, out / "model", config, subjects=trained, resume=True, progress=progress)

    console.rule(
        f"4/4  decode {left_out}, whom the model has never met, seeing what the others saw (about 4 min)"
    )
    with make_progress() as progress:
        model = MindLLM.from_pretrained(out / "model", dtype=config.dtype)
        report = evaluate(
            model,
            store,
            [left_out],
            out / "report",
            split="train",
            seed=seed,
            progress=progress,
            model_name=str(out / "model"),
        )
    console.print(prediction_table(report, seed))
    console.print(report.table())
    truth = json.loads((out / "bids" / "truth.json").read_text(encoding="utf-8"))
    ceiling = truth["people"][left_out]["identification"]["unseen_person_single_trial"]
    found = report.value("identification_top1")
    console.print(
        f"Known from what was planted: the best linear observer who has never met {left_out} would name {ceiling:.0%} of single trials "
        f"among {len(report.meta['candidates'])} such scenes; this model names {found:.0%}. For scenes that nobody was shown "
        f"in training: mindllm evaluate {out / 'model'} {out / 'store'} --subjects {left_out} --out {out / 'new-scenes'}"
    )
    console.print(f"report: {out / 'report' / 'report.html'}")
    return report


def prediction_table(report: DictResult, seed: int, count: int = 12) -> Table:
    """True and decoded captions of some trials, drawn at random: not the best ones."""
    table = Table(
        "true",
        "decoded",
        title=f"{count} of {len(report.predictions)} trials, drawn at random",
        title_justify="left",
    )
    drawn = np.random.default_rng(seed).choice(
        len(report.predictions), min(count, len(report.predictions)), replace=False
    )
    for i in sorted(drawn):
        table.add_row(report.predictions[i]["truth"], report.predictions[i]["decoded"])
    return table
