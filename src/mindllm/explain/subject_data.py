"""Trials of a subject to explain, of a store or of a scan, with the text of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from mindllm.data.store import Store
from mindllm.explain.text_maps import TrialTexts
from mindllm.fmri.masker import VoxelMasker
from mindllm.fmri.nifti import Image
from mindllm.model.decode import read_betas
from mindllm.model.modeling import MindLLM
from mindllm.model.subject_alignment import MIN_ALIGNMENT_TRIALS
from mindllm.utils.errors import InputError


@dataclass(frozen=True)
class SubjectData:
    """Trials of one subject.

    Parameters
    ----------
    masker : VoxelMasker
    betas : ndarray of shape (n_trials, n_voxels)
        Standardized, of all trials that have a text.
    texts : list of str
        Text of each trial.
    stimuli : ndarray of str, shape (n_trials,)
    numbers : ndarray of int, shape (n_trials,)
        Number of each trial in the store or scan.
    chosen : ndarray of int, shape (n_chosen,)
        Rows of the trials to explain.
    texts_are_known : bool
        Whether the texts are those of the stimuli; else the model chose them by the trials.
    """

    masker: VoxelMasker
    betas: np.ndarray
    texts: list[str]
    stimuli: np.ndarray
    numbers: np.ndarray
    chosen: np.ndarray
    texts_are_known: bool

    @cached_property
    def trial_texts(self) -> TrialTexts:
        """Texts as numbers, those of the chosen trials first."""
        texts = sorted(set(self.texts))
        numbers = np.array([texts.index(text) for text in self.texts])
        others = np.setdiff1d(np.arange(len(numbers)), self.chosen)
        pool = numbers[np.concatenate([self.chosen, others])]
        return TrialTexts(texts, numbers[self.chosen], pool, self.stimuli[self.chosen])

    @property
    def alignment_betas(self) -> np.ndarray | None:
        """Trials that the subject is aligned by; None: they are too few."""
        return self.betas if len(self.betas) >= MIN_ALIGNMENT_TRIALS else None


def choose_rows(numbers: np.ndarray, trials: Sequence[int] | None, subject: str) -> np.ndarray:
    """Rows of the trials to explain; InputError for one that is not there."""
    if trials is None:
        return np.arange(len(numbers))
    rows = {int(number): row for row, number in enumerate(numbers)}
    missing = [trial for trial in trials if trial not in rows]
    if missing:
        raise InputError(
            f"{subject} has no trial {missing[0]} with a text; it has {len(rows)} trials, "
            f"{min(rows)} to {max(rows)}. Choose others (--trials)."
        )
    return np.array([rows[trial] for trial in trials])


def read_store_subject(
    store: Store, subject: str, trials: Sequence[int] | None = None
) -> SubjectData:
    """Read the trials of a subject whose stimuli have a text.

    Parameters
    ----------
    store : Store
    subject : str
    trials : sequence of int, optional
        Trials to explain, from 0; all by default.

    Returns
    -------
    SubjectData

    Raises
    ------
    InputError
        If the subject or a trial is not in the store, or has no text.
    """
    store.select_subjects([subject])
    answers = first_answers(store)
    stimuli = store.trials(subject)["stimulus"].to_numpy(str)
    numbers = np.flatnonzero([stimulus in answers for stimulus in stimuli])
    if not len(numbers):
        raise InputError(
            f"{store.path}: no trial of {subject} has a text about its stimulus. Add captions: "
            "mindllm prepare instructions."
        )
    return SubjectData(
        masker=store.masker(subject),
        betas=store.betas(subject, numbers, standardize=True),
        texts=[answers[stimulus] for stimulus in stimuli[numbers]],
        stimuli=stimuli[numbers],
        numbers=numbers,
        chosen=choose_rows(numbers, trials, subject),
        texts_are_known=True,
    )


def first_answers(store: Store) -> dict[str, str]:
    """First answer about each stimulus, of the store's first source about stimuli."""
    table = store.conversations
    table = table[table["stimulus"].notna()]
    if not len(table):
        return {}
    table = table[table["source"] == table["source"].iloc[0]]
    answers: dict[str, str] = {}
    for stimulus, accepted in zip(table["stimulus"], table["answers"], strict=True):
        answers.setdefault(str(stimulus), str(accepted[0]))
    return answers


def read_scan_subject(
    model: MindLLM,
    img: Image,
    masker: VoxelMasker,
    trials: Sequence[int] | None = None,
    texts: Sequence[str] = (),
    standardized: bool = False,
) -> SubjectData:
    """Read the volumes of a scan; the text of each is the one of most evidence.

    Parameters
    ----------
    model : MindLLM
        With an encoding model.
    img : 3-D or 4-D image, or path
    masker : VoxelMasker
    trials : sequence of int, optional
        Volumes to explain, from 0; all by default.
    texts : sequence of str
        To choose among; by default those that the model was trained on.
    standardized : bool
        Whether the image holds standardized betas.

    Returns
    -------
    SubjectData

    Raises
    ------
    InputError
        If the image cannot be read, or there are no texts.
    """
    answers: Mapping[str, object] = model.model_card.answers or {}
    candidates = list(texts) or list(answers)
    if not candidates:
        raise InputError(
            "the model does not name the texts that it was trained on: name texts to choose among "
            "(--text)."
        )
    betas = read_betas(masker, img, None, None, standardized)
    aligned_by = betas if len(betas) >= MIN_ALIGNMENT_TRIALS else None
    best = model.evidence(betas, masker, candidates, aligned_by).argmax(1)
    numbers = np.arange(len(betas))
    return SubjectData(
        masker=masker,
        betas=betas,
        texts=[candidates[i] for i in best.tolist()],
        stimuli=numbers.astype(str),
        numbers=numbers,
        chosen=choose_rows(numbers, trials, masker.subject),
        texts_are_known=False,
    )
