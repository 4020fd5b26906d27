"""NIfTI files, opened and checked: what is wrong with one is said in a sentence."""

from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import SpatialImage

from mindllm.utils.errors import InputError

GRID_TOLERANCE_MM = 1e-2
Image: TypeAlias = str | Path | SpatialImage


def load_img(image: Image, what: str, dimensions: int | None = None) -> SpatialImage:
    """A nibabel image, its header read and its data still on disk."""
    if isinstance(image, (str, Path)):
        path = Path(image)
        if not path.is_file():
            raise InputError(f"{what}: there is no file {path}.")
        try:
            image = nib.load(
                path, keep_file_open=True
            )  # one forward pass through a .gz, not one per piece
        except (ImageFileError, OSError, EOFError) as error:
            raise InputError(
                f"{what}: {path} cannot be read as a NIfTI image ({error}). Fetch or make the file again."
            ) from error
    if image.ndim not in (3, 4) or (
        dimensions and image.ndim != dimensions and image.shape[dimensions:] != (1,)
    ):
        raise InputError(
            f"{what} {img_filename(image)} has shape {image.shape}; expected {dimensions or '3 or 4'} dimensions."
        )
    return image.slicer[..., 0] if dimensions == 3 and image.ndim == 4 else image


def read_mask(mask: Image) -> tuple[SpatialImage, np.ndarray]:
    """A mask's image and the voxel indices (V, 3) where it is above 0 (NSD marks what is no cortex with -1)."""
    image = load_img(mask, "mask", dimensions=3)
    inside = get_data(image, "mask")
    if not np.isfinite(inside).all():
        raise InputError(
            f"mask {img_filename(image)} holds NaN or infinite values; expected 0 outside and 1 inside."
        )
    ijk = np.argwhere(inside > 0).astype(np.int32)
    if not len(ijk):
        raise InputError(
            f"mask {img_filename(image)} is empty: no voxel is above 0. Give the mask of the voxels to read."
        )
    if not np.isfinite(image.affine).all() or abs(np.linalg.det(image.affine[:3, :3])) < 1e-9:
        raise InputError(
            f"mask {img_filename(image)} has a singular affine, so its voxels have no position:\n{image.affine}\nExpected an invertible voxel-to-mm matrix."
        )
    return image, ijk


def get_data(image: SpatialImage, what: str, part: tuple[slice, ...] = ()) -> np.ndarray:
    """The image's numbers, slope and intercept applied; `part` slices the volumes. A truncated file is an InputError."""
    try:
        return np.asanyarray(image.dataobj[(slice(None),) * 3 + part] if part else image.dataobj)
    except (
        Exception
    ) as error:  # gzip, zlib, mmap and nibabel each have their own error for a damaged file
        raise InputError(
            f"{what} {img_filename(image)} is damaged or truncated: its header promises shape {image.shape}, but reading failed ({type(error).__name__}: {error}). Fetch or make the file again."
        ) from error


def check_same_grid(
    image: SpatialImage, shape: Sequence[int], affine: np.ndarray, what: str, other: str
) -> None:
    """Raise InputError unless `image` lies on the grid (shape, affine) of `other`."""
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in shape])).reshape(3, -1).T
    moved = np.abs(
        nib.affines.apply_affine(image.affine, corners) - nib.affines.apply_affine(affine, corners)
    ).max()
    if tuple(image.shape[:3]) != tuple(shape) or not moved <= GRID_TOLERANCE_MM:
        raise InputError(
            f"{what} {img_filename(image)} is on another grid than {other}.\nexpected shape {tuple(shape)}, affine\n{np.round(affine, 4)}\nfound shape {tuple(image.shape[:3])}, affine\n{np.round(image.affine, 4)}\n"
            'Bring it there first, e.g. nilearn.image.resample_to_img(image, target, interpolation="nearest").'
        )


def img_filename(image: SpatialImage) -> str:
    """The file an image came from, for messages."""
    return str(image.get_filename() or "(in memory)")
