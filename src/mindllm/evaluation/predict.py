"""Everything that is said about the evaluated trials: by the model, by its controls, and by simpler readers."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import Progress

from mindllm.data.store import Store
from mindllm.evaluation.baselines import (
    AnswerEmbeddings,
    ConditionSkipped,
    TrainingTrials,
    check_subjects_available,
    cluster_oracle,
    most_frequent_baseline,
)
from mindllm.evaluation.evaluation_set import EvaluationSet
from mindllm.evaluation.predictor import Predictor, shuffled_conditions
from mindllm.evaluation.results import ConditionPredictions, SubjectPredictions
from mindllm.model.modeling import MindLLM
from mindllm.training.configuration import TrainConfig
from mindllm.training.trainer import train
from mindllm.utils.errors import InputError
from mindllm.utils.progress import progress_bar, spinner
from mindllm.utils.seeds import subject_seed

N_ORACLE_CLUSTERS = 8  # clusters of the oracle in the tables
logger = logging.getLogger(__name__)


@dataclass
class Predictions:
    """The readings of each person under each condition, and why a condition is `missing`."""

    subjects: list[SubjectPredictions]
    predictor: Predictor
    answer_embeddings: AnswerEmbeddings
    skipped_conditions: dict[str, str]


def predict_conditions(
    model: MindLLM,
    store: Store,
    task: EvaluationSet,
    *,
    pairs_folder: Path | None,
    batch_size: int,
    options: Mapping[str, Any],
    seed: int,
    progress: Progress | None,
) -> Predictions:
    """Let everybody read. `pairs_folder`: where the model trained on shuffled pairs is, or is to be; None leaves it out."""
    card = model.model_card
    reader = Predictor(model, task, batch_size, options)
    brain = predict_subjects(reader, store, task, progress, "reading scans")
    answers = card.get("answers") or {}
    with spinner(progress, "embedding answers"):
        meanings = AnswerEmbeddings(model.language_model, answers, task.candidates)
    said: dict[str, dict[str, ConditionPredictions]] = {
        subject: {"fmri": brain[subject]} for subject in brain
    }
    missing: dict[str, str] = {}
    question = reader.predict_question_only()
    for subject, rows in task.trial_indices.items():
        sessions = store.trials(subject)["session"].to_numpy(str)[rows]
        own, others = said[subject], [brain[other] for other in brain if other != subject]
        own |= shuffled_conditions(brain[subject], others, sessions)
        own["null_tokens"], own["question_only"] = (
            reader.null_predictions.broadcast_to_trials(len(rows)),
            question.broadcast_to_trials(len(rows)),
        )
        own |= {
            name: found.broadcast_to_trials(len(rows))
            for name, found in reader.predict_artificial_inputs(
                store, subject, subject_seed(seed, subject)
            ).items()
        }
        if answers:
            own["most_frequent"] = most_frequent_baseline(
                task, answers, meanings
            ).broadcast_to_trials(len(rows))
        if len(task.candidates) >= 2 * N_ORACLE_CLUSTERS:
            shown = store.trials(subject)["stimulus"].to_numpy()[rows]
            own["cluster_oracle"] = cluster_oracle(task, shown, meanings, N_ORACLE_CLUSTERS, seed)
    missing |= absent(said, task, answers)
    if pairs_folder is None:
        missing["trained_on_permuted_pairs"] = (
            "not asked for; --controls all trains it, which takes as long as the model's own training"
        )
    else:
        try:
            other = train_on_permuted_pairs(model, store, pairs_folder, progress)
            for subject, found in predict_subjects(
                Predictor(other, task, batch_size, options),
                store,
                task,
                progress,
                "reading, trained on shuffled pairs",
            ).items():
                said[subject]["trained_on_permuted_pairs"] = found
        except ConditionSkipped as reason:
            missing["trained_on_permuted_pairs"] = str(reason)
    with spinner(progress, "baselines: ridge, nearest pattern"):
        missing |= add_baselines(said, store, task, card, meanings)
    people = [
        SubjectPredictions(s, store.trials(s)["stimulus"].to_numpy()[rows], said[s])
        for s, rows in task.trial_indices.items()
    ]
    return Predictions(people, reader, meanings, missing)


def predict_subjects(
    reader: Predictor, store: Store, task: EvaluationSet, progress: Progress | None, words: str
) -> dict[str, ConditionPredictions]:
    """Subject -> what a model says of each evaluated trial."""
    with progress_bar(progress, words, sum(map(len, task.trial_indices.values()))) as advance:
        return {
            s: reader.predict_trials(store, s, [np.array([row]) for row in rows], advance)
            for s, rows in task.trial_indices.items()
        }


def absent(
    said: Mapping[str, Mapping[str, ConditionPredictions]],
    task: EvaluationSet,
    answers: Mapping[str, int],
) -> dict[str, str]:
    """Why a condition that needs nothing but the evaluated trials is not there."""
    out = {}
    if len(said) == 1:
        out["other_subject"] = "one person is evaluated"
    if not any("shuffled_within_session" in own for own in said.values()):
        out["shuffled_within_session"] = "every person has one session"
    if not answers:
        out["most_frequent"] = "the model's card does not say what it was trained to answer"
    if len(task.candidates) < 2 * N_ORACLE_CLUSTERS:
        out["cluster_oracle"] = (
            f"{len(task.candidates)} candidates are too few for {N_ORACLE_CLUSTERS} clusters"
        )
    return out


def add_baselines(
    said: Mapping[str, dict[str, ConditionPredictions]],
    store: Store,
    task: EvaluationSet,
    card: Mapping[str, Any],
    meanings: AnswerEmbeddings,
) -> dict[str, str]:
    """Add ridge and nearest pattern to what is said of each person; the reasons where that cannot be."""
    missing: dict[str, str] = {}
    try:
        training = TrainingTrials(store, card)
    except (ConditionSkipped, InputError) as reason:
        return {"ridge": str(reason), "nearest_neighbor": str(reason)}
    fitted = training.ridge(meanings)
    for subject, rows in task.trial_indices.items():
        groups = [np.array([row]) for row in rows]
        said[subject]["ridge"] = training.predict_ridge(fitted, meanings, subject, groups)
        try:
            said[subject]["nearest_neighbor"] = training.predict_nearest_neighbor(
                task, subject, groups
            )
        except ConditionSkipped as reason:
            missing["nearest_neighbor"] = str(reason)
    return missing


def train_on_permuted_pairs(
    model: MindLLM, store: Store, folder: Path, progress: Progress | None
) -> MindLLM:
    """The same training on the same trials, but each scan paired with another trial's text; goes on where it was interrupted."""
    card = model.model_card
    if "config" not in card or not card.get("subjects"):
        raise ConditionSkipped("the model's card does not hold its training options")
    if card.get("started_from"):
        raise ConditionSkipped(
            "the model's training began from another model, which has seen true pairs"
        )
    people = sorted({*card["subjects"], *card.get("validation_subjects", [])})
    check_subjects_available(store, card, people)
    config = TrainConfig(
        **card["config"] | {"permute_pairs": True, "language_model": model.language_model.name}
    )
    logger.info(
        "training on shuffled pairs, as long as the model itself was trained, in %s", folder
    )
    return train(store, folder, config, subjects=people, resume=True, progress=progress).eval()
