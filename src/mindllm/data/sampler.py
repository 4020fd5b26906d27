"""Training batches: which subjects, trials and voxels a step reads, and how it mixes them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from torch import Tensor

if TYPE_CHECKING:
    from mindllm.data.dataset import TrialDataset

TrialKey = tuple[str, int]  # subject, trial index


@dataclass(frozen=True)
class SubjectBatch:
    """One subject's part of a batch.

    Parameters
    ----------
    subject : str
    trial_indices : ndarray of shape (n_trials,)
        Rows of the subject's betas in the store.
    voxel_indices : ndarray of shape (n_kept_voxels,)
        Voxels that voxel dropout kept, ascending.
    """

    subject: str
    trial_indices: np.ndarray
    voxel_indices: np.ndarray


@dataclass(frozen=True)
class TrialBatch:
    """A batch of B samples made of R trials.

    Parameters
    ----------
    subjects : list of SubjectBatch
        The R trials, subject by subject.
    mixing_weights : Tensor of shape (B, R)
        Weight of every trial in every sample; rows sum to one.
    stimuli : list of str
        Stimulus of each sample.
    source_trials : list of (str, int) or None
        The trial that a sample is of; None where it mixes two.
    """

    subjects: list[SubjectBatch]
    mixing_weights: Tensor
    stimuli: list[str]
    source_trials: list[TrialKey | None]


@dataclass(frozen=True)
class SubjectBatchSampler:
    """Draws training batches with voxel dropout, mixup within stimuli, and repetition noise.

    Parameters
    ----------
    dataset : TrialDataset
    batch_size : int
        Samples per batch.
    num_subjects : int
        Most subjects per batch: the attention is computed once per subject.
    voxel_dropout : tuple of float
        Least and greatest fraction of a subject's voxels left out of a batch.
    mixup_prob : float
        Probability that a sample mixes two trials of its stimulus.
    repetition_noise_scale : float
        Greatest multiple of the difference of two trials of another stimulus that is added to a
        sample: a difference of repetitions is noise.
    seed : int
        Of iteration; `sample` takes a generator of its own.

    References
    ----------
    Zhang et al. 2018, mixup, arXiv 1710.09412.
    """

    dataset: TrialDataset
    batch_size: int
    num_subjects: int = 4
    voxel_dropout: tuple[float, float] = (0.0, 0.0)
    mixup_prob: float = 0.0
    repetition_noise_scale: float = 0.0
    seed: int = 0

    def __iter__(self) -> Iterator[TrialBatch]:
        """Batches without end; the n-th one depends on the seed and n alone."""
        for step in count():
            yield self.sample(np.random.default_rng([self.seed, step]))

    def sample(self, rng: np.random.Generator) -> TrialBatch:
        """Draw one batch.

        Parameters
        ----------
        rng : numpy.random.Generator

        Returns
        -------
        TrialBatch
        """
        dataset, table = self.dataset, self.dataset.table
        subjects = rng.choice(
            dataset.subjects, min(self.num_subjects, len(dataset.subjects)), replace=False
        )
        eligible = table["subject"].isin(subjects).to_numpy()
        pool = np.flatnonzero(eligible)
        first = pool[rng.permutation(len(pool))[: self.batch_size]]
        size = len(first)
        fraction = np.where(rng.random(size) < self.mixup_prob, rng.random(size), 1.0)
        noise = pool[rng.integers(len(pool), size=size)]
        # A difference has twice the variance of its parts.
        scale = self.repetition_noise_scale * rng.random(size) / 2**0.5
        second = self._same_stimulus(first, eligible, rng)
        parts = [first, second, noise, self._same_stimulus(noise, eligible, rng)]
        rows, columns = np.unique(parts, return_inverse=True)
        weights = np.zeros((size, len(rows)))
        amounts = (fraction, 1 - fraction, scale, -scale)
        for column, amount in zip(columns.reshape(4, -1), amounts, strict=True):
            np.add.at(weights, (np.arange(size), column), amount)
        used = weights.any(0)
        samples = table.loc[first]
        keys = zip(trial_keys(samples), fraction == 1, strict=True)
        return TrialBatch(
            self._by_subject(table.loc[rows[used]], rng),
            torch.from_numpy(weights[:, used]).float(),
            samples["stimulus"].tolist(),
            [key if single else None for key, single in keys],
        )

    def _same_stimulus(
        self, rows: np.ndarray, eligible: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        """For each row a random eligible row of the same stimulus, possibly itself."""
        order, numbers, starts = self.dataset.stimulus_index
        groups = [order[starts[n] : starts[n + 1]] for n in numbers[rows]]
        return np.array([rng.choice(group[eligible[group]]) for group in groups])

    def _by_subject(self, rows: pd.DataFrame, rng: np.random.Generator) -> list[SubjectBatch]:
        """The trials of these rows subject by subject, each with the voxels that are kept."""
        batches = []
        for subject, group in rows.groupby("subject", sort=False):
            n_voxels = len(self.dataset.store.masker(str(subject)))
            n_kept = max(1, round(n_voxels * (1 - rng.uniform(*self.voxel_dropout))))
            kept = np.sort(rng.permutation(n_voxels)[:n_kept])
            batches.append(SubjectBatch(str(subject), group["row"].to_numpy(), kept))
        return batches


def split_batch(batch: TrialBatch, num_parts: int) -> list[TrialBatch]:
    """Split a batch into micro batches of consecutive samples, as equal in size as can be.

    Parameters
    ----------
    batch : TrialBatch
    num_parts : int
        Most micro batches; there are no more than samples.

    Returns
    -------
    list of TrialBatch
        With the trials that their samples are mixed of, and the voxels of the batch.
    """
    if num_parts == 1:
        return [batch]
    sizes = [len(part.trial_indices) for part in batch.subjects]
    parts = []
    for rows in np.array_split(np.arange(len(batch.stimuli)), min(num_parts, len(batch.stimuli))):
        weights = batch.mixing_weights[rows]
        is_used = (weights != 0).any(0)
        subjects = [
            SubjectBatch(part.subject, part.trial_indices[kept], part.voxel_indices)
            for part, kept in zip(
                batch.subjects, np.split(is_used.numpy(), np.cumsum(sizes)[:-1]), strict=True
            )
            if kept.any()
        ]
        stimuli = [batch.stimuli[row] for row in rows]
        source_trials = [batch.source_trials[row] for row in rows]
        parts.append(TrialBatch(subjects, weights[:, is_used], stimuli, source_trials))
    return parts


def iter_eval_batches(dataset: TrialDataset, batch_size: int) -> Iterator[TrialBatch]:
    """All trials in order, all voxels, unmixed; a batch holds trials of one subject.

    Parameters
    ----------
    dataset : TrialDataset
    batch_size : int

    Yields
    ------
    TrialBatch
    """
    for subject, group in dataset.table.groupby("subject"):
        voxels = np.arange(len(dataset.store.masker(str(subject))))
        for start in range(0, len(group), batch_size):
            part = group.iloc[start : start + batch_size]
            batch = SubjectBatch(str(subject), part["row"].to_numpy(), voxels)
            weights = torch.eye(len(part))
            yield TrialBatch([batch], weights, part["stimulus"].tolist(), list(trial_keys(part)))


def trial_keys(table: pd.DataFrame) -> list[TrialKey]:
    """Subject and trial whose conversations belong to each row of a dataset's table."""
    pairs = zip(table["subject"], table["about"], strict=True)
    return [(str(subject), int(trial)) for subject, trial in pairs]
