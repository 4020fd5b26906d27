"""Subjects and trials of a store, without what was shown unless it may be told."""

from functools import cache

import numpy as np
import pandas as pd

from mindllm.data.store import Store
from mindllm.fmri.masker import VoxelMasker
from mindllm.serve.api_errors import not_found
from mindllm.serve.decoder import FMRISource
from mindllm.serve.schemas import RegionInfo, SubjectInfo, TrialInfo


class StoreSubjects:
    """Subjects of a store.

    Parameters
    ----------
    store : Store or None
        None: there is no store, and no subject.
    training_subjects : list of str or None
        That the model was trained on; None: not known.
    show_answers : bool
        Whether stimuli and texts of trials are shown.
    """

    def __init__(
        self, store: Store | None, training_subjects: list[str] | None, show_answers: bool
    ) -> None:
        self.store, self.show_answers = store, show_answers
        self.training_subjects = training_subjects

    def names(self) -> list[str]:
        """Labels of the subjects."""
        return [] if self.store is None else self.store.subjects

    def check_subject(self, subject: str, param: str | None = None) -> Store:
        """The store, if it holds a subject.

        Raises
        ------
        APIError
            If it does not.
        """
        if self.store is None:
            raise not_found(
                "the server was started without a store, so it has no subjects.",
                "subject_not_found",
                param,
            )
        if subject not in self.store.subjects:
            raise not_found("the store has no such subject.", "subject_not_found", param)
        return self.store

    def masker(self, subject: str) -> VoxelMasker:
        """Voxels of a subject."""
        return self.check_subject(subject).masker(subject)

    def info(self, subject: str) -> SubjectInfo:
        """Describe a subject."""
        store = self.check_subject(subject)
        masker, trained = store.masker(subject), self.training_subjects
        return SubjectInfo(
            id=subject,
            n_trials=len(store.trials(subject)),
            n_voxels=len(masker),
            voxel_size_mm=[
                round(float(mm), 4) for mm in np.linalg.norm(masker.affine[:3, :3], axis=0)
            ],
            in_training=None if trained is None else subject in trained,
            regions=describe_regions(masker),
        )

    def trials(
        self, subject: str, offset: int, limit: int, split: str | None
    ) -> tuple[list[TrialInfo], int]:
        """Some trials of a subject, and the number of all that were asked for."""
        table = self.check_subject(subject).trials(subject)
        rows = np.arange(len(table)) if split is None else np.flatnonzero(table["split"] == split)
        shown = rows[offset : offset + limit]
        answers = self.answers(subject) if self.show_answers else {}
        return [self.describe_trial(table, int(row), answers) for row in shown], len(rows)

    def describe_trial(
        self, table: pd.DataFrame, row: int, answers: dict[str, list[str]]
    ) -> TrialInfo:
        """Describe a trial."""
        trial = table.iloc[row]
        repetition = trial.get("repetition")
        run = trial.get("run")
        stimulus = str(trial["stimulus"])
        return TrialInfo(
            trial=row,
            session=str(trial["session"]),
            run=None if run is None or pd.isna(run) else str(run),
            repetition=None if repetition is None or pd.isna(repetition) else int(repetition),
            split=str(trial["split"]),
            stimulus=stimulus if self.show_answers else None,
            answers=answers.get(stimulus) if self.show_answers else None,
        )

    @cache  # noqa: B019 - lives as long as the server
    def answers(self, subject: str) -> dict[str, list[str]]:
        """Accepted answers of each stimulus of a subject."""
        table = self.check_subject(subject).conversations
        of_stimuli = table[table["stimulus"].notna()]
        merged: dict[str, list[str]] = {}
        for stimulus, answers in zip(of_stimuli["stimulus"], of_stimuli["answers"], strict=True):
            merged.setdefault(str(stimulus), []).extend(map(str, answers))
        return {stimulus: list(dict.fromkeys(texts)) for stimulus, texts in merged.items()}

    @cache  # noqa: B019
    def _stimuli(self, subject: str) -> np.ndarray:
        trials = self.check_subject(subject).trials(subject)
        return trials["stimulus"].astype(str).to_numpy(dtype=object)

    def source(self, subject: str, trial: int, param: str | None = None) -> FMRISource:
        """A trial as it is decoded.

        Raises
        ------
        APIError
            If there is none.
        """
        store = self.check_subject(subject, param)
        stimuli = self._stimuli(subject)
        if trial >= len(stimuli):
            raise not_found(
                f"{subject} has {len(stimuli)} trials, from 0 to {len(stimuli) - 1}.",
                "trial_not_found",
                param,
            )
        return FMRISource(
            f"subject {subject}",
            trial,
            len(stimuli),
            store.masker(subject),
            lambda rows: store.betas(subject, rows, standardize=True),
            subject,
            stimuli=stimuli,
        )


def describe_regions(masker: VoxelMasker) -> list[RegionInfo]:
    """Parcels in which a subject has voxels, and how many."""
    regions = []
    for atlas, labels in masker.parcel_labels.items():
        numbers, counts = np.unique(labels[labels > 0], return_counts=True)
        regions += [
            RegionInfo(atlas=atlas, parcel=masker.parcel_names[atlas][number], n_voxels=count)
            for number, count in zip(numbers.tolist(), counts.tolist(), strict=True)
        ]
    return regions
