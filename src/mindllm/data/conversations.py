"""Conversations about trials, drawn by source, and the texts that trials are aligned with."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mindllm.data.sampler import TrialBatch, TrialKey, trial_keys
from mindllm.data.store import Store
from mindllm.language.conversation import Conversation
from mindllm.utils.errors import InputError

if TYPE_CHECKING:
    from mindllm.data.dataset import TrialDataset

RowsBySource = dict[str, list[int]]


class ConversationDataset:
    """The conversations about some trials.

    Parameters
    ----------
    store : Store
    trials : sequence of TrialDataset
        Conversations about other stimuli and trials are left out.
    weights : mapping from str to float, optional
        Source to weight: for a sample, a source is drawn by weight among those that have a
        conversation about it, then one of its conversations. All sources alike by default.

    Attributes
    ----------
    texts : list of str
        Distinct texts about stimuli, of the store's first source about stimuli: what fMRI
        embeddings are aligned with.
    text_indices : dict of str to list of int
        Stimulus to indices of its texts.
    first_answer : dict of str to str
        Stimulus to its first accepted answer.

    Raises
    ------
    InputError
        If a source is not in the store.
    """

    def __init__(
        self,
        store: Store,
        trials: Sequence[TrialDataset],
        weights: Mapping[str, float] | None = None,
    ) -> None:
        available = sorted(set(store.conversations["source"]))
        if unknown := sorted(set(weights or {}) - set(available)):
            raise InputError(
                f"{store.path} has no source {', '.join(unknown)}; "
                f"it holds {', '.join(available) or 'none'}."
            )
        self.table = select_conversations(store.conversations, trials, list(weights or ()))
        self.sources = sorted(set(self.table["source"]))
        self.weights = {source: (weights or {}).get(source, 1.0) for source in self.sources}
        self.rows = index_by_topic(self.table)
        about_stimuli = self.table[self.table["stimulus"].notna()]
        if len(about_stimuli):
            first_source = about_stimuli["source"].iloc[0]
            about_stimuli = about_stimuli[about_stimuli["source"] == first_source]
        texts = [assistant_text(turns) for turns in about_stimuli["turns"]]
        self.texts = sorted(set(texts))
        number = {text: i for i, text in enumerate(self.texts)}
        self.text_indices: dict[str, list[int]] = defaultdict(list)
        self.first_answer: dict[str, str] = {}
        rows = zip(about_stimuli["stimulus"], texts, about_stimuli["answers"], strict=True)
        for stimulus, text, answers in rows:
            self.text_indices[stimulus].append(number[text])
            self.first_answer.setdefault(stimulus, answers[0])

    def memory_texts(self, trials: TrialDataset, count: int) -> list[int]:
        """Indices of the first texts about the trials' stimuli, at most `count`, evenly spread."""
        stimuli = set(trials.table["stimulus"])
        first = sorted({self.text_indices[s][0] for s in stimuli if s in self.text_indices})
        if len(first) <= count:
            return first
        return [first[i * len(first) // count] for i in range(count)]

    def draw(
        self, stimulus: str, trial: TrialKey | None, rng: np.random.Generator | None = None
    ) -> Conversation:
        """A conversation about a stimulus or trial: drawn by source with `rng`, else the first."""
        by_source = {
            **self.rows.get(stimulus, {}),
            **(self.rows.get(trial, {}) if trial else {}),
        }
        sources = list(by_source)
        source = 0
        if rng and len(sources) > 1:
            weights = np.array([self.weights[name] for name in sources])
            source = int(rng.choice(len(sources), p=weights / weights.sum()))
        rows = by_source[sources[source]]
        return self.table["turns"].iloc[rows[int(rng.integers(len(rows))) if rng else 0]]

    def sample_conversations(
        self, batch: TrialBatch, rng: np.random.Generator | None
    ) -> list[Conversation]:
        """One conversation per sample of a batch; see `draw`."""
        pairs = zip(batch.stimuli, batch.source_trials, strict=True)
        return [self.draw(stimulus, trial, rng) for stimulus, trial in pairs]

    def questions(self, stimuli: Iterable[str]) -> set[str]:
        """The first user turns of the conversations about these stimuli."""
        rows = [
            row
            for stimulus in stimuli
            for of_source in self.rows.get(stimulus, {}).values()
            for row in of_source
        ]
        return {self.table["turns"].iloc[row][0]["content"] for row in rows}

    def candidate_texts(self, stimuli: Sequence[str], limit: int) -> tuple[Tensor, Tensor]:
        """Texts to tell a batch's stimuli apart from.

        Parameters
        ----------
        stimuli : sequence of str
            Stimulus of each sample.
        limit : int
            All texts if there are at most so many, else those about these stimuli.

        Returns
        -------
        indices : Tensor of shape (n_candidates,)
            Indices into `texts`.
        positive_mask : Tensor of shape (n_samples, n_candidates)
            1 where a text is about the sample's stimulus, else 0.
        """
        if len(self.texts) <= limit:
            indices = list(range(len(self.texts)))
        else:
            indices = sorted({index for s in stimuli for index in self.text_indices[s]})
        column = {index: i for i, index in enumerate(indices)}
        positive_mask = torch.zeros(len(stimuli), len(indices))
        for row, stimulus in enumerate(stimuli):
            positive_mask[row, [column[index] for index in self.text_indices[stimulus]]] = 1
        return torch.tensor(indices), positive_mask


def select_conversations(
    table: pd.DataFrame, trials: Sequence[TrialDataset], sources: Sequence[str]
) -> pd.DataFrame:
    """The conversations about the trials' stimuli, or about single ones of the trials."""
    stimuli = {stimulus for dataset in trials for stimulus in dataset.table["stimulus"]}
    keys = {key for dataset in trials for key in trial_keys(dataset.table)}
    selected = table["stimulus"].isin(list(stimuli)).to_numpy(copy=True)
    single = np.flatnonzero(table["stimulus"].isna())
    of_trials = zip(table["subject"].iloc[single], table["trial_index"].iloc[single], strict=True)
    selected[single] = [key in keys for key in of_trials]
    if sources:
        selected &= table["source"].isin(list(sources)).to_numpy()
    return table[selected].reset_index(drop=True)


def index_by_topic(table: pd.DataFrame) -> dict[str | TrialKey, RowsBySource]:
    """Stimulus, or (subject, trial index), to rows of the table by source."""
    rows: dict[str | TrialKey, RowsBySource] = defaultdict(lambda: defaultdict(list))
    keys = zip(table["subject"], table["trial_index"], strict=True)
    columns = zip(table["stimulus"], keys, table["source"], strict=True)
    for row, (stimulus, key, source) in enumerate(columns):
        rows[stimulus if isinstance(stimulus, str) else key][source].append(row)
    return {topic: dict(by_source) for topic, by_source in rows.items()}


def assistant_text(turns: Conversation) -> str:
    """Everything the assistant says in a conversation."""
    return " ".join(turn["content"] for turn in turns if turn["role"] == "assistant")
