"""Training batches: which people and trials a step sees, what is dropped, and whose responses are mixed."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mindllm.conversation import Conversation
from mindllm.data.store import Store
from mindllm.errors import InputError


@dataclass(frozen=True)
class Person:
    """A person's share of a batch: which trials (rows of the store) and which voxels were kept."""

    subject: str
    rows: np.ndarray
    keep: np.ndarray


@dataclass(frozen=True)
class Batch:
    """B samples. `people` hold R trials in all; `mix` (B, R) says how much of each trial a sample is, each row summing to one."""

    people: list[Person]
    mix: Tensor
    stimuli: list[str]


class Trials:
    """The trials that training may use: those of `split` of these subjects, about stimuli with a conversation."""

    def __init__(
        self, store: Store, subjects: Sequence[str], split: str = "train", stimuli: set[str] | None = None
    ) -> None:
        told = set(store.conversations["stimulus"])
        parts = []
        for subject in subjects:
            table = store.trials(subject)
            table = table.assign(subject=subject, row=np.arange(len(table)))
            parts.append(
                table[(table["split"] == split) & table["stimulus"].isin(told if stimuli is None else told & stimuli)]
            )
        self.table = pd.concat(parts, ignore_index=True)[["subject", "row", "stimulus"]]
        self.store, self.subjects = store, sorted(set(self.table["subject"]))
        if self.table.empty:
            raise InputError(
                f"no trial is left: {store.path} has no trial of the split {split!r} with a conversation for {', '.join(subjects)}. "
                "Choose other subjects, or prepare the store with captions and another split."
            )

    def __len__(self) -> int:
        return len(self.table)

    def shuffle_pairs(self, seed: int) -> None:
        """Pair each person's trials with the stimuli of that person's other trials, at random."""
        rng = np.random.default_rng(seed)
        self.table["stimulus"] = self.table.groupby("subject")["stimulus"].transform(
            lambda s: rng.permutation(s.to_numpy())
        )

    def batch(
        self, rng: np.random.Generator, size: int, people: int, drop: tuple[float, float], mix: float, disagree: float
    ) -> Batch:
        """Draw `size` samples of at most `people` persons: each one trial or, with probability `mix`, a blend of two of one
        stimulus; plus up to `disagree` times the difference between two trials of another stimulus, which is all noise.

        drop: lowest and highest share of a person's voxels to leave out this time.
        """
        chosen = rng.choice(self.subjects, min(people, len(self.subjects)), replace=False)
        pool = self.table[self.table["subject"].isin(chosen)].reset_index(drop=True)
        same = pool.groupby("stimulus").indices  # stimulus -> places in the pool
        stimuli = pool["stimulus"].to_numpy()

        def other(places: np.ndarray) -> np.ndarray:
            """For each trial a random one of the same stimulus, be it itself."""
            return np.array([rng.choice(same[stimuli[place]]) for place in places])

        one = rng.permutation(len(pool))[:size]
        share = np.where(rng.random(len(one)) < mix, rng.random(len(one)), 1.0)
        noise = rng.integers(len(pool), size=len(one))
        scale = disagree * rng.random(len(one)) / 2**0.5  # a difference has twice the variance of its parts
        used, columns = np.unique([one, other(one), noise, other(noise)], return_inverse=True)
        weights = np.zeros((len(one), len(used)))
        for at, amount in zip(columns.reshape(4, -1), (share, 1 - share, scale, -scale), strict=True):
            np.add.at(weights, (np.arange(len(one)), at), amount)
        read = weights.any(0)
        persons = []
        for subject, group in pool.loc[used[read]].groupby("subject", sort=False):
            count = len(self.store.space(str(subject)))
            kept = max(1, round(count * (1 - rng.uniform(*drop))))
            persons.append(Person(str(subject), group["row"].to_numpy(), np.sort(rng.permutation(count)[:kept])))
        return Batch(persons, torch.from_numpy(weights[:, read]).float(), stimuli[one].tolist())

    def whole(self, size: int) -> Iterator[Batch]:
        """All trials in order, every voxel kept and nothing mixed, at most `size` trials of one person at a time."""
        for subject, group in self.table.groupby("subject"):
            keep = np.arange(len(self.store.space(str(subject))))
            for start in range(0, len(group), size):
                part = group.iloc[start : start + size]
                people = [Person(str(subject), part["row"].to_numpy(), keep)]
                yield Batch(people, torch.eye(len(part)), part["stimulus"].tolist())


class Words:
    """What is said about the stimuli: conversations, and the texts (all answers of a conversation) that codes are aligned with."""

    def __init__(self, store: Store, trials: Sequence[Trials]) -> None:
        shown = {stimulus for some in trials for stimulus in some.table["stimulus"]}
        table = store.conversations[store.conversations["stimulus"].isin(shown)]
        said = [" ".join(t["content"] for t in turns if t["role"] == "assistant") for turns in table["turns"]]
        self.texts = sorted(set(said))
        self.sources = sorted(set(table["source"]))
        number = {text: i for i, text in enumerate(self.texts)}
        self.turns: dict[str, list[Conversation]] = defaultdict(list)
        self.about: dict[str, list[int]] = defaultdict(list)
        self.first: dict[str, str] = {}
        for stimulus, turns, text, answers in zip(
            table["stimulus"], table["turns"], said, table["answers"], strict=True
        ):
            self.turns[stimulus].append(turns)
            self.about[stimulus].append(number[text])
            self.first.setdefault(stimulus, answers[0])

    def answers(self, trials: Trials, count: int) -> list[int]:
        """Numbers of the first texts about these trials' stimuli, each once; `count` of them, evenly spread, if there are more."""
        first = sorted({self.about[stimulus][0] for stimulus in set(trials.table["stimulus"])})
        return [first[i * len(first) // count] for i in range(count)] if len(first) > count else first

    def conversations(self, stimuli: Sequence[str], rng: np.random.Generator | None) -> list[Conversation]:
        """One conversation per stimulus: drawn with `rng`, or the first."""
        return [self.turns[s][int(rng.integers(len(self.turns[s]))) if rng else 0] for s in stimuli]

    def candidates(self, stimuli: Sequence[str], limit: int) -> tuple[Tensor, Tensor]:
        """Numbers (C,) of candidate texts, and (B, C) which of them are about each stimulus.

        All texts, where there are at most `limit`, else those about these stimuli.
        """
        some = (
            range(len(self.texts)) if len(self.texts) <= limit else sorted({n for s in stimuli for n in self.about[s]})
        )
        place = {n: i for i, n in enumerate(some)}
        right = torch.zeros(len(stimuli), len(place))
        for row, stimulus in enumerate(stimuli):
            right[row, [place[n] for n in self.about[stimulus]]] = 1
        return torch.tensor(list(some)), right
