"""What is evaluated: trials, question, candidates and references."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from mindllm.data.splits import DEFAULT_SPLIT, SPLITS
from mindllm.data.store import Store
from mindllm.metrics.exact_match import normalize_answer
from mindllm.model.model_card import ModelCard
from mindllm.utils.errors import InputError


@dataclass(frozen=True, slots=True)
class EvaluationSet:
    """The evaluated trials, and everything that their scores are compared with.

    Parameters
    ----------
    trial_indices : mapping of subject to ndarray of int
        Trial indices in the store.
    splits : mapping of subject to str
        The split that they were taken from, in words.
    stimuli : sequence of str, length S
        Evaluated stimuli, sorted.
    references : sequence of sequence of str, length S
        All accepted answers of each stimulus, the target first.
    candidates : sequence of str, length C
        Targets, unique after normalization, sorted.
    target_indices : ndarray of shape (S,)
        The candidate of each stimulus.
    question : str
        What is asked about every trial.
    question_source : str
        Where the question comes from, in words.
    """

    trial_indices: Mapping[str, np.ndarray]
    splits: Mapping[str, str]
    stimuli: Sequence[str]
    references: Sequence[Sequence[str]]
    candidates: Sequence[str]
    target_indices: np.ndarray
    question: str
    question_source: str

    def columns(self, stimuli: Sequence[str] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the numbers of trials' stimuli (B,) in `stimuli` (B,), and their targets (B,)."""
        number = {name: i for i, name in enumerate(self.stimuli)}
        columns = np.array([number[name] for name in stimuli])
        return columns, self.target_indices[columns]


def build_evaluation_set(
    store: Store,
    card: ModelCard,
    subjects: Sequence[str] | None,
    split: str | None,
    question: str | None,
    default_question: str,
) -> EvaluationSet:
    """Choose trials, question and candidates.

    Parameters
    ----------
    store, card : Store, ModelCard
        The data; the model card, which says what the model was trained on.
    subjects : sequence of str or None
        None: all; of a store split by subject, those left out.
    split : str or None
        None: test; of subjects never trained on that have none, all trials.
    question, default_question : str or None, str
        None: that of the store, where it asks one; else the default.

    Raises
    ------
    InputError
        If a chosen subject has no trial to evaluate, the model was trained on the trials, a
        stimulus has no answer, or all stimuli share one.
    """
    check_split(store, card)
    trial_indices, splits = choose_trials(store, card, subjects, split)
    stimuli = np.concatenate(
        [store.trials(s)["stimulus"].to_numpy()[rows] for s, rows in trial_indices.items()]
    )
    names = sorted(set(stimuli.tolist()))
    table = collect_references(store, names, stimuli)
    references = [list(answers) for answers in table["answers"]]
    candidates, target_indices = build_candidates(references)
    asked, source = choose_question(table["turns"].tolist(), question, default_question)
    return EvaluationSet(
        trial_indices=trial_indices,
        splits=splits,
        stimuli=names,
        references=references,
        candidates=candidates,
        target_indices=target_indices,
        question=asked,
        question_source=source,
    )


def choose_trials(
    store: Store, card: ModelCard, subjects: Sequence[str] | None, split: str | None
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Return the trial indices of every subject, and in words which they are."""
    trained = set(card.subjects or [])
    trial_indices, splits = {}, {}
    for subject in store.select_subjects(subjects):
        rows, words = select_trials(store.trials(subject), subject, subject in trained, split)
        # Without a choice, a store split by subject means the subjects that were left out.
        if len(rows) or subjects or store.split.get("by") != "subject":
            trial_indices[subject], splits[subject] = rows, words
    check_trials_left(store, trial_indices, trained, split)
    return trial_indices, splits


def build_candidates(references: Sequence[Sequence[str]]) -> tuple[list[str], np.ndarray]:
    """Return the unique first answers (C,), sorted, and the candidate of each stimulus (S,)."""
    first = [normalize_answer(answers[0]) for answers in references]
    texts: dict[str, str] = {}
    for key, answers in sorted(zip(first, references, strict=True), key=lambda pair: pair[1][0]):
        texts.setdefault(key, answers[0])
    candidates = sorted(texts.values())
    if len(candidates) < 2:
        raise InputError(
            f"the {len(references)} evaluated stimuli share one answer ({candidates[0]!r}), "
            "so nothing can be identified; evaluate stimuli with different answers."
        )
    index = {normalize_answer(text): i for i, text in enumerate(candidates)}
    return candidates, np.array([index[key] for key in first])


def open_store(path: str | Path, card: ModelCard, split_scheme: str | None) -> Store:
    """Open a store with the split that the model was trained with.

    Parameters
    ----------
    path : str or Path
        The store.
    card : ModelCard
        Of the model.
    split_scheme : str or None
        Name of another split of the store.

    Returns
    -------
    Store
        Opened with that split.
    """
    store, trained = Store(path), card.split_name
    is_training_store = store.meta.get("name") == card.store and trained in store.splits
    return Store(path, split_scheme or (trained if is_training_store else None))


def check_split(store: Store, card: ModelCard) -> None:
    """Raise InputError where the model was trained on this data with another split."""
    trained = card.split_name or DEFAULT_SPLIT
    if store.meta.get("name") == card.store and trained != store.split["name"]:
        raise InputError(
            f"the model was trained with the split {trained!r} of {card.store}, and "
            f"{store.path} is opened with {store.split['name']!r}: its test trials may have been "
            f"trained on. Give --split-scheme {trained!r} "
            f"(here are {', '.join([DEFAULT_SPLIT, *store.splits])})."
        )


def check_split_name(name: str | None) -> None:
    """Raise InputError unless a split is one that trials can have, or None."""
    if name not in (None, *SPLITS):
        raise InputError(f"there is no split {name!r}; choose one of {', '.join(SPLITS)}.")


def select_trials(
    trials: pd.DataFrame, subject: str, trained: bool, split: str | None
) -> tuple[np.ndarray, str]:
    """Return the indices of the trials to evaluate (B,), and in words which they are."""
    counts = trials["split"].value_counts().to_dict()
    if split is None and not trained and "test" not in counts:
        return np.arange(len(trials)), "all (never trained on, no test split)"
    name = split or "test"
    check_split_name(name)
    if trained and name == "train":
        raise InputError(
            f"{subject}: the model was trained on these training trials, so a score on them says "
            "nothing. Evaluate the split test."
        )
    return np.flatnonzero((trials["split"] == name).to_numpy()), name


def check_trials_left(
    store: Store, trial_indices: Mapping[str, np.ndarray], trained: set[str], split: str | None
) -> None:
    """Raise InputError if a chosen subject has no trial to evaluate, naming those that have."""
    without = [subject for subject, rows in trial_indices.items() if not len(rows)]
    if not without:
        return
    first, name = without[0], split or "test"
    counts = store.trials(first)["split"].value_counts().to_dict()
    reason = ""
    if first in trained and split is None:
        reason = " (the model was trained on this subject, so only those count)"
    possible = [
        s
        for s in store.subjects
        if (split is None and s not in trained) or name in set(store.trials(s)["split"])
    ]
    raise InputError(
        f"{len(without)} of {len(trial_indices)} subjects have no trial of the split {name} to "
        f"evaluate; first {first}{reason}, whose trials are {counts}. Evaluate others "
        f"(--subjects; possible here: {', '.join(possible) or 'none'}), "
        "or prepare the data with a test split."
    )


def collect_references(store: Store, names: Sequence[str], stimuli: np.ndarray) -> pd.DataFrame:
    """Return one conversation per stimulus, in the order of `names`.

    It is the stimulus' first row of the first source in the table. stimuli (B,) are those of the
    trials, for the error message.
    """
    table = store.conversations
    if not len(table):
        raise InputError(
            f"{store.path}: conversations.parquet is empty, so {len(stimuli)} of {len(stimuli)} "
            "trials have no answer to compare with. Prepare the store with captions."
        )
    source = table["source"].iloc[0]
    table = table[table["source"] == source].drop_duplicates("stimulus").set_index("stimulus")
    without = {name for name in names if name not in table.index or not table["answers"][name]}
    if without:
        n_trials = int(np.isin(stimuli, sorted(without)).sum())
        raise InputError(
            f"{n_trials} of {len(stimuli)} trials show {len(without)} stimuli without an answer of "
            f"the source {source!r} (first: {sorted(without)[0]!r}), so they cannot be scored, and "
            "none is left out silently. Add these stimuli to the captions and prepare "
            f"{store.path} anew."
        )
    return table.loc[list(names)]


def choose_question(
    conversations: Sequence[Sequence[Mapping[str, str]]], question: str | None, default: str
) -> tuple[str, str]:
    """Return the question and its source: the caller, the store if it asks one, or the model."""
    if question is not None:
        return question, "given"
    questions = {
        next((turn["content"] for turn in turns if turn["role"] == "user"), default)
        for turns in conversations
    }
    if len(questions) == 1:
        return questions.pop(), "of the data set"
    return default, f"the model's own (the data set asks {len(questions)} different ones)"
