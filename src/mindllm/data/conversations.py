"""Conversations about stimuli or trials, and which of them are taken."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from mindllm.data.dataset import TrialDataset, trial_keys
from mindllm.data.sampler import TrialBatch, TrialKey
from mindllm.data.store import Store
from mindllm.language.conversation import Conversation
from mindllm.utils.errors import InputError


class ConversationDataset:
    """What is said about the trials: conversations of every source; and the texts that codes are aligned with.

    Texts: what the assistant says in the conversations of the store's first source about stimuli.  weights: source -> how
    often it is drawn, relative to the others that tell of a sample; None: all alike.
    """

    def __init__(
        self,
        store: Store,
        trials: Sequence[TrialDataset],
        weights: Mapping[str, float] | None = None,
    ) -> None:
        table = store.conversations
        known = sorted(set(table["source"]))
        if unknown := sorted(set(weights or {}) - set(known)):
            raise InputError(
                f"{store.path} has no source {', '.join(unknown)}; it holds {', '.join(known) or 'none'}."
            )
        shown = {stimulus for some in trials for stimulus in some.table["stimulus"]}
        single = {trial for some in trials for trial in trial_keys(some.table)}
        mine = table["stimulus"].isin(list(shown)).to_numpy(copy=True)
        bare = np.flatnonzero(table["stimulus"].isna())
        whose = list(zip(table["subject"].iloc[bare], table["trial_index"].iloc[bare], strict=True))
        mine[bare] = [trial in single for trial in whose]
        if weights:
            mine &= table["source"].isin(list(weights)).to_numpy()
        self.table = table[mine].reset_index(drop=True)
        self.sources = sorted(set(self.table["source"]))
        self.weights = {source: (weights or {}).get(source, 1.0) for source in self.sources}
        self.rows: dict[str | TrialKey, dict[str, list[int]]] = defaultdict(
            lambda: defaultdict(list)
        )
        of_trial = zip(self.table["subject"], self.table["trial_index"], strict=True)
        for row, (stimulus, trial, source) in enumerate(
            zip(self.table["stimulus"], of_trial, self.table["source"], strict=True)
        ):
            self.rows[stimulus if isinstance(stimulus, str) else trial][source].append(row)
        told = self.table[self.table["stimulus"].notna()]
        told = told[told["source"] == told["source"].iloc[0]] if len(told) else told
        said = [
            " ".join(t["content"] for t in turns if t["role"] == "assistant")
            for turns in told["turns"]
        ]
        self.texts = sorted(set(said))
        number = {text: i for i, text in enumerate(self.texts)}
        self.text_indices: dict[str, list[int]] = defaultdict(list)
        self.first_answer: dict[str, str] = {}
        for stimulus, text, answers in zip(told["stimulus"], said, told["answers"], strict=True):
            self.text_indices[stimulus].append(number[text])
            self.first_answer.setdefault(stimulus, answers[0])

    def memory_texts(self, trials: TrialDataset, count: int) -> list[int]:
        """Numbers of the first texts about these trials' stimuli, each once; `count` of them, evenly spread, if there are more."""
        first = sorted(
            {
                self.text_indices[stimulus][0]
                for stimulus in set(trials.table["stimulus"])
                if stimulus in self.text_indices
            }
        )
        return (
            [first[i * len(first) // count] for i in range(count)] if len(first) > count else first
        )

    def sample_conversations(
        self, batch: TrialBatch, rng: np.random.Generator | None
    ) -> list[Conversation]:
        """One conversation per sample: a source is drawn with `rng`, then a conversation of it; without, the first ones."""
        out = []
        for stimulus, trial in zip(batch.stimuli, batch.source_trials, strict=True):
            told = {**self.rows.get(stimulus, {}), **(self.rows.get(trial, {}) if trial else {})}
            sources = list(told)
            drawn = 0
            if rng and len(sources) > 1:
                weights = np.array([self.weights[source] for source in sources])
                drawn = int(rng.choice(len(sources), p=weights / weights.sum()))
            rows = told[sources[drawn]]
            out.append(self.table["turns"].iloc[rows[int(rng.integers(len(rows))) if rng else 0]])
        return out

    def questions(self, stimuli: Iterable[str]) -> set[str]:
        """What is asked first in the conversations about these stimuli."""
        rows = [
            row
            for stimulus in stimuli
            for some in self.rows.get(stimulus, {}).values()
            for row in some
        ]
        return {self.table["turns"].iloc[row][0]["content"] for row in rows}

    def candidate_texts(self, stimuli: Sequence[str], limit: int) -> tuple[Tensor, Tensor]:
        """Numbers (C,) of candidate texts, and (B, C) which of them are about each stimulus.

        All texts, where there are at most `limit`, else those about these stimuli.
        """
        some = (
            range(len(self.texts))
            if len(self.texts) <= limit
            else sorted({n for s in stimuli for n in self.text_indices[s]})
        )
        place = {n: i for i, n in enumerate(some)}
        right = torch.zeros(len(stimuli), len(place))
        for row, stimulus in enumerate(stimuli):
            right[row, [place[n] for n in self.text_indices[stimulus]]] = 1
        return torch.tensor(list(some)), right
