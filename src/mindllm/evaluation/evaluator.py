"""Evaluate a model on a store: predict, score, and return a typed result."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast, get_args
from uuid import uuid4

import numpy as np
from rich.console import Console
from rich.progress import Progress

from mindllm.data.store import Store
from mindllm.evaluation.ablation import score_ablations
from mindllm.evaluation.cache import PARTIAL_DIR, PredictionCache, run_fingerprint
from mindllm.evaluation.conditions import ALL_SUBJECTS
from mindllm.evaluation.confusion import confusion
from mindllm.evaluation.evaluation_set import EvaluationSet, build_evaluation_set
from mindllm.evaluation.noise_ceiling import noise_ceiling
from mindllm.evaluation.predict import Controls, Predictions, PredictOptions, predict_conditions
from mindllm.evaluation.protocols import score_protocols
from mindllm.evaluation.records import (
    calibrate_evidence,
    calibrate_records,
    describe_run,
    trial_records,
)
from mindllm.evaluation.results import (
    ConditionPredictions,
    EvaluationResult,
    MetricRow,
    RunInfo,
)
from mindllm.evaluation.score import pool_subjects, score_predictions, summarize_scores
from mindllm.evaluation.share import predict_share
from mindllm.evaluation.text_scores import try_text_scores
from mindllm.model.model_card import ModelCard
from mindllm.model.modeling import MindLLM
from mindllm.utils.errors import InputError
from mindllm.utils.locks import lock_output
from mindllm.utils.processes import is_main_process, num_launched_processes
from mindllm.utils.progress import make_progress, spinner
from mindllm.utils.seeds import subject_seed


def evaluate(
    model: MindLLM,
    store: Store,
    subjects: Sequence[str] | None = None,
    split: str | None = None,
    question: str | None = None,
    controls: Controls = "default",
    *,
    batch_size: int = 16,
    seed: int = 0,
    model_name: str | None = None,
    cache_dir: str | Path | None = None,
    progress: Progress | bool | None = None,
    average_repetitions: bool = True,
    **generate_options: Any,
) -> EvaluationResult:
    """Predict trials that the model was not trained on and score them; write no report.

    Parameters
    ----------
    model, store : MindLLM, Store
        What is evaluated, on which data.
    subjects, split, question, model_name : optional
        Default: all subjects, their test trials (all, of new subjects without), the store's
        question if it asks one, the name in the model card.
    controls : {"default", "all"}
        "all" trains again on permuted pairs, in cache_dir, and leaves out parcels.
    batch_size, seed, progress
        Trials per call; of all random draws; bars to draw on, False for none.
    cache_dir : path, optional
        Predictions are saved in cache_dir/partial at once: called again, they are read.
    average_repetitions : bool
        False: the means of each stimulus' trials are not predicted from; a third less time or more.
    **generate_options
        Options of `model.generate`.

    Returns
    -------
    EvaluationResult
        Scores, predictions and how they were made; raises InputError where none are fair.

    Examples
    --------
    >>> result = evaluate(model, store, subjects=["sub-03"])  # doctest: +SKIP
    """
    directory = None if cache_dir is None else Path(cache_dir)
    options = PredictOptions(
        directory,
        check_controls(controls),
        batch_size,
        seed,
        generate_options,
        average_repetitions,
    )
    task = choose_evaluation_set(model, store, subjects, split, question)
    lock = nullcontext() if directory is None else lock_output(directory)
    with lock, evaluation_mode(model), choose_progress(progress) as bars:
        return run_steps(model, store, task, options, model_name, bars)


def evaluate_in_processes(
    model: MindLLM,
    store: Store,
    subjects: Sequence[str] | None,
    split: str | None,
    options: PredictOptions,
    *,
    model_name: str | None = None,
    progress: Progress | None = None,
) -> EvaluationResult | None:
    """Evaluate as `evaluate` does; processes that a launcher has started share the subjects.

    Parameters
    ----------
    model, store, subjects, split, model_name
        As for `evaluate`, the same in all processes.
    options : PredictOptions
        With a `cache_dir` that all processes see.
    progress : Progress, optional
        Where bars are drawn.

    Returns
    -------
    EvaluationResult or None
        None in all processes but the first.
    """
    task = choose_evaluation_set(model, store, subjects, split, None)
    with evaluation_mode(model):
        if num_launched_processes() > 1:
            predict_share(model, store, task, options, progress if is_main_process() else None)
        if not is_main_process():
            return None
        return run_steps(model, store, task, options, model_name, progress)


def choose_evaluation_set(
    model: MindLLM,
    store: Store,
    subjects: Sequence[str] | None,
    split: str | None,
    question: str | None,
) -> EvaluationSet:
    """Return the evaluation set of these options; see `build_evaluation_set`."""
    default = model.build_conversation()[0]["content"]
    return build_evaluation_set(store, model.model_card, subjects, split, question, default)


def run_steps(
    model: MindLLM,
    store: Store,
    task: EvaluationSet,
    options: PredictOptions,
    model_name: str | None,
    progress: Progress | None,
) -> EvaluationResult:
    """Run step 1, predictions, and step 2, scores."""
    started, begun = datetime.now(UTC), time.monotonic()
    fingerprint = run_fingerprint(
        model,
        store,
        task,
        seed=options.seed,
        batch_size=options.batch_size,
        generate_options=options.generate_options,
    )
    directory = None if options.cache_dir is None else options.cache_dir / PARTIAL_DIR
    cache = PredictionCache(directory, fingerprint)
    predictions = predict_conditions(model, store, task, options, cache, progress)
    run_info = replace(
        describe_run(model, store, task, predictions, options, model_name),
        started=started.isoformat(timespec="seconds"),
    )
    result = score_all(model.model_card, store, task, predictions, run_info, progress)
    seconds = round(time.monotonic() - begun, 1)
    return replace(result, run_info=replace(result.run_info, seconds=seconds))


def check_controls(controls: str) -> Controls:
    """Return `controls` if there are such; a command asks before it loads the model."""
    if controls not in get_args(Controls):
        raise InputError(f"controls={controls!r}: expected {' or '.join(get_args(Controls))}.")
    if controls == "all" and num_launched_processes() > 1:
        raise InputError(
            "controls='all' trains a model, which one process of an evaluation cannot do while "
            "others wait. Evaluate with the default controls, or without a launcher."
        )
    return cast("Controls", controls)


@contextmanager
def evaluation_mode(model: MindLLM) -> Iterator[None]:
    """Switch dropout off until the block ends."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def score_all(
    model_card: ModelCard,
    store: Store,
    task: EvaluationSet,
    predictions: Predictions,
    run_info: RunInfo,
    progress: Progress | None,
) -> EvaluationResult:
    """Step 2: score all predictions; no model is called."""
    seed, subjects = run_info.seed, predictions.subjects
    trial_scores = [
        score_predictions(p, task, seed=subject_seed(seed, p.subject)) for p in subjects
    ]
    scores = [
        row
        for part in [*trial_scores, pool_subjects(trial_scores)]
        for row in summarize_scores(part, len(task.candidates), seed=seed)
    ]
    texts: list[MetricRow] = []
    if run_info.text_scores_skipped is None:
        with spinner(progress, "text scores"):
            rows, skipped = try_text_scores(subjects, task, seed)
        texts, run_info = rows_of_all(rows), replace(run_info, text_scores_skipped=skipped)
    records = [
        record
        for p in subjects
        for record in trial_records(store, task, p, predictions.log_likelihood_ratios[p.subject])
    ]
    ceilings = [noise_ceiling(store, task, subject) for subject in task.trial_indices]
    ablation = None
    if predictions.ablations is not None:
        ablation = score_ablations(predictions.ablations, task, subjects, seed)
    return EvaluationResult(
        run_id=uuid4().hex,
        scores=scores,
        text_scores=texts,
        protocols=score_protocols(model_card, store, task, predictions, scores, texts, seed),
        predictions=records,
        run_info=run_info,
        calibration=calibrate_records(records, calibrate_evidence(subjects, task)),
        confusion=confusion(store, task, subjects, predictions.answer_embeddings, seed),
        noise_ceilings=[ceiling for ceiling in ceilings if ceiling is not None],
        ablation=ablation,
        log_likelihoods={p.subject: kept_log_likelihoods(p.conditions["fmri"]) for p in subjects},
        null_log_likelihoods=kept_log_likelihoods(predictions.null_predictions)[0],
        evidence={
            p.subject: evidence.astype(np.float32)
            for p in subjects
            if (evidence := p.conditions["fmri"].evidence) is not None
        },
    )


def kept_log_likelihoods(predictions: ConditionPredictions) -> np.ndarray:
    """Return log-likelihoods (R, C) in the precision that is saved."""
    assert predictions.log_likelihoods is not None
    return predictions.log_likelihoods.astype(np.float32)


def rows_of_all(rows: list[MetricRow]) -> list[MetricRow]:
    """Return rows, with those of a single subject standing for all subjects too."""
    if any(row.subject == ALL_SUBJECTS for row in rows):
        return rows
    return [*rows, *(replace(row, subject=ALL_SUBJECTS) for row in rows)]


@contextmanager
def choose_progress(progress: Progress | bool | None) -> Iterator[Progress | None]:
    """Yield the bars to draw on: those of the caller, new ones, or none."""
    if isinstance(progress, Progress):
        yield progress
    elif progress is False:
        yield None
    else:
        with make_progress(Console(stderr=True), transient=True) as bars:
            yield bars
