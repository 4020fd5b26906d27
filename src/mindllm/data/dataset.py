"""TrialDataset: the trials of a split that have text, as a torch Dataset."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pandas as pd
import torch
from torch.utils.data import Dataset

from mindllm.data.collate import TrialSample, collate_samples
from mindllm.data.conversations import ConversationDataset
from mindllm.data.store import Store
from mindllm.utils.errors import InputError
from mindllm.utils.sorting import natural_sorted

if TYPE_CHECKING:
    from mindllm.data.collate import Processor


@dataclass(frozen=True)
class ConversationOptions:
    """Which conversation a sample gets: the first one, or one drawn at random."""

    sources: tuple[str, ...] = ()
    draw: bool = False


class TrialDataset(Dataset[TrialSample]):
    """Trials of one split that a conversation belongs to.

    Map style: ``dataset[i]`` reads one trial from the memory-mapped betas, so that an ordinary
    `DataLoader` with workers holds a batch at a time. Pickling it pickles the store's path alone.

    Parameters
    ----------
    store : Store
    subjects : sequence of str, optional
        All subjects by default.
    split : str
        "train", "val" or "test".
    sources : sequence of str, optional
        Sources of conversations; all by default.
    processor : MindLLMProcessor, optional
        ``model.processor``; `collate_fn` needs it.
    draw_conversations : bool
        Draw a source and one of its conversations at random for each sample, from torch's random
        state, instead of taking the first.

    Attributes
    ----------
    table : DataFrame
        One row per trial: subject, row (trial index), stimulus, about (the trial whose
        conversations it has).

    Raises
    ------
    InputError
        If no trial is left.

    Examples
    --------
    >>> from torch.utils.data import DataLoader
    >>> dataset = TrialDataset(store, processor=model.processor)  # doctest: +SKIP
    >>> loader = DataLoader(dataset, 16, collate_fn=dataset.collate_fn)  # doctest: +SKIP
    >>> for batch in loader:  # doctest: +SKIP
    ...     model(**batch).loss.backward()
    """

    def __init__(
        self,
        store: Store,
        subjects: Sequence[str] | None = None,
        split: str = "train",
        sources: Sequence[str] | None = None,
        processor: Processor | None = None,
        draw_conversations: bool = False,
    ) -> None:
        self.store, self.processor, self.split = store, processor, split
        self._conversation_options = ConversationOptions(tuple(sources or ()), draw_conversations)
        names = list(subjects) if subjects is not None else store.subjects
        self.table = select_trials(store, names, split, sources)
        self.subjects = natural_sorted(set(self.table["subject"]))
        if self.table.empty:
            of_sources = f" of {', '.join(sources)}" if sources else ""
            raise InputError(
                f"no trial is left: {store.path} has no trial of the split {split!r} with a "
                f"conversation{of_sources} for {', '.join(names)}. Choose other subjects or "
                "sources, or prepare the store with captions and another split."
            )

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> TrialSample:
        """Read one trial.

        Parameters
        ----------
        index : int

        Returns
        -------
        TrialSample
            Standardized betas, float32 (n_voxels,), and a conversation about the trial.
        """
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[TrialSample]:
        """Read several trials, those of a subject at once: a `DataLoader` reads batches so.

        Parameters
        ----------
        indices : sequence of int

        Returns
        -------
        list of TrialSample
            In the order of the indices.
        """
        rows = self.table.iloc[list(indices)]
        betas: dict[int, np.ndarray] = {}
        subjects = rows["subject"].to_numpy()
        for subject in dict.fromkeys(subjects):
            positions = np.flatnonzero(subjects == subject)
            trials = rows["row"].to_numpy()[positions]
            values = self.store.betas(str(subject), trials, standardize=True)
            betas |= zip(positions.tolist(), values, strict=True)
        columns = (rows[name].tolist() for name in ("subject", "row", "stimulus", "about"))
        return [
            TrialSample(
                subject=subject,
                trial_index=trial,
                stimulus=stimulus,
                betas=betas[position],
                conversation=self.conversations.draw(stimulus, (subject, about), self._draw_rng()),
            )
            for position, (subject, trial, stimulus, about) in enumerate(zip(*columns, strict=True))
        ]

    def _draw_rng(self) -> np.random.Generator | None:
        """Random generator of a sample's conversation; None: it has the first one."""
        if not self._conversation_options.draw:
            return None
        return np.random.default_rng(int(torch.randint(2**63 - 1, ())))

    @cached_property
    def conversations(self) -> ConversationDataset:
        """The conversations about these trials."""
        weights = dict.fromkeys(self._conversation_options.sources, 1.0)
        return ConversationDataset(self.store, [self], weights or None)

    def collate_fn(self, samples: Sequence[TrialSample]) -> dict[str, Any]:
        """Put samples together for `MindLLM.forward`.

        Parameters
        ----------
        samples : sequence of TrialSample

        Returns
        -------
        dict
            input_ids, attention_mask, labels, fmri_token_positions: Tensor; fmri: FMRIInputs.

        Raises
        ------
        InputError
            If the dataset has no processor.
        """
        if self.processor is None:
            raise InputError(
                "this TrialDataset has no processor to tokenize conversations with. "
                "Make it with TrialDataset(store, processor=model.processor)."
            )
        return collate_samples(samples, self.store, self.processor)

    def filter_stimuli(self, stimuli: Collection[str]) -> Self:
        """Keep the trials of some stimuli.

        Parameters
        ----------
        stimuli : collection of str

        Returns
        -------
        TrialDataset
        """
        kept = self.table["stimulus"].isin(list(stimuli))
        if kept.all():
            return self
        subset = copy(self)
        subset.table = self.table[kept].reset_index(drop=True)
        subset.subjects = natural_sorted(set(subset.table["subject"]))
        for name in ("stimulus_index", "conversations"):
            subset.__dict__.pop(name, None)
        return subset

    def permute_pairs(self, seed: int) -> None:
        """Give each trial the text of another trial of its subject: a control of training.

        Parameters
        ----------
        seed : int
            Of the permutation.
        """
        rng = np.random.default_rng(seed)
        columns = ["stimulus", "about"]
        for rows in self.table.groupby("subject").indices.values():
            permuted = self.table.loc[rng.permutation(rows), columns].to_numpy()
            self.table.loc[rows, columns] = permuted

    @cached_property
    def stimulus_index(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Index of the table by stimulus.

        Returns
        -------
        order : ndarray of shape (n_trials,)
            Rows sorted by stimulus.
        numbers : ndarray of shape (n_trials,)
            Number of each row's stimulus.
        starts : ndarray of shape (n_stimuli + 1,)
            Where each number begins in `order`.
        """
        numbers, _ = pd.factorize(self.table["stimulus"])
        order = np.argsort(numbers, kind="stable")
        return order, numbers, np.searchsorted(numbers[order], np.arange(numbers.max() + 2))

    def __getstate__(self) -> dict[str, object]:
        """What is pickled for a worker: not the conversations, which it reads again."""
        return {k: v for k, v in self.__dict__.items() if k != "conversations"}


def select_trials(
    store: Store, subjects: Sequence[str], split: str, sources: Sequence[str] | None
) -> pd.DataFrame:
    """Trials of a split that some conversation belongs to: subject, row, stimulus, about."""
    table = store.conversations
    table = table[table["source"].isin(list(sources))] if sources else table
    of_stimuli = table["stimulus"].dropna().unique()
    of_trials = table[table["stimulus"].isna()].groupby("subject")["trial_index"].agg(set).to_dict()
    parts = []
    for subject in subjects:
        trials = store.trials(subject)
        trials = trials.assign(subject=subject, row=np.arange(len(trials)))
        has_text = trials["stimulus"].isin(of_stimuli)
        if subject in of_trials:
            has_text |= trials["row"].isin(of_trials[subject])
        parts.append(trials[(trials["split"] == split) & has_text])
    selected = pd.concat(parts, ignore_index=True)[["subject", "row", "stimulus"]]
    return selected.assign(about=selected["row"])
