"""What a training step sees: a batch of trials, person by person."""

from dataclasses import dataclass

import numpy as np
from torch import Tensor

TrialKey = tuple[str, int]  # a subject, and a row of the store


@dataclass(frozen=True)
class SubjectBatch:
    """A person's share of a batch: which trials (rows of the store) and which voxels were kept."""

    subject: str
    trial_indices: np.ndarray
    voxel_indices: np.ndarray


@dataclass(frozen=True)
class TrialBatch:
    """B samples. `people` hold R trials in all; `mix` (B, R) says how much of each trial a sample is, each row summing to one.

    stimuli: what each sample shows.  alone: the trial that a sample is about, None where it is mixed of two.
    """

    subjects: list[SubjectBatch]
    mixing_weights: Tensor
    stimuli: list[str]
    source_trials: list[TrialKey | None]
