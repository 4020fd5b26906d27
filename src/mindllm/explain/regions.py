"""Sums over the parcels of every atlas, and parcels that are named by a pattern."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np

from mindllm.fmri.masker import VoxelMasker
from mindllm.model.attention_maps import NO_PARCEL
from mindllm.utils.errors import InputError


@dataclass(frozen=True)
class Region:
    """A parcel, or a network of several, of one subject.

    Parameters
    ----------
    atlas : str
        Name of the atlas; empty for a network.
    name : str
        Of the parcel or network.
    voxels : ndarray of bool, shape (n_voxels,)
    """

    atlas: str
    name: str
    voxels: np.ndarray

    @property
    def label(self) -> str:
        """Name with the atlas."""
        return f"{self.atlas}:{self.name}" if self.atlas else self.name


def list_parcels(masker: VoxelMasker, min_voxels: int = 1) -> list[Region]:
    """List the parcels of all atlases in which a subject has voxels; last of each those in none.

    Parameters
    ----------
    masker : VoxelMasker
    min_voxels : int
        Parcels with fewer voxels are left out.

    Returns
    -------
    list of Region
        By atlas and parcel label.
    """
    regions = []
    for atlas, labels in masker.parcel_labels.items():
        names = {0: NO_PARCEL} | dict(masker.parcel_names[atlas])
        for label in sorted(np.unique(labels).tolist(), key=lambda label: (label == 0, label)):
            voxels = labels == label
            if voxels.sum() >= min_voxels:
                regions.append(Region(atlas, names[int(label)], voxels))
    return regions


def find_region(masker: VoxelMasker, parcels: Sequence[str], name: str | None = None) -> Region:
    """Find the voxels of parcels that are named, together.

    Parameters
    ----------
    masker : VoxelMasker
    parcels : sequence of str
        Names or patterns of parcels, such as "V1v", "V?v" or "Wang2015:V1*"; without an atlas
        those of all atlases.
    name : str, optional
        Of the region; by default the parcels.

    Returns
    -------
    Region

    Raises
    ------
    InputError
        If the subject has no voxel in a parcel of one of these names.

    Examples
    --------
    >>> import nibabel as nib
    >>> mask_img = nib.Nifti1Image(np.ones((3, 1, 1)), np.eye(4))
    >>> labels = nib.Nifti1Image(np.array([0, 1, 2], np.int16).reshape(3, 1, 1), np.eye(4))
    >>> names = {"visual": {1: "V1", 2: "V2"}}
    >>> masker = VoxelMasker.from_mask_img(mask_img, {"visual": labels}, parcel_names=names)
    >>> find_region(masker, ["V*"]).voxels
    array([False,  True,  True])
    """
    voxels = np.zeros(len(masker), bool)
    for pattern in parcels:
        matched = np.zeros(len(masker), bool)
        for region in list_parcels(masker):
            if region.name != NO_PARCEL and matches(region, pattern):
                matched |= region.voxels
        if not matched.any():
            examples = [r.label for r in list_parcels(masker) if r.name != NO_PARCEL][:4]
            raise InputError(
                f"{masker.subject} has no voxel in a parcel named {pattern!r}; it has voxels in "
                f"{', '.join(examples) or 'no parcel'}{', ...' if len(examples) == 4 else ''}. "
                "Name one of its parcels, as ATLAS:PARCEL or PARCEL; * stands for any letters."
            )
        voxels |= matched
    return Region("", name or ", ".join(parcels), voxels)


def matches(region: Region, pattern: str) -> bool:
    """Whether a pattern names a parcel."""
    return fnmatchcase(region.name, pattern) or fnmatchcase(region.label, pattern)


def sum_by_region(values: np.ndarray, regions: Sequence[Region]) -> np.ndarray:
    """Sums (..., n_regions) of values (..., n_voxels) over the voxels of regions."""
    sums = [values[..., region.voxels].sum(-1) for region in regions]
    return np.stack(sums, -1) if sums else np.zeros((*values.shape[:-1], 0))
