"""Answers divided into folds: which are shown to a model, and which trials are identified."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from mindllm.data.conversations import ConversationDataset
from mindllm.data.dataset import TrialDataset
from mindllm.data.store import Store
from mindllm.evaluation.evaluation_set import EvaluationSet
from mindllm.utils.errors import InputError


@dataclass(frozen=True, slots=True)
class AnswerFolds:
    """Answers to stimuli, and folds of them that are new to a model.

    Parameters
    ----------
    stimuli : mapping of str to ndarray of str, shape (n_trials,)
        Stimulus of each trial of each subject.
    names : sequence of str
        All stimuli, sorted.
    stimulus_texts : ndarray of int, shape (n_stimuli,)
        Number of each stimulus' answer.
    answers : sequence of str
        The answers, sorted, each once.
    folds : sequence of ndarray of int
        Numbers of each fold's answers.
    always_new : bool
        Whether the answers of the folds are never shown.
    """

    stimuli: Mapping[str, np.ndarray]
    names: Sequence[str]
    stimulus_texts: np.ndarray
    answers: Sequence[str]
    folds: Sequence[np.ndarray]
    always_new: bool = False

    @classmethod
    def divide(
        cls,
        store: Store,
        subjects: Sequence[str],
        n_folds: int,
        test_split: str | None = None,
        seed: int = 0,
    ) -> Self:
        """Divide the answers in a store at random, or take those of a split as the one fold.

        Parameters
        ----------
        store : Store
        subjects : sequence of str
        n_folds : int
        test_split : str, optional
            The new answers are those of the stimuli with this split.
        seed : int

        Raises
        ------
        InputError
            If a stimulus has no answer, the answers are fewer than two folds of two, or the split
            has fewer than two answers, or leaves fewer.
        """
        stimuli = {s: store.trials(s)["stimulus"].to_numpy(str) for s in subjects}
        names = sorted(set(np.concatenate(list(stimuli.values())).tolist()))
        texts = first_answers(store, subjects, names)
        answers = sorted(set(texts))
        number = {text: i for i, text in enumerate(answers)}
        stimulus_texts = np.array([number[text] for text in texts])
        if test_split is None:
            folds = random_folds(len(answers), n_folds, seed)
        else:
            tables = [store.trials(s) for s in subjects]
            tested = {name for t in tables for name in t["stimulus"][t["split"] == test_split]}
            of_split = stimulus_texts[np.isin(names, sorted(tested))]
            folds = split_folds(len(answers), of_split, test_split)
        return cls(stimuli, names, stimulus_texts, answers, folds, test_split is not None)

    @property
    def subjects(self) -> list[str]:
        """The subjects."""
        return list(self.stimuli)

    def hidden(self, fold: int | None) -> int | None:
        """Return the fold whose answers are not shown; None: all answers are."""
        return 0 if fold is None and self.always_new else fold

    def shown(self, fold: int | None) -> np.ndarray:
        """Return the numbers of the answers that models are fitted to; None: without a fold."""
        everything, hidden = np.arange(len(self.answers)), self.hidden(fold)
        return everything if hidden is None else np.setdiff1d(everything, self.folds[hidden])

    def candidates(self, fold: int | None) -> np.ndarray:
        """Return the numbers of the answers that trials are identified among."""
        return self.shown(None) if fold is None else self.folds[fold]

    def stimulus_index(self, subject: str) -> np.ndarray:
        """Return the number of each trial's stimulus."""
        return np.searchsorted(self.names, self.stimuli[subject])

    def rows(self, subject: str, fold: int | None) -> np.ndarray:
        """Return the trials of a subject whose answer is among the candidates."""
        answers = self.stimulus_texts[self.stimulus_index(subject)]
        return np.flatnonzero(np.isin(answers, self.candidates(fold)))

    def evaluation_set(self, fold: int | None) -> EvaluationSet:
        """Return the stimuli with the candidates as answers."""
        candidates = self.candidates(fold)
        kept = np.flatnonzero(np.isin(self.stimulus_texts, candidates))
        return EvaluationSet(
            trial_indices={},
            splits={},
            stimuli=[self.names[i] for i in kept.tolist()],
            references=[[self.answers[self.stimulus_texts[i]]] for i in kept],
            candidates=[self.answers[i] for i in candidates.tolist()],
            target_indices=np.searchsorted(candidates, self.stimulus_texts[kept]),
            question="",
            question_source="",
        )


def random_folds(n_answers: int, n_folds: int, seed: int) -> list[np.ndarray]:
    """Divide answers into folds at random: the numbers of each one's."""
    if n_answers < 2 * n_folds:
        raise InputError(
            f"{n_answers} answers cannot be divided into {n_folds} folds of two or more; "
            "choose fewer folds."
        )
    order = np.random.default_rng(seed).permutation(n_answers)
    return [np.sort(order[i::n_folds]) for i in range(n_folds)]


def split_folds(n_answers: int, of_split: np.ndarray, split: str) -> list[np.ndarray]:
    """Return the one fold of the answers of a split."""
    fold = np.unique(of_split)
    if min(len(fold), n_answers - len(fold)) < 2:
        raise InputError(
            f"{len(fold)} of {n_answers} answers are those of the split {split!r}; "
            "expected at least two, and at least two others."
        )
    return [fold]


def first_answers(store: Store, subjects: Sequence[str], names: Sequence[str]) -> list[str]:
    """Return the first answer about each stimulus; a stimulus without one is an InputError."""
    splits = sorted({str(split) for s in subjects for split in set(store.trials(s)["split"])})
    trials = [TrialDataset(store, subjects, split) for split in splits]
    answers = ConversationDataset(store, trials).first_answer
    missing = [name for name in names if name not in answers]
    if missing:
        raise InputError(
            f"{store.path} has no text about {len(missing)} of {len(names)} stimuli "
            f"(first: {missing[0]}); cross-validation needs one about each."
        )
    return [answers[name] for name in names]
