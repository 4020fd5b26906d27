"""Everything that is said about the evaluated trials: by the model, by its controls, and by simpler readers."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import Progress

from mindllm.data.store import Store
from mindllm.evaluate.baselines import Meanings, TrainingTrials, Unavailable, constant, need_people, oracle
from mindllm.evaluate.evaluation_set import Task
from mindllm.evaluate.predictor import Reader, standing_in
from mindllm.evaluate.results import Readings, Said
from mindllm.model.modeling import MindLLM
from mindllm.training.configuration import TrainConfig
from mindllm.training.trainer import train
from mindllm.utils.errors import InputError
from mindllm.utils.progress import counting, waiting
from mindllm.utils.seeds import own_seed

ORACLE = 8  # clusters of the oracle in the tables
logger = logging.getLogger(__name__)


@dataclass
class Gathered:
    """The readings of each person under each condition, and why a condition is `missing`."""

    people: list[Readings]
    reader: Reader
    meanings: Meanings
    missing: dict[str, str]


def gather(
    model: MindLLM,
    store: Store,
    task: Task,
    *,
    pairs_folder: Path | None,
    batch_size: int,
    options: Mapping[str, Any],
    seed: int,
    progress: Progress | None,
) -> Gathered:
    """Let everybody read. `pairs_folder`: where the model trained on shuffled pairs is, or is to be; None leaves it out."""
    card = model.card
    reader = Reader(model, task, batch_size, options)
    brain = read_everybody(reader, store, task, progress, "reading scans")
    answers = card.get("answers") or {}
    with waiting(progress, "embedding answers"):
        meanings = Meanings(model.llm, answers, task.candidates)
    said: dict[str, dict[str, Said]] = {subject: {"brain": brain[subject]} for subject in brain}
    missing: dict[str, str] = {}
    question = reader.question_only()
    for subject, rows in task.rows.items():
        sessions = store.trials(subject)["session"].to_numpy(str)[rows]
        own, others = said[subject], [brain[other] for other in brain if other != subject]
        own |= standing_in(brain[subject], others, sessions)
        own["no_brain"], own["question_only"] = reader.no_brain.for_all(len(rows)), question.for_all(len(rows))
        own |= {
            name: found.for_all(len(rows))
            for name, found in reader.made_up(store, subject, own_seed(seed, subject)).items()
        }
        if answers:
            own["constant"] = constant(task, answers, meanings).for_all(len(rows))
        if len(task.candidates) >= 2 * ORACLE:
            shown = store.trials(subject)["stimulus"].to_numpy()[rows]
            own["cluster_oracle"] = oracle(task, shown, meanings, ORACLE, seed)
    missing |= absent(said, task, answers)
    if pairs_folder is None:
        missing["shuffled_pairs"] = (
            "not asked for; --controls full trains it, which takes as long as the model's own training"
        )
    else:
        try:
            other = trained_on_shuffled_pairs(model, store, pairs_folder, progress)
            for subject, found in read_everybody(
                Reader(other, task, batch_size, options), store, task, progress, "reading, trained on shuffled pairs"
            ).items():
                said[subject]["shuffled_pairs"] = found
        except Unavailable as reason:
            missing["shuffled_pairs"] = str(reason)
    with waiting(progress, "baselines: ridge, nearest pattern"):
        missing |= add_baselines(said, store, task, card, meanings)
    people = [Readings(s, store.trials(s)["stimulus"].to_numpy()[rows], said[s]) for s, rows in task.rows.items()]
    return Gathered(people, reader, meanings, missing)


def read_everybody(reader: Reader, store: Store, task: Task, progress: Progress | None, words: str) -> dict[str, Said]:
    """Subject -> what a model says of each evaluated trial."""
    with counting(progress, words, sum(map(len, task.rows.values()))) as advance:
        return {s: reader.scans(store, s, [np.array([row]) for row in rows], advance) for s, rows in task.rows.items()}


def absent(said: Mapping[str, Mapping[str, Said]], task: Task, answers: Mapping[str, int]) -> dict[str, str]:
    """Why a condition that needs nothing but the evaluated trials is not there."""
    out = {}
    if len(said) == 1:
        out["other_person"] = "one person is evaluated"
    if not any("shuffled_session" in own for own in said.values()):
        out["shuffled_session"] = "every person has one session"
    if not answers:
        out["constant"] = "the model's card does not say what it was trained to answer"
    if len(task.candidates) < 2 * ORACLE:
        out["cluster_oracle"] = f"{len(task.candidates)} candidates are too few for {ORACLE} clusters"
    return out


def add_baselines(
    said: Mapping[str, dict[str, Said]], store: Store, task: Task, card: Mapping[str, Any], meanings: Meanings
) -> dict[str, str]:
    """Add ridge and nearest pattern to what is said of each person; the reasons where that cannot be."""
    missing: dict[str, str] = {}
    try:
        training = TrainingTrials(store, card)
    except (Unavailable, InputError) as reason:
        return {"ridge": str(reason), "nearest_pattern": str(reason)}
    fitted = training.ridge(meanings)
    for subject, rows in task.rows.items():
        groups = [np.array([row]) for row in rows]
        said[subject]["ridge"] = training.read_ridge(fitted, meanings, subject, groups)
        try:
            said[subject]["nearest_pattern"] = training.read_nearest(task, subject, groups)
        except Unavailable as reason:
            missing["nearest_pattern"] = str(reason)
    return missing


def trained_on_shuffled_pairs(model: MindLLM, store: Store, folder: Path, progress: Progress | None) -> MindLLM:
    """The same training on the same trials, but each scan paired with another trial's text; goes on where it was interrupted."""
    card = model.card
    if "config" not in card or not card.get("subjects"):
        raise Unavailable("the model's card does not hold its training options")
    if card.get("started_from"):
        raise Unavailable("the model's training began from another model, which has seen true pairs")
    people = sorted({*card["subjects"], *card.get("validation_subjects", [])})
    need_people(store, card, people)
    config = TrainConfig(**card["config"] | {"shuffle_pairs": True, "llm": model.llm.name})
    logger.info("training on shuffled pairs, as long as the model itself was trained, in %s", folder)
    return train(store, folder, config, subjects=people, resume=True, progress=progress).eval()
