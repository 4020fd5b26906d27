"""fMRI inputs of a batch: betas of one or more subjects, each with a masker of their own."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from mindllm.fmri.masker import VoxelMasker

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class FMRIInputs:
    """Standardized betas of a batch, grouped by subject.

    Subjects have different numbers of voxels, so their betas do not fit one tensor.

    Parameters
    ----------
    maskers : tuple of VoxelMasker
        One per subject.
    betas : tuple of Tensor
        For each subject (n_trials, n_voxels) standardized betas, float32.
    mixing_weights : Tensor of shape (batch_size, n_trials_in_all), optional
        Weight of every trial in every sample, trials in the order of `betas`. By default sample
        i is trial i.
    """

    maskers: tuple[VoxelMasker, ...]
    betas: tuple[Tensor, ...]
    mixing_weights: Tensor | None = None

    def __post_init__(self) -> None:
        assert len(self.maskers) == len(self.betas), "one masker per group of betas"

    def __len__(self) -> int:
        if self.mixing_weights is not None:
            return len(self.mixing_weights)
        return sum(len(group) for group in self.betas)

    def to(self, device: Any, non_blocking: bool = False) -> FMRIInputs:
        """Move the inputs to another device, as `torch.Tensor.to` does."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> FMRIInputs:
        """Copy the inputs to page-locked memory, as `DataLoader(pin_memory=True)` does."""
        return self._map(lambda tensor: tensor.pin_memory())

    def _map(self, convert: Any) -> FMRIInputs:
        weights = None if self.mixing_weights is None else convert(self.mixing_weights)
        return replace(self, betas=tuple(map(convert, self.betas)), mixing_weights=weights)
