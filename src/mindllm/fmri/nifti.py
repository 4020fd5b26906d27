"""NIfTI images, opened and checked."""

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


def load_img(img: Image, what: str, dimensions: int | None = None) -> SpatialImage:
    """Open an image: read its header, leave its data on disk.

    Parameters
    ----------
    img : str, Path or nibabel image
        The image.
    what : str
        What it is, for the message ("mask").
    dimensions : int, optional
        Number of dimensions that it must have; by default 3 or 4.

    Returns
    -------
    nibabel image
        With 3 dimensions, if they are asked for and the fourth has length 1.

    Raises
    ------
    InputError
        If there is no such file, it is no NIfTI image, or it has other dimensions.

    Examples
    --------
    >>> load_img(nib.Nifti1Image(np.zeros((2, 3, 4, 1)), np.eye(4)), "mask", dimensions=3).shape
    (2, 3, 4)
    """
    if isinstance(img, (str, Path)):
        path = Path(img)
        if not path.is_file():
            raise InputError(f"{what}: there is no file {path}.")
        try:
            # one forward pass through a .gz, not one per chunk
            img = nib.load(path, keep_file_open=True)
        except (ImageFileError, OSError, EOFError) as error:
            raise InputError(
                f"{what}: {path} cannot be read as a NIfTI image ({error}). "
                "Fetch or make the file again."
            ) from error
    is_expected = not dimensions or img.ndim == dimensions or img.shape[dimensions:] == (1,)
    if img.ndim not in (3, 4) or not is_expected:
        raise InputError(
            f"{what} {img_filename(img)} has shape {img.shape}; "
            f"expected {dimensions or '3 or 4'} dimensions."
        )
    return img.slicer[..., 0] if dimensions == 3 and img.ndim == 4 else img


def read_mask(mask_img: Image) -> tuple[SpatialImage, np.ndarray]:
    """Open a mask and find its voxels.

    Parameters
    ----------
    mask_img : str, Path or nibabel image
        3-D mask; voxels above 0 are inside (NSD marks what is no cortex with -1).

    Returns
    -------
    mask_img : nibabel image
        The opened mask.
    voxel_indices : ndarray of shape (n_voxels, 3), int32
        Voxels of the mask in C order.

    Raises
    ------
    InputError
        If the mask cannot be read, holds NaN, is empty, or has a singular affine.

    Examples
    --------
    >>> _, voxel_indices = read_mask(nib.Nifti1Image(np.eye(2)[:, :, None], np.eye(4)))
    >>> voxel_indices
    array([[0, 0, 0],
           [1, 1, 0]], dtype=int32)
    """
    img = load_img(mask_img, "mask", dimensions=3)
    mask = get_data(img, "mask")
    if not np.isfinite(mask).all():
        raise InputError(
            f"mask {img_filename(img)} holds NaN or infinite values; "
            "expected 0 outside and 1 inside."
        )
    voxel_indices = np.argwhere(mask > 0).astype(np.int32)
    if not len(voxel_indices):
        raise InputError(
            f"mask {img_filename(img)} is empty: no voxel is above 0. "
            "Give the mask of the voxels to read."
        )
    if not np.isfinite(img.affine).all() or abs(np.linalg.det(img.affine[:3, :3])) < 1e-9:
        raise InputError(
            f"mask {img_filename(img)} has a singular affine, so its voxels have no position:\n"
            f"{img.affine}\nExpected an invertible voxel-to-mm matrix."
        )
    return img, voxel_indices


def get_data(img: SpatialImage, what: str, volumes: tuple[slice, ...] = ()) -> np.ndarray:
    """Read the data of an image, slope and intercept applied.

    Parameters
    ----------
    img : nibabel image
        The opened image.
    what : str
        What it is, for the message.
    volumes : tuple of slice
        Slices of the dimensions behind the third; () for all of the image.

    Returns
    -------
    ndarray
        Of shape (i, j, k) or (i, j, k, n_volumes).

    Raises
    ------
    InputError
        If the file is truncated or damaged.
    """
    try:
        return np.asanyarray(img.dataobj[(slice(None),) * 3 + volumes] if volumes else img.dataobj)
    except Exception as error:
        # gzip, zlib, mmap and nibabel each have their own error for a damaged file
        raise InputError(
            f"{what} {img_filename(img)} is damaged or truncated: its header promises shape "
            f"{img.shape}, but reading failed ({type(error).__name__}: {error}). "
            "Fetch or make the file again."
        ) from error


def check_same_grid(
    img: SpatialImage, shape: Sequence[int], affine: np.ndarray, what: str, other: str
) -> None:
    """Check that an image lies on a grid: equal shapes, and corners at most 0.01 mm apart.

    Parameters
    ----------
    img : nibabel image
        The image, 3-D or 4-D.
    shape : sequence of int
        Expected shape (i, j, k).
    affine : ndarray of shape (4, 4)
        Expected voxel-to-mm matrix.
    what, other : str
        What the image is and what the grid is of, for the message.

    Raises
    ------
    InputError
        If the image lies on another grid; the message states both.
    """
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in shape])).reshape(3, -1).T
    apply_affine = nib.affines.apply_affine
    distance = np.abs(apply_affine(img.affine, corners) - apply_affine(affine, corners)).max()
    if tuple(img.shape[:3]) != tuple(shape) or not distance <= GRID_TOLERANCE_MM:
        raise InputError(
            f"{what} {img_filename(img)} is on another grid than {other}.\n"
            f"expected shape {tuple(shape)}, affine\n{np.round(affine, 4)}\n"
            f"found shape {tuple(img.shape[:3])}, affine\n{np.round(img.affine, 4)}\n"
            "Bring it there first, e.g. "
            'nilearn.image.resample_to_img(image, target, interpolation="nearest").'
        )


def img_filename(img: SpatialImage) -> str:
    """Return the file that an image came from, for messages; "(in memory)" without one."""
    return str(img.get_filename() or "(in memory)")
