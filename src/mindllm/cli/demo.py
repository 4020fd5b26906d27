"""The whole pipeline in minutes: simulate, prepare, train, evaluate a left-out subject."""

import json
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import Progress

from mindllm.cli.demo_tables import attribute_table, prediction_table, question_table
from mindllm.data.store import Store
from mindllm.datasets.bids import BIDSReader
from mindllm.evaluation.cross_validation import CrossValidation, CrossValidationOptions
from mindllm.evaluation.evaluator import evaluate
from mindllm.evaluation.results import EvaluationResult
from mindllm.language.hub import DEFAULT_SENTENCE_ENCODER
from mindllm.model.modeling import MindLLM
from mindllm.model.proposals import rank_texts
from mindllm.report.cross_validation import cross_validation_table, write_cross_validation
from mindllm.report.summary import main_metric
from mindllm.report.write import to_table, write_report
from mindllm.simulate.configuration import SimulateConfig
from mindllm.simulate.scenes import draw_captions
from mindllm.simulate.simulator import simulate, summary
from mindllm.training.configuration import StageConfig, TrainConfig
from mindllm.training.trainer import train
from mindllm.utils.progress import progress_bar

SCENES = SimulateConfig()
# Shorter than the defaults: what two CPU cores do in a few minutes.
TRAINING = TrainConfig(
    alignment=StageConfig(max_steps=60, batch_size=480),
    instruction_tuning=StageConfig(max_steps=20, batch_size=16, learning_rate=1e-3),
    sentence_encoder=DEFAULT_SENTENCE_ENCODER,
)
MAX_NEW_TOKENS = 20  # a caption has at most 16
N_CAPTIONS = 2000  # to choose a text about a new scene among
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
        Of the left-out subject, on scenes that were not shown in training.
    """
    out = Path(out)
    console.rule("1/5  simulate subjects with real anatomy and a planted code (about 20 s)")
    if not (out / "bids").exists():
        config = SCENES.model_copy(update={"n_subjects": n_subjects, "seed": seed})
        simulate(out / "bids", config, on_step=lambda line: console.print(f"[dim]{line}[/dim]"))
    console.print(summary(out / "bids"))
    console.rule("2/5  prepare: NIfTI and tables into a store (about 10 s)")
    if not (out / "store").exists():
        with make_progress() as progress:
            BIDSReader(out / "bids").prepare(out / "store", progress=progress)
    store = Store(out / "store")
    identify_by_evidence(store, out / "evidence", console, make_progress, seed)
    training = TRAINING.model_copy(update={"seed": seed, "language_model": llm})
    model = train_model(store, out / "model", console, make_progress, training)
    result = evaluate_model(model, store, out, console, make_progress, seed)
    console.print(compare_with_planted(out, result))
    console.print(f"report: {out / 'report' / 'report.html'}")
    return result


def identify_by_evidence(
    store: Store, out: Path, console: Console, make_progress: MakeProgress, seed: int
) -> None:
    """Print the first result: the left-out subject's scenes, by evidence, without training."""
    left_out = store.subjects[-1]
    console.rule(f"3/5  which scene did {left_out} see? By evidence, without training (about 30 s)")
    options = CrossValidationOptions(
        test_split="test", seed=seed, sentence_encoder=TRAINING.sentence_encoder
    )
    validation = CrossValidation(store, None, options, out, [left_out])
    with (
        make_progress() as progress,
        progress_bar(progress, "fitting", validation.n_steps) as advance,
    ):
        results = validation.run(advance)
    write_cross_validation(results, out)
    for scores in results.values():
        console.print(cross_validation_table(scores))


def train_model(
    store: Store, out: Path, console: Console, make_progress: MakeProgress, config: TrainConfig
) -> MindLLM:
    """Train on all subjects but the last."""
    *trained, _ = store.subjects
    console.rule(f"4/5  train on {trained[0]} to {trained[-1]} (about 2 min on two cores)")
    with make_progress() as progress:
        return train(store, out, config, subjects=trained, resume=True, progress=progress)


def evaluate_model(
    model: MindLLM,
    store: Store,
    out: Path,
    console: Console,
    make_progress: MakeProgress,
    seed: int,
) -> EvaluationResult:
    """Evaluate the last subject on new scenes, write the report and print both."""
    left_out = store.subjects[-1]
    console.rule(f"5/5  decode {left_out}: scenes not shown in training (about 2 min)")
    with make_progress() as progress:
        result = evaluate(
            model,
            store,
            [left_out],
            split="test",
            seed=seed,
            model_name=str(out / "model"),
            progress=progress,
            average_repetitions=False,
            max_new_tokens=MAX_NEW_TOKENS,
        )
    write_report(result, out / "report", model=model, store=store)
    console.print(to_table(result))
    texts = draw_captions(N_CAPTIONS, seed)
    trials = store.trials(left_out)
    rows = np.flatnonzero(trials["split"] == "test")
    betas = np.array(store.betas(left_out, standardize=True))
    embeddings = model.embed_texts(texts)
    masker = store.masker(left_out)
    evidence = model.evidence(betas, masker, embeddings, subject_betas=betas)[rows]
    assert model.encoding_model is not None
    centred = embeddings - model.encoding_model.text_center
    ranked = rank_texts(texts, evidence, centred, n_best=1)
    chosen = [best.text for (best,) in ranked]
    console.print(prediction_table(result, chosen, len(texts), seed))
    console.print(attribute_table(result, chosen))
    console.print(question_table(result, texts, evidence))
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
        f"Left out to be short: means of repetitions, texts of more than {MAX_NEW_TOKENS} tokens, "
        "and longer training. The first two are in mindllm evaluate "
        f"{out / 'model'} {out / 'store'} --subjects {left_out} --out {out / 'all'}, and with "
        "--split train it evaluates the scenes that were shown to the other subjects."
    )
