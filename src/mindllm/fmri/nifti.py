"""NIfTI images, opened and checked."""

import bz2
import gzip
import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TypeAlias

import nibabel as nib
import numpy as np
from nibabel.analyze import AnalyzeImage
from nibabel.nifti1 import Nifti1Pair
from nibabel.spatialimages import SpatialImage

from mindllm.utils.errors import InputError, describe_error

GRID_TOLERANCE_MM = 1e-2
COMPRESSED = {".gz": gzip.GzipFile, ".mgz": gzip.GzipFile, ".bz2": bz2.BZ2File}
MAX_RATIOS = {".gz": 1032, ".mgz": 1032}  # of zlib, whose documentation says why
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
        except Exception as error:
            # gzip, zlib and nibabel each have their own error for a damaged header
            raise InputError(
                f"{what}: {path} cannot be read as a NIfTI image ({describe_error(error)}). "
                "Fetch or make the file again."
            ) from error
        check_announced_size(img, what)
    is_expected = not dimensions or img.ndim == dimensions or img.shape[dimensions:] == (1,)
    if img.ndim not in (3, 4) or not is_expected:
        raise InputError(
            f"{what} {img_filename(img)} has shape {img.shape}; "
            f"expected {dimensions or '3 or 4'} dimensions."
        )
    return img.slicer[..., 0] if dimensions == 3 and img.ndim == 4 else img


def check_announced_size(img: SpatialImage, what: str) -> None:
    """Check that the file of an image is large enough for what its header promises.

    Parameters
    ----------
    img : nibabel image
        The opened image.
    what : str
        What it is, for the message.

    Raises
    ------
    InputError
        If it is too small, or a dimension is no length. Of an image compressed otherwise than with
        gzip, dimensions alone are checked.
    """
    path = Path(img_filename(img))
    if not nib.is_proxy(img.dataobj) or not path.is_file():
        return
    announced = math.prod(img.shape) * img.dataobj.dtype.itemsize
    suffix, size = path.suffix.lower(), path.stat().st_size
    held = size if suffix not in COMPRESSED else size * MAX_RATIOS.get(suffix, math.inf)
    if min(img.shape, default=0) < 1 or announced > held:
        raise InputError(
            f"{what} {path} is damaged or truncated: its header promises shape {img.shape}, "
            f"{announced} bytes, but the file has {size}. Fetch or make the file again."
        )


def check_orientation(img: SpatialImage, what: str) -> None:
    """Check that an image says where its voxels are.

    Without an orientation nibabel makes an affine up: its voxels are put around the origin, and
    left and right may be exchanged.

    Parameters
    ----------
    img : nibabel image
        The opened image.
    what : str
        What it is, for the message.

    Raises
    ------
    InputError
        If a NIfTI image has qform and sform codes of 0, or an Analyze image no matrix.

    References
    ----------
    NIfTI-1 data format, "3D image (volume) orientation and location in space", method 1.
    """
    header = img.header
    if not isinstance(img, AnalyzeImage):
        return
    if isinstance(img, Nifti1Pair) and (header["qform_code"] > 0 or header["sform_code"] > 0):
        return
    raise InputError(
        f"{what} {img_filename(img)} has no orientation (its qform and sform codes are 0), so "
        "where its voxels are is unknown; expected a NIfTI image that says so. Copy the "
        "orientation of the image that it was made from, e.g. `fslcpgeom ORIGINAL FILE`, or set "
        "it in nibabel: img.set_sform(affine, code=1)."
    )


def binarize_mask(
    mask_img: Image, threshold: float | None = None, *, what: str = "mask"
) -> SpatialImage:
    """Make a mask of zeros and ones.

    Parameters
    ----------
    mask_img : str, Path or nibabel image
        3-D mask, or a map to threshold; NaN is outside.
    threshold : float, optional
        Voxels above it are inside. Default: for a statmap (by its file name, as BIDS has it) 0; any
        other image must be binary.
    what : str
        What it is, for the message.

    Returns
    -------
    nibabel image
        On the same grid, uint8, with the same file name.

    Raises
    ------
    InputError
        If the image cannot be read, has no orientation, or is not binary and no threshold was
        chosen.

    Examples
    --------
    >>> probabilities = nib.Nifti1Image(np.array([[[0.2, 0.8]]]), np.eye(4))
    >>> binarize_mask(probabilities, 0.5).get_fdata()
    array([[[0., 1.]]])
    """
    img = load_img(mask_img, what, dimensions=3)
    check_orientation(img, what)
    check_affine(img, what)
    if threshold is None and "_statmap.nii" in img_filename(img):
        threshold = 0.0
    inside = find_inside(img, np.nan_to_num(get_data(img, what)), threshold)
    binary_img = nib.Nifti1Image(inside.astype(np.uint8), img.affine)
    binary_img.file_map["image"].filename = img_filename(img)  # so that messages name the file
    return binary_img


def find_inside(img: SpatialImage, mask: np.ndarray, threshold: float | None) -> np.ndarray:
    """Find the voxels inside a mask: above the threshold, else above 0 if it is binary."""
    if threshold is not None:
        return mask > threshold
    inside = mask > 0
    values = np.unique(mask[inside])
    if len(values) > 1:
        raise InputError(
            f"mask {img_filename(img)} is not binary: it has {len(values)} different values above "
            f"0, from {values[0]:.3g} to {values[-1]:.3g}, as after smoothing or resampling. "
            "Expected 0 outside and one other value inside; give such a mask, or choose above "
            "which value a voxel is inside (--mask-threshold 0.5; threshold=0.5 in Python)."
        )
    return inside


def read_mask(
    mask_img: Image,
    threshold: float | None = None,
    *,
    is_roi: bool = False,
    needs_orientation: bool = True,
) -> tuple[SpatialImage, np.ndarray]:
    """Open a mask and find its voxels.

    Parameters
    ----------
    mask_img : str, Path or nibabel image
        3-D binary mask; voxels above 0 are inside (NSD marks what is no cortex with -1).
    threshold : float, optional
        Voxels above it are inside; the image need not be binary then.
    is_roi : bool
        Whether the image may be one of parcel labels, of which all above 0 are inside.
    needs_orientation : bool
        Whether the voxels' coordinates are taken from the image.

    Returns
    -------
    mask_img : nibabel image
        The opened mask.
    voxel_indices : ndarray of shape (n_voxels, 3), int32
        Voxels of the mask in C order.

    Raises
    ------
    InputError
        If the mask cannot be read, has no orientation, holds NaN, is not binary, is empty, or has
        a singular affine.

    Examples
    --------
    >>> _, voxel_indices = read_mask(nib.Nifti1Image(np.eye(2)[:, :, None], np.eye(4)))
    >>> voxel_indices
    array([[0, 0, 0],
           [1, 1, 0]], dtype=int32)
    """
    img = load_img(mask_img, "mask", dimensions=3)
    if needs_orientation:
        check_orientation(img, "mask")
    mask = get_data(img, "mask")
    if not np.isfinite(mask).all():
        raise InputError(
            f"mask {img_filename(img)} holds NaN or infinite values; "
            "expected 0 outside and 1 inside."
        )
    if is_roi and threshold is None and (mask == np.round(mask)).all():
        threshold = 0.0
    voxel_indices = np.argwhere(find_inside(img, mask, threshold)).astype(np.int32)
    if not len(voxel_indices):
        raise InputError(
            f"mask {img_filename(img)} is empty: no voxel is above {threshold or 0:g}. "
            "Give the mask of the voxels to read."
        )
    check_affine(img, "mask")
    return img, voxel_indices


def check_affine(img: SpatialImage, what: str) -> None:
    """Check that the voxels of an image have positions.

    Parameters
    ----------
    img : nibabel image
        The image.
    what : str
        What it is, for the message.

    Raises
    ------
    InputError
        If its affine is singular, or holds NaN or infinity.
    """
    if not np.isfinite(img.affine).all() or abs(np.linalg.det(img.affine[:3, :3])) < 1e-9:
        raise InputError(
            f"{what} {img_filename(img)} has a singular affine, so its voxels have no position:\n"
            f"{img.affine}\nExpected an invertible voxel-to-mm matrix."
        )


def get_data(
    img: SpatialImage, what: str, volumes: tuple[slice, ...] = (), *, checked: bool = True
) -> np.ndarray:
    """Read the data of an image, slope and intercept applied.

    Parameters
    ----------
    img : nibabel image
        The opened image.
    what : str
        What it is, for the message.
    volumes : tuple of slice
        Slices of the dimensions behind the third; () for all of the image.
    checked : bool
        Whether a compressed file is first read to its end, to check it against its checksum.

    Returns
    -------
    ndarray
        Of shape (i, j, k) or (i, j, k, n_volumes).

    Raises
    ------
    InputError
        If the file is truncated or damaged, which the checksum of a compressed one tells, or its
        values are not single numbers.
    """
    try:
        if checked:
            check_checksum(img)
        data = np.asanyarray(img.dataobj[(slice(None),) * 3 + volumes] if volumes else img.dataobj)
    except Exception as error:
        # gzip, zlib, mmap and nibabel each have their own error for a damaged file
        raise InputError(
            f"{what} {img_filename(img)} is damaged or truncated: its header promises shape "
            f"{img.shape}, but reading failed ({describe_error(error)}). "
            "Fetch or make the file again."
        ) from error
    if data.dtype.kind not in "biuf":
        raise InputError(
            f"{what} {img_filename(img)} has values of type {data.dtype}, as colors or complex "
            "numbers have; expected one real number per voxel."
        )
    return data


def check_checksum(img: SpatialImage) -> None:
    """Check a compressed file of an image, which is to be read, against its own checksum.

    Readers of images stop behind the last voxel, before the checksum at the end.

    Parameters
    ----------
    img : nibabel image
        The opened image.

    Raises
    ------
    OSError, EOFError, zlib.error
        If the file is damaged, as `gzip -t` would find.
    """
    if not nib.is_proxy(img.dataobj):
        return
    path = Path(str(img.file_map["image"].filename))
    if path.suffix.lower() in COMPRESSED and path.is_file():
        status = path.stat()
        decompress(path, status.st_size, status.st_mtime_ns)


@cache
def decompress(path: Path, size: int, mtime_ns: int) -> None:
    """Decompress a file to its end, once per process and state of the file."""
    with COMPRESSED[path.suffix.lower()](path) as file:
        while file.read(2**20):
            pass


def is_on_grid(img: SpatialImage, shape: Sequence[int], affine: np.ndarray) -> bool:
    """Return whether an image lies on a grid; see `check_same_grid`."""
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in shape])).reshape(3, -1).T
    apply_affine = nib.affines.apply_affine
    distance = np.abs(apply_affine(img.affine, corners) - apply_affine(affine, corners)).max()
    return tuple(img.shape[:3]) == tuple(shape) and bool(distance <= GRID_TOLERANCE_MM)


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
    if not is_on_grid(img, shape, affine):
        found_grid = describe_grid(img.shape, img.affine)
        expected_grid = describe_grid(shape, affine)
        if found_grid == expected_grid:
            expected_grid = "the same, turned, flipped or shifted a little"
        raise InputError(
            f"{what} {img_filename(img)} is on another grid than {other}: found {found_grid}; "
            f"expected {expected_grid}. Bring it there first, e.g. "
            'nilearn.image.resample_to_img(image, target, interpolation="nearest").'
        )


def describe_grid(shape: Sequence[int], affine: np.ndarray) -> str:
    """Describe a grid in words: number and size of its voxels, and where the first is.

    Examples
    --------
    >>> describe_grid((4, 4, 5), np.diag([2.0, 2, 2.5, 1]))
    '4 x 4 x 5 voxels of 2 x 2 x 2.5 mm, the first at (0, 0, 0) mm'
    """
    count = " x ".join(str(n) for n in shape[:3])
    size = " x ".join(f"{mm:.4g}" for mm in nib.affines.voxel_sizes(affine))
    start = ", ".join(f"{mm + 0.0:.4g}" for mm in np.round(affine[:3, 3], 2))
    return f"{count} voxels of {size} mm, the first at ({start}) mm"


def img_filename(img: SpatialImage) -> str:
    """Return the file that an image came from, for messages; "(in memory)" without one."""
    return str(img.get_filename() or "(in memory)")
