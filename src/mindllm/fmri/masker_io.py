"""Maskers on disk, in stores and checkpoints: voxels.parquet and mask.nii.gz."""

from collections.abc import Mapping
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd

from mindllm.fmri.masker import VoxelMasker
from mindllm.fmri.nifti import check_announced_size, check_checksum
from mindllm.utils.errors import InputError
from mindllm.utils.files import describe_read_errors
from mindllm.utils.parquet import check_numbers, read_parquet


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
    table.to_parquet(folder / "voxels.parquet", write_page_checksum=True)
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
    table, file = read_parquet(folder / "voxels.parquet", remedy), folder / "voxels.parquet"
    check_numbers(table, file, ("i", "j", "k"), "iu", remedy)
    check_numbers(table, file, ("x_mm", "y_mm", "z_mm"), "f", remedy)
    atlases = [atlas for atlas in parcel_names if atlas in table]
    check_numbers(table, file, atlases, "iu", remedy)
    for atlas in atlases:
        if unnamed := sorted(set(table[atlas]) - {0, *parcel_names[atlas]}):
            raise InputError(
                f"{file} has the parcel {unnamed[0]} of {atlas}, which has no name. {remedy}"
            )
    with describe_read_errors(folder / "mask.nii.gz", remedy) as path:
        mask_img = nib.load(path)
        check_checksum(mask_img)
        check_announced_size(mask_img, "mask")
        if mask_img.ndim != 3:
            raise ValueError(f"it has the shape {mask_img.shape}")
    voxel_indices = table[["i", "j", "k"]].to_numpy(np.int64)
    if ((voxel_indices < 0) | (voxel_indices >= mask_img.shape)).any():
        raise InputError(
            f"{file} has voxels outside of the grid {mask_img.shape} of mask.nii.gz. {remedy}"
        )
    return VoxelMasker(
        subject=folder.name,
        shape=mask_img.shape,
        affine=mask_img.affine,
        voxel_indices=voxel_indices.astype(np.int32),
        coords_mm=table[["x_mm", "y_mm", "z_mm"]].to_numpy(np.float32),
        parcel_labels={atlas: table[atlas].to_numpy(np.int32) for atlas in atlases},
        parcel_names={atlas: parcel_names[atlas] for atlas in atlases},
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
    file, remedy = folder / "voxels.parquet", "Prepare the store anew."
    table = read_parquet(file, remedy)
    if name not in table:
        return None
    check_numbers(table, file, [name], "f", remedy)
    return table[name].to_numpy(np.float32)
