"""What is evaluated: which trials of whom, the question, the candidate answers, and what counts as right."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mindllm.data.splits import DEFAULT_SPLIT, SPLITS
from mindllm.data.store import Store
from mindllm.metrics.exact_match import normalize_answer
from mindllm.utils.errors import InputError


@dataclass(frozen=True)
class EvaluationSet:
    """The evaluated trials, and everything that their scores are compared with.

    rows: subject -> trial numbers in the store (B,).  splits: subject -> the split they were taken from, in words.
    stimuli: (S,) evaluated stimuli, sorted.  accepted: per stimulus all right answers, the first one first.
    candidates: (C,) first answers, unique after normalization, sorted.  truth: (S,) the candidate of each stimulus.
    """

    trial_indices: Mapping[str, np.ndarray]
    splits: Mapping[str, str]
    stimuli: Sequence[str]
    references: Sequence[Sequence[str]]
    candidates: Sequence[str]
    target_indices: np.ndarray
    question: str
    question_origin: str

    def columns(self, stimuli: Sequence[str] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Trials' stimuli (B,) as numbers in `stimuli` (B,) and true candidates (B,)."""
        number = {name: i for i, name in enumerate(self.stimuli)}
        found = np.array([number[name] for name in stimuli])
        return found, self.target_indices[found]


def build_evaluation_set(
    store: Store,
    card: Mapping[str, Any],
    subjects: Sequence[str] | None,
    split: str | None,
    question: str | None,
    default: str,
) -> EvaluationSet:
    """Choose trials and candidates. Raises InputError where a trained subject has no test trials, or a stimulus no answer."""
    check_split(store, card)
    trained = set(card.get("subjects", []))
    rows, splits = {}, {}
    for subject in store.select_subjects(subjects):
        found = select_trials(store.trials(subject), subject, subject in trained, split)
        if (
            len(found[0]) or subjects or store.split.get("by") != "subject"
        ):  # who was left out is who is meant
            rows[subject], splits[subject] = found
    check_chosen(store, rows, trained, split)
    stimuli = [store.trials(subject)["stimulus"].to_numpy()[rows[subject]] for subject in rows]
    names = sorted(set(np.concatenate(stimuli).tolist()))
    table = collect_references(store, names, int(sum(map(len, stimuli))), np.concatenate(stimuli))
    accepted = [list(answers) for answers in table["answers"]]
    first = [normalize_answer(answers[0]) for answers in accepted]
    texts: dict[str, str] = {}
    for key, answers in sorted(zip(first, accepted, strict=True), key=lambda pair: pair[1][0]):
        texts.setdefault(key, answers[0])
    candidates = sorted(texts.values())
    if len(candidates) < 2:
        raise InputError(
            f"the {len(names)} evaluated stimuli share one answer ({candidates[0]!r}), so nothing can be identified; evaluate stimuli with different answers."
        )
    place = {normalize_answer(text): i for i, text in enumerate(candidates)}
    asked, origin = choose_question(table["turns"].tolist(), question, default)
    return EvaluationSet(
        rows,
        splits,
        names,
        accepted,
        candidates,
        np.array([place[key] for key in first]),
        asked,
        origin,
    )


def open_store(path: str | Path, card: Mapping[str, Any], split: str | None) -> Store:
    """A store with the split of this name; None: that which the model was trained with, where this is the store."""
    store, trained = Store(path), card.get("split", {}).get("name")
    mine = store.meta.get("name") == card.get("store") and trained in store.splits
    return Store(path, split or (trained if mine else None))


def check_split(store: Store, card: Mapping[str, Any]) -> None:
    """Raise InputError where the model was trained on this data with another split: what is tested may have been trained on."""
    trained = card.get("split", {}).get("name", DEFAULT_SPLIT)
    if store.meta.get("name") == card.get("store") and trained != store.split["name"]:
        raise InputError(
            f"the model was trained with the split {trained!r} of {card['store']}, and {store.path} is opened with {store.split['name']!r}: its test trials may have been trained on. Give --split-scheme {trained!r} (here are {', '.join([DEFAULT_SPLIT, *store.splits])})."
        )


def select_trials(
    trials: pd.DataFrame, subject: str, trained: bool, split: str | None
) -> tuple[np.ndarray, str]:
    """The trial numbers to evaluate, and in words which they are."""
    kinds = trials["split"].value_counts().to_dict()
    if split is None and not trained and "test" not in kinds:
        return np.arange(len(trials)), "all (never trained on, no test split)"
    wanted = split or "test"
    if wanted not in SPLITS:
        raise InputError(f"there is no split {wanted!r}; choose one of {', '.join(SPLITS)}.")
    if trained and wanted == "train":
        raise InputError(
            f"{subject}: the model was trained on these training trials, so a score on them says nothing. Evaluate the split test."
        )
    found = np.flatnonzero((trials["split"] == wanted).to_numpy())
    return found, wanted


def check_chosen(
    store: Store, rows: Mapping[str, np.ndarray], trained: set[str], split: str | None
) -> None:
    """Raise InputError if a chosen subject has no trial to evaluate, naming those that have."""
    bare = [subject for subject, found in rows.items() if not len(found)]
    if not bare:
        return
    wanted, kinds = split or "test", store.trials(bare[0])["split"].value_counts().to_dict()
    why = (
        " (the model was trained on this subject, so only those count)"
        if bare[0] in trained and split is None
        else ""
    )
    fair = [
        s
        for s in store.subjects
        if (split is None and s not in trained) or wanted in set(store.trials(s)["split"])
    ]
    raise InputError(
        f"{len(bare)} of {len(rows)} subjects have no trial of the split {wanted} to evaluate; first {bare[0]}{why}, whose trials are {kinds}. "
        f"Evaluate others (--subjects; possible here: {', '.join(fair) or 'none'}), or prepare the data with a test split."
    )


def collect_references(
    store: Store, stimuli: Sequence[str], trials: int, shown: np.ndarray
) -> pd.DataFrame:
    """One conversation per stimulus, in this order: its first row of the first source in the table."""
    table = store.conversations
    if not len(table):
        raise InputError(
            f"{store.path}: conversations.parquet is empty, so {trials} of {trials} trials have no answer to compare with. Prepare the store with captions."
        )
    source = table["source"].iloc[0]
    table = table[table["source"] == source].drop_duplicates("stimulus").set_index("stimulus")
    bare = {name for name in stimuli if name not in table.index or not table["answers"][name]}
    if bare:
        lost = int(np.isin(shown, sorted(bare)).sum())
        raise InputError(
            f"{lost} of {trials} trials show {len(bare)} stimuli without an answer of the source {source!r} (first: {sorted(bare)[0]!r}), "
            f"so they cannot be scored, and none is left out silently. Add these stimuli to the captions and prepare {store.path} anew."
        )
    return table.loc[list(stimuli)]


def choose_question(
    conversations: Sequence[Sequence[Mapping[str, str]]], question: str | None, default: str
) -> tuple[str, str]:
    """The question, and where it comes from: the caller, the conversations where they share one, or the model's own."""
    if question is not None:
        return question, "given"
    asked = {
        next((turn["content"] for turn in turns if turn["role"] == "user"), default)
        for turns in conversations
    }
    return (
        (asked.pop(), "of the data set")
        if len(asked) == 1
        else (default, f"the model's own (the data set asks {len(asked)} different ones)")
    )
