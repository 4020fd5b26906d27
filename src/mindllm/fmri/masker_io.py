"""Voxel spaces on disk, in stores and in model folders: voxels.parquet and mask.nii.gz."""

from collections.abc import Mapping
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from mindllm.fmri.masker import VoxelMasker
from mindllm.utils.files import describe_read_errors


def save_masker(
    masker: VoxelMasker, folder: Path, measures: Mapping[str, np.ndarray] | None = None
) -> None:
    """Write voxels.parquet (`i`, `j`, `k`, `x_mm`, `y_mm`, `z_mm`, one column per parcellation and measure) and mask.nii.gz."""
    table = pd.DataFrame(np.c_[masker.voxel_indices], columns=["i", "j", "k"]).assign(
        **{f"{axis}_mm": masker.coords_mm[:, n] for n, axis in enumerate("xyz")},
        **masker.parcel_labels,
        **(measures or {}),
    )
    table.to_parquet(folder / "voxels.parquet")
    nib.save(masker.inverse_transform(np.ones(len(masker), np.uint8)), folder / "mask.nii.gz")


def load_masker(
    folder: Path,
    parcel_names: Mapping[str, Mapping[int, str]],
    remedy: str = "Prepare the store anew.",
) -> VoxelMasker:
    """Read them back; `names`: parcellation -> number -> region name."""
    with describe_read_errors(folder / "voxels.parquet", remedy) as path:
        table = pd.read_parquet(path)
    with describe_read_errors(folder / "mask.nii.gz", remedy) as path:
        mask = nib.load(path)
    regions = {p: table[p].to_numpy(np.int32) for p in parcel_names if p in table}
    ijk, mm = (
        table[["i", "j", "k"]].to_numpy(np.int32),
        table[["x_mm", "y_mm", "z_mm"]].to_numpy(np.float32),
    )
    return VoxelMasker(
        folder.name,
        mask.shape,
        mask.affine,
        ijk,
        mm,
        regions,
        {p: parcel_names[p] for p in regions},
    )


def load_voxel_column(folder: Path, name: str) -> np.ndarray | None:
    """A number per voxel (V,) float32 that came with the data; None where it did not."""
    with describe_read_errors(folder / "voxels.parquet") as path:
        if name not in pq.read_schema(path).names:
            return None
        return pd.read_parquet(path, columns=[name])[name].to_numpy(np.float32)
