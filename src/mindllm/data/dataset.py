"""Training batches: which people and trials a step sees, what is dropped, whose responses are mixed, and what is said of them."""

from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from functools import cached_property
from typing import Self

import numpy as np
import pandas as pd
import torch

from mindllm.data.sampler import SubjectBatch, TrialBatch, TrialKey
from mindllm.data.store import Store
from mindllm.utils.errors import InputError


class TrialDataset:
    """The trials that training may use: those of `split` of these subjects, of which some conversation tells.

    sources: whose conversations count; None: all.
    """

    def __init__(
        self,
        store: Store,
        subjects: Sequence[str],
        split: str = "train",
        sources: Sequence[str] | None = None,
    ) -> None:
        table = store.conversations
        table = table[table["source"].isin(list(sources))] if sources else table
        told = table["stimulus"].dropna().unique()
        single = (
            table[table["stimulus"].isna()].groupby("subject")["trial_index"].agg(set).to_dict()
        )
        parts = []
        for subject in subjects:
            trials = store.trials(subject)
            trials = trials.assign(subject=subject, row=np.arange(len(trials)))
            known = trials["stimulus"].isin(told)
            if subject in single:
                known |= trials["row"].isin(single[subject])
            parts.append(trials[(trials["split"] == split) & known])
        self.table = pd.concat(parts, ignore_index=True)[["subject", "row", "stimulus"]]
        self.table["about"] = self.table[
            "row"
        ]  # the trial whose conversations are its own: another one, when shuffled
        self.store, self.subjects = store, sorted(set(self.table["subject"]))
        if self.table.empty:
            whose = f" of {', '.join(sources)}" if sources else ""
            raise InputError(
                f"no trial is left: {store.path} has no trial of the split {split!r} with a conversation{whose} for {', '.join(subjects)}. "
                "Choose other subjects or sources, or prepare the store with captions and another split."
            )

    def __len__(self) -> int:
        return len(self.table)

    def filter_stimuli(self, stimuli: Mapping[str, object]) -> Self:
        """Those of these trials that show one of these stimuli."""
        known = self.table["stimulus"].isin(list(stimuli))
        if known.all():
            return self
        some = copy(self)
        some.table = self.table[known].reset_index(drop=True)
        some.subjects = sorted(set(some.table["subject"]))
        some.__dict__.pop("by_stimulus", None)
        return some

    def permute_pairs(self, seed: int) -> None:
        """Pair each person's trials with what is told of that person's other trials, at random."""
        rng = np.random.default_rng(seed)
        places = self.table.groupby("subject").indices
        for subject in places:
            mine, others = places[subject], rng.permutation(places[subject])
            self.table.loc[mine, ["stimulus", "about"]] = self.table.loc[
                others, ["stimulus", "about"]
            ].to_numpy()

    @cached_property
    def by_stimulus(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The table's places (n,) sorted by stimulus; each place's stimulus as a number (n,); where each number begins."""
        numbers, _ = pd.factorize(self.table["stimulus"])
        order = np.argsort(numbers, kind="stable")
        return order, numbers, np.searchsorted(numbers[order], np.arange(numbers.max() + 2))

    def sample_batch(
        self,
        rng: np.random.Generator,
        size: int,
        num_subjects: int,
        voxel_dropout: tuple[float, float],
        mixup_prob: float,
        repetition_noise_scale: float,
    ) -> TrialBatch:
        """Draw `size` samples of at most `people` persons: each one trial or, with probability `mix`, a blend of two of one
        stimulus; plus up to `disagree` times the difference between two trials of another stimulus, which is all noise.

        drop: lowest and highest share of a person's voxels to leave out this time.
        """
        chosen = rng.choice(self.subjects, min(num_subjects, len(self.subjects)), replace=False)
        taken = self.table["subject"].isin(chosen).to_numpy()
        pool = np.flatnonzero(taken)
        order, numbers, begins = self.by_stimulus

        def other(places: np.ndarray) -> np.ndarray:
            """For each trial a random one of the same stimulus, be it itself."""
            same = [order[begins[n] : begins[n + 1]] for n in numbers[places]]
            return np.array([rng.choice(some[taken[some]]) for some in same])

        one = pool[rng.permutation(len(pool))[:size]]
        share = np.where(rng.random(len(one)) < mixup_prob, rng.random(len(one)), 1.0)
        noise = pool[rng.integers(len(pool), size=len(one))]
        scale = (
            repetition_noise_scale * rng.random(len(one)) / 2**0.5
        )  # a difference has twice the variance of its parts
        used, columns = np.unique([one, other(one), noise, other(noise)], return_inverse=True)
        weights = np.zeros((len(one), len(used)))
        for at, amount in zip(
            columns.reshape(4, -1), (share, 1 - share, scale, -scale), strict=True
        ):
            np.add.at(weights, (np.arange(len(one)), at), amount)
        read = weights.any(0)
        persons = []
        for subject, group in self.table.loc[used[read]].groupby("subject", sort=False):
            count = len(self.store.masker(str(subject)))
            kept = max(1, round(count * (1 - rng.uniform(*voxel_dropout))))
            persons.append(
                SubjectBatch(
                    str(subject), group["row"].to_numpy(), np.sort(rng.permutation(count)[:kept])
                )
            )
        samples = self.table.loc[one]
        alone = [
            trial if whole else None
            for trial, whole in zip(trial_keys(samples), share == 1, strict=True)
        ]
        return TrialBatch(
            persons, torch.from_numpy(weights[:, read]).float(), samples["stimulus"].tolist(), alone
        )

    def iter_eval_batches(self, size: int) -> Iterator[TrialBatch]:
        """All trials in order, every voxel kept and nothing mixed, at most `size` trials of one person at a time."""
        for subject, group in self.table.groupby("subject"):
            keep = np.arange(len(self.store.masker(str(subject))))
            for start in range(0, len(group), size):
                part = group.iloc[start : start + size]
                people = [SubjectBatch(str(subject), part["row"].to_numpy(), keep)]
                yield TrialBatch(
                    people, torch.eye(len(part)), part["stimulus"].tolist(), list(trial_keys(part))
                )


def trial_keys(table: pd.DataFrame) -> list[TrialKey]:
    """Whose conversations about single trials belong to these rows."""
    return [
        (str(subject), int(row))
        for subject, row in zip(table["subject"], table["about"], strict=True)
    ]
