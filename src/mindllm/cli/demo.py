"""The whole pipeline in minutes: simulate, prepare, train, evaluate a left-out subject."""

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
from mindllm.evaluation.results import EvaluationResult
from mindllm.model.modeling import MindLLM
from mindllm.report.summary import main_metric
from mindllm.report.write import to_table, write_report
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
MakeProgress = Callable[[], Progress]


def demo(
    out: str | Path,
    console: Console,
    make_progress: MakeProgress,
    n_subjects: int = 8,
    seed: int = 0,
    llm: str | None = None,
) -> EvaluationResult:
    """Simulate, prepare, train and evaluate in one folder.

    Parameters
    ----------
    out : str or Path
        The folder. A step that is already done there is not done again.
    console : Console
        Where headings and results are printed.
    make_progress : callable
        Makes the bars of a step.
    n_subjects : int
        Simulated subjects; the last one is left out of training.
    seed : int
        Of simulation, training and evaluation.
    llm : str, optional
        Language model; default: that of the training options.

    Returns
    -------
    EvaluationResult
        Of the left-out subject.
    """
    out = Path(out)
    console.rule("1/4  simulate subjects with real anatomy and a planted code (about 15 s)")
    if not (out / "bids").exists():
        config = SCENES.model_copy(update={"n_subjects": n_subjects, "seed": seed})
        simulate(out / "bids", config, on_step=lambda line: console.print(f"[dim]{line}[/dim]"))
    console.print(summary(out / "bids"))
    console.rule("2/4  prepare: NIfTI and tables into a store (about 20 s)")
    if not (out / "store").exists():
        with make_progress() as progress:
            BIDSReader(out / "bids").prepare(out / "store", progress=progress)
    training = TRAINING.model_copy(update={"seed": seed, "language_model": llm})
    result = train_and_evaluate(out, console, make_progress, training)
    console.print(compare_with_planted(out, result))
    console.print(f"report: {out / 'report' / 'report.html'}")
    return result


def train_and_evaluate(
    out: Path, console: Console, make_progress: MakeProgress, config: TrainConfig
) -> EvaluationResult:
    """Train on all subjects but the last, evaluate that one, write the report and print both."""
    store = Store(out / "store")
    *trained, left_out = store.subjects
    console.rule(
        f"3/4  train on {trained[0]} to {trained[-1]}; {left_out} is left out "
        "(about 5 min on two cores)"
    )
    with make_progress() as progress:
        train(store, out / "model", config, subjects=trained, resume=True, progress=progress)
    console.rule(f"4/4  decode {left_out}, a new subject, on the stimuli of training (about 4 min)")
    with make_progress() as progress:
        model = MindLLM.from_pretrained(out / "model", dtype=config.dtype)
        result = evaluate(
            model,
            store,
            [left_out],
            split="train",
            seed=config.seed,
            model_name=str(out / "model"),
            progress=progress,
        )
    write_report(result, out / "report", model=model, store=store)
    console.print(prediction_table(result, config.seed))
    console.print(to_table(result))
    return result


def compare_with_planted(out: Path, result: EvaluationResult) -> str:
    """Return in words what the best linear observer would reach on the planted responses."""
    left_out = result.run_info.subjects[0].subject
    planted = json.loads((out / "bids" / "truth.json").read_text(encoding="utf-8"))
    ceiling = planted["subjects"][left_out]["identification"]["unseen_subject_single_trial"]
    value = result.value(main_metric(result))
    return (
        "Known from what was planted: the best linear observer without training data of "
        f"{left_out} would identify {ceiling:.0%} of single trials among "
        f"{len(result.run_info.candidates)} such scenes; this model identifies {value:.0%}. "
        "For scenes that were not shown in training: "
        f"mindllm evaluate {out / 'model'} {out / 'store'} --subjects {left_out} "
        f"--out {out / 'new-scenes'}"
    )


def prediction_table(result: EvaluationResult, seed: int, count: int = 12) -> Table:
    """Return targets and predictions of some trials, drawn at random: not the best ones."""
    n_trials = len(result.predictions)
    table = Table(
        "target",
        "prediction",
        title=f"{count} of {n_trials} trials, drawn at random",
        title_justify="left",
    )
    drawn = np.random.default_rng(seed).choice(n_trials, min(count, n_trials), replace=False)
    for i in sorted(drawn):
        table.add_row(result.predictions[i].target, result.predictions[i].prediction)
    return table
