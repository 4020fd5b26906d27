"""Maskers on disk, in stores and checkpoints: voxels.parquet and mask.nii.gz."""

import math
from collections.abc import Mapping
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pyarrow as pa
from nibabel.spatialimages import SpatialImage

from mindllm.fmri.masker import VoxelMasker
from mindllm.fmri.nifti import check_announced_size, check_checksum
from mindllm.utils.errors import InputError
from mindllm.utils.files import describe_read_errors
from mindllm.utils.parquet import read_arrow
from mindllm.utils.table_checks import check_column, check_rows, read_checked_table

INDICES, COORDS = ["i", "j", "k"], ["x_mm", "y_mm", "z_mm"]
MAX_GRID_SIZE = 2**29  # voxels of a grid; a brain at 0.4 mm has 2**28
REMEDY = "Prepare the store anew."


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
    table = pd.DataFrame(np.c_[masker.voxel_indices], columns=INDICES).assign(
        **{f"{axis}_mm": masker.coords_mm[:, n] for n, axis in enumerate("xyz")},
        **masker.parcel_labels,
        **(measures or {}),
    )
    table.to_parquet(folder / "voxels.parquet", write_page_checksum=True)
    nib.save(masker.inverse_transform(np.ones(len(masker), np.uint8)), folder / "mask.nii.gz")


def load_masker(
    folder: Path,
    parcel_names: Mapping[str, Mapping[int, str]],
    remedy: str = REMEDY,
) -> VoxelMasker:
    """Read and check the masker that `save_masker` wrote.

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
        If a file is missing, damaged, or holds other than expected: see `check_voxels` and
        `check_mask`.
    """
    path = folder / "voxels.parquet"
    table = read_checked_table(path, [*INDICES, *COORDS], remedy)
    mask_img = open_mask(folder / "mask.nii.gz", remedy)
    check_voxels(table, mask_img.shape, parcel_names, str(path), remedy)
    labels = {atlas: table[atlas].to_numpy(np.int32) for atlas in parcel_names if atlas in table}
    voxel_indices = table[INDICES].to_numpy(np.int32)
    check_mask(mask_img, voxel_indices, folder / "mask.nii.gz", remedy)
    return VoxelMasker(
        subject=folder.name,
        shape=mask_img.shape,
        affine=mask_img.affine,
        voxel_indices=voxel_indices,
        coords_mm=table[COORDS].to_numpy(np.float32),
        parcel_labels=labels,
        parcel_names={atlas: parcel_names[atlas] for atlas in labels},
    )


def check_voxels(
    table: pd.DataFrame,
    shape: tuple[int, ...],
    parcel_names: Mapping[str, Mapping[int, str]],
    where: str,
    remedy: str,
) -> None:
    """Check a table of voxels.

    Parameters
    ----------
    table : DataFrame
        With the columns i, j, k, x_mm, y_mm and z_mm, each once.
    shape : tuple of int
        Shape of the grid.
    parcel_names : mapping of str to mapping of int to str
        Atlas name -> parcel label -> parcel name.
    where : str
        The table, for the message.
    remedy : str
        What to do, for the message.

    Raises
    ------
    InputError
        If there is no voxel, a value is missing or of another type, a voxel is outside the grid or
        comes twice, a coordinate is not finite, or a parcel has no name.
    """
    if not len(table):
        raise InputError(f"{where} has no voxel; expected one or more. {remedy}")
    for name, length in zip(INDICES, shape, strict=True):
        index = table[name]
        check_column(index, "whole numbers", where, remedy)
        on_grid = ((index >= 0) & (index < length)).to_numpy(bool)
        check_rows(on_grid, index, f"an index on the grid of shape {shape}", where, remedy)
    for name in COORDS:
        check_column(table[name], "numbers", where, remedy)
        is_finite = np.isfinite(table[name].to_numpy(np.float64))
        check_rows(is_finite, table[name], "a finite coordinate", where, remedy)
    # Points of a surface may share a voxel, but no coordinates.
    repeated = np.flatnonzero(table.duplicated([*INDICES, *COORDS]))
    if len(repeated):
        voxel = table[INDICES].iloc[repeated[0]].tolist()
        raise InputError(
            f"{where}, row {repeated[0]}: the voxel {voxel} comes twice; expected once. {remedy}"
        )
    for atlas in parcel_names:
        if atlas in table:
            check_column(table[atlas], "whole numbers", where, remedy)
            is_known = table[atlas].isin([0, *parcel_names[atlas]]).to_numpy()
            check_rows(is_known, table[atlas], "0 or a parcel of regions.json", where, remedy)


def open_mask(path: Path, remedy: str) -> SpatialImage:
    """Open a mask, whose voxels are not read yet; InputError for another grid than a brain's."""
    with describe_read_errors(path, remedy):
        img = nib.load(path)
        check_checksum(img)
        check_announced_size(img, "mask")
        shape = img.shape
    if len(shape) != 3 or not 0 < math.prod(shape) <= MAX_GRID_SIZE:
        raise InputError(
            f"{path} has shape {shape}; expected three dimensions and at most {MAX_GRID_SIZE} "
            f"voxels. {remedy}"
        )
    return img


def check_mask(img: SpatialImage, voxel_indices: np.ndarray, path: Path, remedy: str) -> None:
    """Check that a mask has exactly the voxels of the table, in any order."""
    with describe_read_errors(path, remedy):
        inside = np.asanyarray(img.dataobj) > 0
    listed = np.zeros(inside.shape, bool)
    listed[tuple(voxel_indices.T)] = True
    if (inside != listed).any():
        parts = (inside, listed, inside & listed)
        n_inside, n_listed, n_shared = (int(part.sum()) for part in parts)
        raise InputError(
            f"{path} has other voxels than voxels.parquet: {n_inside} and {n_listed}, {n_shared} "
            f"of them the same; expected the same. {remedy}"
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
    path = folder / "voxels.parquet"
    table = read_arrow(path, REMEDY)
    if name not in table.column_names:
        return None
    kind = table.schema.field(name).type
    if not (pa.types.is_floating(kind) or pa.types.is_integer(kind)):
        raise InputError(f"{path}: the column {name} holds {kind}; expected numbers. {REMEDY}")
    return table[name].to_pandas().to_numpy(np.float32)
