"""An evaluation by several processes: each predicts some of the subjects, the first one scores.

Predictions are exchanged through the folder of saved predictions, which all processes see: the
first one reads there what the others have written. A subject is predicted by one process as it
would be by the only one, so the result is the same to the last bit.
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from rich.progress import Progress

from mindllm.data.store import Store
from mindllm.evaluation.cache import PARTIAL_DIR, PredictionCache, run_fingerprint
from mindllm.evaluation.evaluation_set import EvaluationSet
from mindllm.evaluation.predict import (
    PredictOptions,
    predict_averaged,
    predict_ratios,
    predict_subjects,
    shown_stimuli,
)
from mindllm.evaluation.predictor import Predictor
from mindllm.model.modeling import MindLLM
from mindllm.utils.processes import num_launched_processes, process_index
from mindllm.utils.progress import progress_bar
from mindllm.utils.seeds import subject_seed

LAST_ARRAY = "log_likelihood_ratio"  # when it is saved, the subject is predicted
POLL_SECONDS = 0.2


def select_share(subjects: Sequence[str], index: int, num_processes: int) -> list[str]:
    """Select the subjects that a process predicts.

    Parameters
    ----------
    subjects : sequence of str
    index : int
        Of the process, from 0.
    num_processes : int

    Returns
    -------
    list of str

    Examples
    --------
    >>> [select_share(["sub-01", "sub-02", "sub-03"], index, 2) for index in range(2)]
    [['sub-01', 'sub-03'], ['sub-02']]
    """
    return list(subjects[index::num_processes])


def predict_share(
    model: MindLLM,
    store: Store,
    task: EvaluationSet,
    options: PredictOptions,
    progress: Progress | None = None,
) -> None:
    """Predict and save the subjects of this process; the first one waits for all others.

    Parameters
    ----------
    model : MindLLM
        In evaluation mode.
    store : Store
    task : EvaluationSet
        Of all processes.
    options : PredictOptions
        With a `cache_dir` that all processes see.
    progress : Progress, optional
        Where bars are drawn.
    """
    assert options.cache_dir is not None
    directory = options.cache_dir / PARTIAL_DIR
    fingerprint = run_fingerprint(
        model,
        store,
        task,
        seed=options.seed,
        batch_size=options.batch_size,
        generate_options=options.generate_options,
    )
    cache = PredictionCache(directory, fingerprint)
    index, subjects = process_index(), list(task.trial_indices)
    for subject in select_share(subjects, index, num_launched_processes()):
        indices = {subject: task.trial_indices[subject]}
        part = replace(task, trial_indices=indices)
        predict_subject(model, store, part, options, cache, progress)
    if index == 0:
        wait_for_subjects(directory, subjects, progress)


def predict_subject(
    model: MindLLM,
    store: Store,
    task: EvaluationSet,
    options: PredictOptions,
    cache: PredictionCache,
    progress: Progress | None,
) -> None:
    """Predict and save what takes long of the one subject of `task`."""
    predictor = Predictor(model, task, options.batch_size, options.generate_options)
    ((subject, rows),) = task.trial_indices.items()
    fmri = predict_subjects(predictor, store, "fmri", cache, progress, f"predicting {subject}")
    stimuli = {subject: shown_stimuli(store, subject, rows)}
    predict_averaged(predictor, store, stimuli, cache, progress)
    for name in ("zero", "noise"):
        seed = subject_seed(options.seed, subject)
        predict = partial(predictor.predict_artificial_input, store, subject, name, seed)
        cache.predictions(subject, name, predict)
    predict_ratios(predictor, store, fmri, cache)


def wait_for_subjects(directory: Path, subjects: Sequence[str], progress: Progress | None) -> None:
    """Wait until all subjects are predicted; a launcher ends this process if another one fails."""
    files = {directory / subject / f"{LAST_ARRAY}.npz" for subject in subjects}
    done = {file for file in files if file.exists()}
    title = "subjects that other processes predict"
    with progress_bar(progress, title, len(files), len(done)) as advance:
        while done != files:
            time.sleep(POLL_SECONDS)
            new = {file for file in files - done if file.exists()}
            advance(len(new))
            done |= new
