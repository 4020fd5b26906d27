"""Maskers on disk, in stores and checkpoints: voxels.parquet and mask.nii.gz."""

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
    """Write voxels.parquet and mask.nii.gz.

    Parameters
    ----------
    masker : VoxelMasker
        The masker; its parcel names are not written.
    folder : Path
        Existing folder, named as the subject.
    measures : mapping of str to ndarray of shape (n_voxels,), optional
        Further columns, such as `ncsnr`. The others are `i`, `j`, `k`, `x_mm`, `y_mm`, `z_mm` and
        one per atlas.
    """
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
    """Read the masker that `save_masker` wrote.

    Parameters
    ----------
    folder : Path
        The folder, named as the subject.
    parcel_names : mapping of str to mapping of int to str
        Atlas name -> parcel label -> parcel name.
    remedy : str
        What to do about a damaged file, for the message.

    Returns
    -------
    VoxelMasker
        The masker, with those atlases that both the files and `parcel_names` have.

    Raises
    ------
    InputError
        If a file is missing or damaged.
    """
    with describe_read_errors(folder / "voxels.parquet", remedy) as path:
        table = pd.read_parquet(path)
    with describe_read_errors(folder / "mask.nii.gz", remedy) as path:
        mask_img = nib.load(path)
    labels = {atlas: table[atlas].to_numpy(np.int32) for atlas in parcel_names if atlas in table}
    return VoxelMasker(
        subject=folder.name,
        shape=mask_img.shape,
        affine=mask_img.affine,
        voxel_indices=table[["i", "j", "k"]].to_numpy(np.int32),
        coords_mm=table[["x_mm", "y_mm", "z_mm"]].to_numpy(np.float32),
        parcel_labels=labels,
        parcel_names={atlas: parcel_names[atlas] for atlas in labels},
    )


def load_voxel_column(folder: Path, name: str) -> np.ndarray | None:
    """Read a column of voxels.parquet, such as `ncsnr`.

    Parameters
    ----------
    folder : Path
        Folder of `save_masker`.
    name : str
        Name of the column.

    Returns
    -------
    ndarray of shape (n_voxels,), float32, or None
        The column; None where the data came without it.

    Raises
    ------
    InputError
        If the file is missing or damaged.
    """
    with describe_read_errors(folder / "voxels.parquet") as path:
        if name not in pq.read_schema(path).names:
            return None
        return pd.read_parquet(path, columns=[name])[name].to_numpy(np.float32)
