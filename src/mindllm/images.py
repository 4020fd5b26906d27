"""NIfTI files, opened and checked: what is wrong with one is said in a sentence."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import nibabel as nib
import numpy as np
import pandas as pd
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import SpatialImage

from mindllm.errors import InputError

GRID_TOLERANCE_MM = 1e-2
Image: TypeAlias = str | Path | SpatialImage


def open_image(image: Image, what: str, dimensions: int | None = None) -> SpatialImage:
    """A nibabel image, its header read and its data still on disk."""
    if isinstance(image, (str, Path)):
        path = Path(image)
        if not path.is_file():
            raise InputError(f"{what}: there is no file {path}.")
        try:
            image = nib.load(path, keep_file_open=True)  # one forward pass through a .gz, not one per piece
        except (ImageFileError, OSError, EOFError) as error:
            raise InputError(
                f"{what}: {path} cannot be read as a NIfTI image ({error}). Fetch or make the file again."
            ) from error
    if image.ndim not in (3, 4) or (dimensions and image.ndim != dimensions and image.shape[dimensions:] != (1,)):
        raise InputError(
            f"{what} {describe(image)} has shape {image.shape}; expected {dimensions or '3 or 4'} dimensions."
        )
    return image.slicer[..., 0] if dimensions == 3 and image.ndim == 4 else image


def read_mask(mask: Image) -> tuple[SpatialImage, np.ndarray]:
    """A mask's image and the voxel indices (V, 3) where it is above 0 (NSD marks what is no cortex with -1)."""
    image = open_image(mask, "mask", dimensions=3)
    inside = read_array(image, "mask")
    if not np.isfinite(inside).all():
        raise InputError(f"mask {describe(image)} holds NaN or infinite values; expected 0 outside and 1 inside.")
    ijk = np.argwhere(inside > 0).astype(np.int32)
    if not len(ijk):
        raise InputError(f"mask {describe(image)} is empty: no voxel is above 0. Give the mask of the voxels to read.")
    if not np.isfinite(image.affine).all() or abs(np.linalg.det(image.affine[:3, :3])) < 1e-9:
        raise InputError(
            f"mask {describe(image)} has a singular affine, so its voxels have no position:\n{image.affine}\nExpected an invertible voxel-to-mm matrix."
        )
    return image, ijk


def read_labels(
    atlas: Image, parcellation: str, ijk: np.ndarray, mask: SpatialImage, names: Mapping[int, str] | None
) -> tuple[np.ndarray, dict[int, str]]:
    """Region numbers (V,) at voxels of the mask's grid, and their names: given, or from the lookup table beside the file."""
    labels = read_numbers(atlas, parcellation, ijk, mask)
    table = names or read_lookup(atlas if isinstance(atlas, (str, Path)) else None, parcellation)
    nameless = sorted(set(np.unique(labels).astype(int).tolist()) - {0} - set(table))
    if nameless:
        raise InputError(
            f"atlas {parcellation} uses the region numbers {nameless[:10]} that its lookup table does not name ({len(table)} names known). Complete the table: columns `index` and `name`, one row per region."
        )
    return labels, {int(k): str(v) for k, v in table.items() if int(k) != 0}


def read_numbers(atlas: Image, parcellation: str, ijk: np.ndarray, mask: SpatialImage, lowest: int = 0) -> np.ndarray:
    """Whole numbers (V,) of a label volume at voxels of the mask's grid, none below `lowest`."""
    image = open_image(atlas, f"atlas {parcellation}", dimensions=3)
    same_grid(image, mask.shape, mask.affine, f"atlas {parcellation}", "the mask")
    labels = read_array(image, f"atlas {parcellation}")[tuple(ijk.T)]
    if not np.isfinite(labels).all() or (labels < lowest).any() or (labels != np.round(labels)).any():
        raise InputError(
            f"atlas {parcellation} {describe(image)} has values that are not whole numbers >= {lowest} inside the mask; expected region numbers, 0 = in no region. Resample atlases with nearest-neighbour interpolation."
        )
    return labels.astype(np.int32)


def read_array(image: SpatialImage, what: str, part: tuple[slice, ...] = ()) -> np.ndarray:
    """The image's numbers, slope and intercept applied; `part` slices the volumes. A truncated file is an InputError."""
    try:
        return np.asanyarray(image.dataobj[(slice(None),) * 3 + part] if part else image.dataobj)
    except Exception as error:  # gzip, zlib, mmap and nibabel each have their own error for a damaged file
        raise InputError(
            f"{what} {describe(image)} is damaged or truncated: its header promises shape {image.shape}, but reading failed ({type(error).__name__}: {error}). Fetch or make the file again."
        ) from error


def same_grid(image: SpatialImage, shape: Sequence[int], affine: np.ndarray, what: str, other: str) -> None:
    """Raise InputError unless `image` lies on the grid (shape, affine) of `other`."""
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in shape])).reshape(3, -1).T
    moved = np.abs(nib.affines.apply_affine(image.affine, corners) - nib.affines.apply_affine(affine, corners)).max()
    if tuple(image.shape[:3]) != tuple(shape) or not moved <= GRID_TOLERANCE_MM:
        raise InputError(
            f"{what} {describe(image)} is on another grid than {other}.\nexpected shape {tuple(shape)}, affine\n{np.round(affine, 4)}\nfound shape {tuple(image.shape[:3])}, affine\n{np.round(image.affine, 4)}\n"
            'Bring it there first, e.g. nilearn.image.resample_to_img(image, target, interpolation="nearest").'
        )


def read_lookup(atlas: str | Path | None, parcellation: str) -> dict[int, str]:
    """Region number -> name from the BIDS table beside an atlas file (`atlas-X_..._dseg.tsv` or `atlas-X_dseg.tsv`)."""
    if atlas is None:
        raise InputError(
            f"atlas {parcellation} was given as an image without names. Pass names={{{parcellation!r}: {{1: 'V1', ...}}}}."
        )
    path = Path(atlas)
    stem = path.name.removesuffix(".gz").removesuffix(".nii")
    candidates = [path.with_name(f"{stem}.tsv"), path.with_name(f"{stem.split('_')[0]}_dseg.tsv")]
    table = next((c for c in candidates if c.is_file()), None)
    if table is None:
        raise InputError(
            f"atlas {parcellation}: no lookup table with the region names beside {path}. Expected {candidates[0].name} or {candidates[1].name} with the columns `index` and `name`."
        )
    rows = pd.read_csv(table, sep="\t")
    if not {"index", "name"} <= set(rows.columns):
        raise InputError(f"lookup table {table} has the columns {list(rows.columns)}; expected `index` and `name`.")
    return dict(zip(rows["index"].astype(int), rows["name"].astype(str), strict=True))


def describe(image: SpatialImage) -> str:
    """The file an image came from, for messages."""
    return str(image.get_filename() or "(in memory)")


def check_values(values: np.ndarray, count: int, name: str) -> None:
    """Raise InputError unless the last dimension of `values` is the `count` voxels of `name`."""
    if values.ndim not in (1, 2) or values.shape[-1] != count:
        raise InputError(
            f"values of {name} have shape {values.shape}; expected ({count},) or (trials, {count}): one number per voxel, in the order of the voxel space."
        )


def check_finite(values: np.ndarray, where: str) -> None:
    """Raise InputError if values (B, V) hold NaN or infinity, saying how many and in which trials."""
    bad = ~np.isfinite(values)
    if bad.any():
        trials, voxels = np.flatnonzero(bad.any(1)), np.flatnonzero(bad.any(0))
        raise InputError(
            f"{where} holds NaN or infinite values in {len(voxels)} of {values.shape[1]} voxels of its mask (first trial concerned: {trials[0]}). Take these voxels out of the mask (where a `mindllm prepare` command has --nan drop, it does so), or mend the scan."
        )
