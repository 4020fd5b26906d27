"""Attention of the fMRI tokens over voxels, the same for every trial of a subject."""

from collections.abc import Mapping

import nibabel as nib
import numpy as np
import pandas as pd
import torch

from mindllm.fmri.masker import VoxelMasker
from mindllm.model.encoder import VoxelFeatures
from mindllm.model.modeling import MindLLM

CHUNK_BYTES = 2**26
NO_PARCEL = "(no parcel)"
COLUMNS = ("atlas", "parcel", "n_voxels", "attention", "voxel_fraction", "relative_attention")


@torch.inference_mode()
def attention_mass(model: MindLLM, masker: VoxelMasker | VoxelFeatures) -> np.ndarray:
    """Fraction of the attention that each voxel gets, averaged over the queries.

    Attention weights (num_queries, n_voxels) are computed for a few queries at a time, so that
    200,000 voxels and 1,024 queries fit in little memory.

    Parameters
    ----------
    model : MindLLM
    masker : VoxelMasker
        The subject's voxels (or what `encoder.prepare_voxels` made of them).

    Returns
    -------
    ndarray of shape (n_voxels,), float64
        Sums to one.
    """
    encoder = model.encoder
    voxels = masker if isinstance(masker, VoxelFeatures) else encoder.prepare_voxels(masker)
    keys = encoder.compute_keys(voxels)  # (n_voxels, key_dim)
    total = torch.zeros(len(keys), dtype=torch.float32, device=keys.device)
    for queries in encoder.queries.split(max(1, CHUNK_BYTES // (4 * len(keys)))):
        total += torch.softmax(queries @ keys.T * encoder.scale, -1).sum(0)
    mass = total.cpu().double().numpy()
    return mass / mass.sum()


def attention_map(model: MindLLM, masker: VoxelMasker) -> nib.Nifti1Image:
    """Attention as an image on the subject's grid.

    Parameters
    ----------
    model, masker
        As for `attention_mass`.

    Returns
    -------
    Nifti1Image
        Attention relative to its mean over voxels: 1 is what uniform attention gives every voxel;
        0 outside the mask.
    """
    relative_attention = attention_mass(model, masker) * len(masker)
    return masker.inverse_transform(relative_attention.astype(np.float32))


def attention_by_parcel(model: MindLLM, masker: VoxelMasker) -> pd.DataFrame:
    """Attention per parcel of every atlas.

    Parameters
    ----------
    model : MindLLM
        The trained model.
    masker : VoxelMasker
        The subject's voxels; its atlases may be others than the model's.

    Returns
    -------
    DataFrame
        `atlas`, `parcel`, `n_voxels`, `attention` and `voxel_fraction` (fractions of all attention
        and of all voxels; both sum to one per atlas), `relative_attention` (their ratio). Per atlas
        the parcel with the most attention comes first; voxels without a parcel are one row.
    """
    mass = attention_mass(model, masker)
    tables = [
        sum_by_parcel(mass, labels, masker.parcel_names[atlas]).assign(atlas=atlas)
        for atlas, labels in masker.parcel_labels.items()
    ]
    if not tables:
        return pd.DataFrame(columns=list(COLUMNS))
    table = pd.concat(tables, ignore_index=True)
    table = table.assign(relative_attention=table["attention"] / table["voxel_fraction"])
    return table[list(COLUMNS)]


def sum_by_parcel(
    mass: np.ndarray, labels: np.ndarray, parcel_names: Mapping[int, str]
) -> pd.DataFrame:
    """Attention (n_voxels,) summed over the parcels of one atlas; the largest sum comes first."""
    numbers, positions = np.unique(labels, return_inverse=True)
    names = {0: NO_PARCEL} | dict(parcel_names)
    counts = np.bincount(positions)
    table = pd.DataFrame(
        {
            "parcel": [names[int(number)] for number in numbers],
            "n_voxels": counts,
            "attention": np.bincount(positions, mass),
            "voxel_fraction": counts / len(mass),
        }
    )
    return table.sort_values("attention", ascending=False, kind="stable")
