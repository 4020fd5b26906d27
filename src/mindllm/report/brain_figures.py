"""Where the voxels are and which of them the model attends to, as figures and by parcel."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from mindllm.data.store import Store
from mindllm.fmri.masker import VoxelMasker
from mindllm.model.attention_maps import NO_PARCEL, attention_by_parcel, attention_mass
from mindllm.model.modeling import MindLLM
from mindllm.plotting.brain import plot_attention, plot_voxel_coverage
from mindllm.report.figure_tables import brain_table

MAX_SUBJECTS = 6  # up to this many have figures of their own
TOP_PARCELS = 10  # per atlas


@dataclass(frozen=True, slots=True)
class BrainMaps:
    """Voxels and attention of the evaluated subjects.

    Parameters
    ----------
    maskers : list of VoxelMasker
        One per subject.
    relative_attention : list of ndarrays (n_voxels,)
        One per subject; 1 = as much as if every voxel got the same.
    parcels : list of ParcelAttention
        The parcels with the most attention, per atlas.
    """

    maskers: list[VoxelMasker]
    relative_attention: list[np.ndarray]
    parcels: list["ParcelAttention"]

    @property
    def groups(self) -> dict[str, list[str]]:
        """Group to its subjects: `all`, and single ones, where there are few."""
        subjects = [masker.subject for masker in self.maskers]
        single = subjects if 1 < len(subjects) <= MAX_SUBJECTS else []
        return {"all": subjects, **{subject: [subject] for subject in single}}

    def members(self, group: str) -> tuple[list[VoxelMasker], list[np.ndarray]]:
        """Return maskers and relative attention of the subjects of a group."""
        subjects = self.groups[group]
        members = [i for i, masker in enumerate(self.maskers) if masker.subject in subjects]
        return [self.maskers[i] for i in members], [self.relative_attention[i] for i in members]


@dataclass(frozen=True, slots=True)
class ParcelAttention:
    """Attention to one parcel, mean over subjects.

    attention and voxel_fraction are fractions of all attention and voxels; relative_attention is
    their ratio, 1 = as much as if every voxel got the same.
    """

    atlas: str
    parcel: str
    attention: float
    voxel_fraction: float
    relative_attention: float


def map_attention(model: MindLLM, store: Store, subjects: Sequence[str]) -> BrainMaps:
    """Compute which voxels and parcels a model attends to.

    Parameters
    ----------
    model : MindLLM
        The evaluated model.
    store : Store
        Holds the subjects' maskers.
    subjects : sequence of str
        The evaluated subjects.

    Returns
    -------
    BrainMaps
        In the order of the subjects.
    """
    maskers = [store.masker(subject) for subject in subjects]
    relative_attention = [attention_mass(model, masker) * len(masker) for masker in maskers]
    parcels = top_parcels([attention_by_parcel(model, masker) for masker in maskers])
    return BrainMaps(maskers, relative_attention, parcels)


def draw_brain_figures(maps: BrainMaps, dark: bool = False) -> dict[str, bytes]:
    """Draw voxels and attention of every group of subjects.

    Parameters
    ----------
    maps : BrainMaps
        Voxels and attention.
    dark : bool
        Draw for a dark page.

    Returns
    -------
    dict of str to bytes
        PNG by name: `voxels-<group>` and `attention-<group>`.
    """
    figures = {}
    for group in maps.groups:
        maskers, attention = maps.members(group)
        figures[f"voxels-{group}"] = plot_voxel_coverage(maskers, dark)
        figures[f"attention-{group}"] = plot_attention(maskers, attention, dark)
    return figures


def brain_tables(maps: BrainMaps) -> dict[str, pd.DataFrame]:
    """Return the numbers of `draw_brain_figures`, per cell of the grid that is drawn.

    Parameters
    ----------
    maps : BrainMaps

    Returns
    -------
    dict of str to DataFrame
        Name of the figure -> `x_mm`, `y_mm`, `z_mm`, and `n_subjects` or `relative_attention`.
    """
    tables = {}
    for group in maps.groups:
        maskers, attention = maps.members(group)
        tables[f"voxels-{group}"] = brain_table(maskers, "n_subjects")
        tables[f"attention-{group}"] = brain_table(maskers, "relative_attention", attention)
    return tables


def top_parcels(tables: Sequence[pd.DataFrame]) -> list[ParcelAttention]:
    """Return the parcels with the most attention, per atlas.

    Parameters
    ----------
    tables : sequence of DataFrame
        One per subject, as `attention_by_parcel` returns it.

    Returns
    -------
    list of ParcelAttention
        Means over subjects, 0 for those that lack the parcel; by atlas, most attention first.
    """
    table = pd.concat(tables)
    table = table[table["parcel"] != NO_PARCEL]
    if table.empty:
        return []
    keys, values = ["atlas", "parcel"], ["attention", "voxel_fraction"]
    means = (table.groupby(keys)[values].sum() / len(tables)).reset_index()
    means = means.sort_values("attention", ascending=False)
    top = means.groupby("atlas", sort=True).head(TOP_PARCELS)
    top = top.sort_values(["atlas", "attention"], ascending=[True, False])
    return [
        ParcelAttention(atlas, parcel, float(mass), float(part), float(mass / part))
        for atlas, parcel, mass, part in top[[*keys, *values]].itertuples(index=False)
    ]
