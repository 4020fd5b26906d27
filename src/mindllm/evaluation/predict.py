"""Step 1: predictions of every condition for every subject, saved as soon as they exist."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.progress import Progress

from mindllm.data.store import Store
from mindllm.evaluation.ablation import ParcelPredictions, predict_ablations
from mindllm.evaluation.baselines import (
    AnswerEmbeddings,
    ConditionSkipped,
    TrainingTrials,
    check_subjects_available,
    cluster_oracle,
    most_frequent_baseline,
)
from mindllm.evaluation.cache import PredictionCache
from mindllm.evaluation.evaluation_set import EvaluationSet
from mindllm.evaluation.predictor import Predictor, shuffled_conditions
from mindllm.evaluation.results import ConditionPredictions, SubjectPredictions
from mindllm.model.model_card import ModelCard
from mindllm.model.modeling import MindLLM
from mindllm.training.configuration import TrainConfig
from mindllm.training.trainer import train
from mindllm.utils.errors import InputError
from mindllm.utils.progress import progress_bar, spinner
from mindllm.utils.seeds import check_seed, subject_seed

N_ORACLE_CLUSTERS = 8
PERMUTED_PAIRS_DIR = "permuted-pairs"  # within cache_dir
Controls = Literal["default", "all"]
logger = logging.getLogger(__name__)
Conditions = dict[str, ConditionPredictions]


@dataclass(frozen=True, slots=True)
class PredictOptions:
    """Options of step 1.

    Parameters
    ----------
    cache_dir : Path or None
        Where predictions, and the model trained on permuted pairs, are kept.
    controls : {"default", "all"}
        "all" adds the model trained on permuted pairs, and predictions without parcels.
    batch_size : int
        Trials per call of the language model.
    seed : int
        Of noise and draws.
    generate_options : mapping
        Options of the model's `generate`.
    average_repetitions : bool
        Whether the means of each stimulus' trials are predicted from too.

    Raises
    ------
    InputError
        If `controls` needs a folder and there is none.
    """

    cache_dir: Path | None
    controls: Controls
    batch_size: int
    seed: int
    generate_options: Mapping[str, Any]
    average_repetitions: bool = True

    def __post_init__(self) -> None:
        check_seed(self.seed)
        if self.controls == "all" and self.cache_dir is None:
            raise InputError(
                "controls='all' trains a model on permuted pairs; "
                "give a folder for it, as `cache_dir`."
            )


@dataclass(frozen=True, slots=True)
class Predictions:
    """Everything that step 1 predicts.

    Parameters
    ----------
    subjects : list of SubjectPredictions
        Every condition on single trials.
    averaged : list of SubjectPredictions
        `fmri` and its main controls, one row per stimulus: the mean of its trials. Empty where
        nothing was repeated, or if they were not asked for.
    log_likelihood_ratios : mapping of subject to ndarray (n_trials,)
        Of the text generated from each trial, in nats.
    null_predictions : ConditionPredictions
        Predictions from the mean fMRI tokens: one row.
    ablations : list of ParcelPredictions or None
        Predictions without parcels; None where they were not asked for.
    answer_embeddings : AnswerEmbeddings
        Of training answers and candidates.
    skipped_conditions : mapping of str to str
        Conditions that were not measured, and why.
    """

    subjects: list[SubjectPredictions]
    averaged: list[SubjectPredictions]
    log_likelihood_ratios: Mapping[str, np.ndarray]
    null_predictions: ConditionPredictions
    ablations: list[ParcelPredictions] | None
    answer_embeddings: AnswerEmbeddings
    skipped_conditions: Mapping[str, str]


def predict_conditions(
    model: MindLLM,
    store: Store,
    task: EvaluationSet,
    options: PredictOptions,
    cache: PredictionCache,
    progress: Progress | None,
) -> Predictions:
    """Predict every condition of every subject.

    Parameters
    ----------
    model, store, task, options
        The model, in evaluation mode; the data; which trials; what to predict, and how.
    cache : PredictionCache
        Where predictions are saved, and read if they are.
    progress : Progress or None
        Where bars are drawn.

    Returns
    -------
    Predictions
        All that the scores need; raises InputError for NaN or infinite log-likelihoods.
    """
    predictor = Predictor(model, task, options.batch_size, options.generate_options)
    fmri = predict_subjects(predictor, store, "fmri", cache, progress, "predicting from fMRI")
    answers: Mapping[str, int] = model.model_card.answers or {}
    with spinner(progress, "embedding answers"):
        embeddings = AnswerEmbeddings(model.language_model, answers, task.candidates)
    conditions = control_conditions(predictor, store, fmri, embeddings, answers, options, cache)
    skipped = explain_skipped(conditions, task, answers)
    skipped |= add_permuted_pairs(conditions, predictor, store, options, cache, progress)
    with spinner(progress, "baselines: ridge, nearest neighbor"):
        skipped |= add_baselines(conditions, store, task, model.model_card, embeddings, cache)
    stimuli = {s: shown_stimuli(store, s, rows) for s, rows in task.trial_indices.items()}
    subjects = [SubjectPredictions(s, stimuli[s], conditions[s]) for s in task.trial_indices]
    averaged = []
    if options.average_repetitions:
        averaged = predict_averaged(predictor, store, stimuli, cache, progress)
    return Predictions(
        subjects=subjects,
        averaged=averaged,
        log_likelihood_ratios=predict_ratios(predictor, store, fmri, cache),
        null_predictions=predictor.null_predictions,
        ablations=predict_ablations(predictor, store, options.seed, cache, progress)
        if options.controls == "all"
        else None,
        answer_embeddings=embeddings,
        skipped_conditions=skipped,
    )


def shown_stimuli(store: Store, subject: str, rows: np.ndarray) -> np.ndarray:
    """Return the stimuli of some trials (B,)."""
    return store.trials(subject)["stimulus"].to_numpy()[rows]


def single_trials(rows: np.ndarray) -> list[np.ndarray]:
    """Return trial indices as groups of one."""
    return [np.array([row]) for row in rows]


def predict_subjects(
    predictor: Predictor,
    store: Store,
    condition: str,
    cache: PredictionCache,
    progress: Progress | None,
    title: str,
) -> Conditions:
    """Return a model's predictions of every evaluated trial, by subject."""
    trial_indices = predictor.evaluation_set.trial_indices
    with progress_bar(progress, title, sum(map(len, trial_indices.values()))) as advance:
        predictions = {}
        for subject, rows in trial_indices.items():
            if cache.has(subject, condition):
                advance(len(rows))
            predict = partial(
                predictor.predict_trials, store, subject, single_trials(rows), advance
            )
            predictions[subject] = cache.predictions(subject, condition, predict)
    return predictions


def predict_ratios(
    predictor: Predictor, store: Store, fmri: Conditions, cache: PredictionCache
) -> dict[str, np.ndarray]:
    """Return the log-likelihood ratio of each generated text, by subject, in nats."""
    ratios = {}
    for subject, rows in predictor.evaluation_set.trial_indices.items():
        compute = partial(
            predictor.log_likelihood_ratio, store, subject, single_trials(rows), fmri[subject]
        )
        ratios[subject] = cache.array(subject, "log_likelihood_ratio", compute)
    return ratios


def control_conditions(
    predictor: Predictor,
    store: Store,
    fmri: Conditions,
    embeddings: AnswerEmbeddings,
    answers: Mapping[str, int],
    options: PredictOptions,
    cache: PredictionCache,
) -> dict[str, Conditions]:
    """Return `fmri` and the controls that need no other model, by subject and condition."""
    task, by_subject = predictor.evaluation_set, {}
    question_only = predictor.predict_question_only()
    for subject, rows in task.trial_indices.items():
        sessions = store.trials(subject)["session"].to_numpy(str)[rows]
        others = [fmri[other] for other in fmri if other != subject]
        conditions = {"fmri": fmri[subject]}
        conditions |= shuffled_conditions(fmri[subject], others, sessions)
        single_inputs = {
            "null_tokens": predictor.null_predictions,
            "question_only": question_only,
        }
        seed = subject_seed(options.seed, subject)
        for name in ("zero", "noise"):
            predict = partial(predictor.predict_artificial_input, store, subject, name, seed)
            single_inputs[name] = cache.predictions(subject, name, predict)
        if answers:
            single_inputs["most_frequent"] = most_frequent_baseline(task, answers, embeddings)
        conditions |= {c: p.broadcast_to_trials(len(rows)) for c, p in single_inputs.items()}
        if len(task.candidates) >= 2 * N_ORACLE_CLUSTERS:
            stimuli = shown_stimuli(store, subject, rows)
            conditions["cluster_oracle"] = cluster_oracle(
                task, stimuli, embeddings, N_ORACLE_CLUSTERS, options.seed
            )
        by_subject[subject] = conditions
    return by_subject


def explain_skipped(
    conditions: Mapping[str, Conditions], task: EvaluationSet, answers: Mapping[str, int]
) -> dict[str, str]:
    """Return why a condition that needs nothing but the evaluated trials is not there."""
    reasons = {}
    if len(conditions) == 1:
        reasons["other_subject"] = "one subject is evaluated"
    if not any("shuffled_within_session" in names for names in conditions.values()):
        reasons["shuffled_within_session"] = "every subject has one session"
    if not answers:
        reasons["most_frequent"] = "the model card does not list the training answers"
    if len(task.candidates) < 2 * N_ORACLE_CLUSTERS:
        reasons["cluster_oracle"] = (
            f"{len(task.candidates)} candidates are too few for {N_ORACLE_CLUSTERS} clusters"
        )
    return reasons


def add_permuted_pairs(
    conditions: Mapping[str, Conditions],
    predictor: Predictor,
    store: Store,
    options: PredictOptions,
    cache: PredictionCache,
    progress: Progress | None,
) -> dict[str, str]:
    """Add the model trained on permuted pairs to each subject's conditions, or return why not."""
    name = "trained_on_permuted_pairs"
    if options.controls != "all" or options.cache_dir is None:
        return {
            name: "not asked for; --controls all trains it, "
            "which takes as long as the model's own training"
        }
    try:
        other = train_on_permuted_pairs(
            predictor.model, store, options.cache_dir / PERMUTED_PAIRS_DIR, progress
        )
    except ConditionSkipped as reason:
        return {name: str(reason)}
    task = predictor.evaluation_set
    permuted = Predictor(other, task, options.batch_size, options.generate_options)
    title = "predicting, trained on permuted pairs"
    for subject, predictions in predict_subjects(
        permuted, store, name, cache, progress, title
    ).items():
        conditions[subject][name] = predictions
    return {}


def add_baselines(
    conditions: Mapping[str, Conditions],
    store: Store,
    task: EvaluationSet,
    card: ModelCard,
    embeddings: AnswerEmbeddings,
    cache: PredictionCache,
) -> dict[str, str]:
    """Add ridge and nearest neighbor to each subject's conditions; return why one is skipped."""
    skipped: dict[str, str] = {}
    try:
        training = TrainingTrials(store, card)
    except (ConditionSkipped, InputError) as reason:
        return {"ridge": str(reason), "nearest_neighbor": str(reason)}
    for subject, rows in task.trial_indices.items():
        groups = single_trials(rows)
        ridge = partial(training.predict_ridge, embeddings, subject, groups)
        neighbor = partial(training.predict_nearest_neighbor, task, subject, groups)
        conditions[subject]["ridge"] = cache.predictions(subject, "ridge", ridge)
        try:
            conditions[subject]["nearest_neighbor"] = cache.predictions(
                subject, "nearest_neighbor", neighbor
            )
        except ConditionSkipped as reason:
            skipped["nearest_neighbor"] = str(reason)
    return skipped


def predict_averaged(
    predictor: Predictor,
    store: Store,
    stimuli: Mapping[str, np.ndarray],
    cache: PredictionCache,
    progress: Progress | None,
) -> list[SubjectPredictions]:
    """Predict from the mean of each stimulus' trials, by subject; empty where none is repeated.

    stimuli: subject to the stimuli of the evaluated trials (B,).
    """
    task = predictor.evaluation_set
    groups = {s: repetition_groups(task.trial_indices[s], shown) for s, shown in stimuli.items()}
    if max(len(rows) for of_subject in groups.values() for rows in of_subject) < 2:
        return []
    subjects = []
    n_scans = sum(map(len, groups.values()))
    with progress_bar(progress, "predicting from averaged repetitions", n_scans) as advance:
        for subject, of_subject in groups.items():
            predict = partial(predictor.predict_trials, store, subject, of_subject, advance)
            fmri = cache.predictions(subject, "averaged_repetitions", predict)
            conditions = {
                "fmri": fmri,
                "shuffled_trials": fmri.broadcast_to_trials(len(of_subject)),
                "null_tokens": predictor.null_predictions.broadcast_to_trials(len(of_subject)),
            }
            subjects.append(SubjectPredictions(subject, np.unique(stimuli[subject]), conditions))
    return subjects


def repetition_groups(rows: np.ndarray, stimuli: np.ndarray) -> list[np.ndarray]:
    """Return the trial indices of each stimulus, in sorted order of the stimuli.

    rows and stimuli are (B,): trial indices and what was shown.
    """
    return [rows[stimuli == stimulus] for stimulus in np.unique(stimuli)]


def train_on_permuted_pairs(
    model: MindLLM, store: Store, directory: Path, progress: Progress | None
) -> MindLLM:
    """Train the same model again on the same trials, each paired with another trial's text.

    Training options are those in the model card. A training that was interrupted in `directory`
    goes on. Raises ConditionSkipped if the training cannot be repeated with this store.
    """
    card = model.model_card
    if card.config is None or not card.subjects:
        raise ConditionSkipped("the model card does not hold the training options")
    if card.started_from:
        raise ConditionSkipped(
            "the training began from another model, which was trained on the true pairs"
        )
    subjects = sorted({*card.subjects, *(card.validation_subjects or [])})
    check_subjects_available(store, card, subjects)
    changes: dict[str, object] = {
        "permute_pairs": True,
        "language_model": model.language_model.name,
    }
    changes["loggers"] = ["csv"]  # nothing is sent anywhere for a control
    config = TrainConfig(**{**card.config, **changes})
    logger.info(
        "training on permuted pairs, as long as the model itself was trained, in %s", directory
    )
    return train(store, directory, config, subjects=subjects, resume=True, progress=progress).eval()
