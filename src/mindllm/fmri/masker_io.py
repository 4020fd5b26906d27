"""Voxel spaces on disk, in stores and in model folders: voxels.parquet and mask.nii.gz."""

from collections.abc import Mapping
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from mindllm.fmri.masker import VoxelSpace
from mindllm.utils.files import whole


def save_space(space: VoxelSpace, folder: Path, measures: Mapping[str, np.ndarray] | None = None) -> None:
    """Write voxels.parquet (`i`, `j`, `k`, `x_mm`, `y_mm`, `z_mm`, one column per parcellation and measure) and mask.nii.gz."""
    table = pd.DataFrame(np.c_[space.ijk], columns=["i", "j", "k"]).assign(
        **{f"{axis}_mm": space.mm[:, n] for n, axis in enumerate("xyz")}, **space.regions, **(measures or {})
    )
    table.to_parquet(folder / "voxels.parquet")
    nib.save(space.unmask(np.ones(len(space), np.uint8)), folder / "mask.nii.gz")


def load_space(
    folder: Path, names: Mapping[str, Mapping[int, str]], remedy: str = "Prepare the store anew."
) -> VoxelSpace:
    """Read them back; `names`: parcellation -> number -> region name."""
    with whole(folder / "voxels.parquet", remedy) as path:
        table = pd.read_parquet(path)
    with whole(folder / "mask.nii.gz", remedy) as path:
        mask = nib.load(path)
    regions = {p: table[p].to_numpy(np.int32) for p in names if p in table}
    ijk, mm = table[["i", "j", "k"]].to_numpy(np.int32), table[["x_mm", "y_mm", "z_mm"]].to_numpy(np.float32)
    return VoxelSpace(folder.name, mask.shape, mask.affine, ijk, mm, regions, {p: names[p] for p in regions})


def load_measure(folder: Path, name: str) -> np.ndarray | None:
    """A number per voxel (V,) float32 that came with the data; None where it did not."""
    with whole(folder / "voxels.parquet") as path:
        if name not in pq.read_schema(path).names:
            return None
        return pd.read_parquet(path, columns=[name])[name].to_numpy(np.float32)
