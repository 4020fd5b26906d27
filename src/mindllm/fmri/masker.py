"""Maskers: which voxels a subject has, where they are, and in which parcels they lie."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import nibabel as nib
import numpy as np
from nibabel.spatialimages import SpatialImage

from mindllm.fmri.atlases import check_atlas_names, extract_parcel_labels
from mindllm.fmri.nifti import (
    Image,
    check_orientation,
    check_same_grid,
    get_data,
    img_filename,
    load_img,
    read_mask,
)
from mindllm.utils.errors import InputError
from mindllm.utils.files import check_name
from mindllm.utils.validation import check_finite, check_values

CHUNK_BYTES = 2**26  # of an image in memory at once


@dataclass(frozen=True, repr=False)
class VoxelMasker:
    """Voxels of one subject: extract their betas from images, and put betas back into images.

    Betas are always in the order of `voxel_indices`. Use `from_mask_img` to make a masker.

    Parameters
    ----------
    subject : str
        Subject label.
    shape : tuple of int
        Shape (i, j, k) of the grid.
    affine : ndarray of shape (4, 4)
        Voxel-to-mm matrix of the grid.
    voxel_indices : ndarray of shape (n_voxels, 3)
        Indices of the voxels on the grid.
    coords_mm : ndarray of shape (n_voxels, 3)
        MNI coordinates of the voxels in millimeters.
    parcel_labels : mapping of str to ndarray of shape (n_voxels,)
        Atlas name -> label of the parcel that holds each voxel, 0: none.
    parcel_names : mapping of str to mapping of int to str
        Atlas name -> parcel label -> parcel name.

    Examples
    --------
    >>> import nibabel as nib
    >>> import numpy as np
    >>> from mindllm import VoxelMasker
    >>> affine = np.diag([2.0, 2.0, 2.0, 1.0])
    >>> mask = np.zeros((4, 4, 4), np.uint8)
    >>> mask[1:3, 1:3, 1:3] = 1
    >>> atlas_img = nib.Nifti1Image(mask.astype(np.int16), affine)
    >>> masker = VoxelMasker.from_mask_img(
    ...     nib.Nifti1Image(mask, affine),
    ...     atlases={"visual": atlas_img},
    ...     parcel_names={"visual": {1: "V1"}},
    ...     subject="sub-01",
    ... )
    >>> masker  # doctest: +NORMALIZE_WHITESPACE
    VoxelMasker(subject='sub-01', n_voxels=8, shape=(4, 4, 4),
                voxel_size_mm=(2.0, 2.0, 2.0), atlases=['visual'])
    >>> scan = nib.Nifti1Image(np.random.default_rng(0).normal(size=(4, 4, 4, 10)), affine)
    >>> betas = masker.transform(scan)
    >>> betas.shape
    (10, 8)
    >>> masker.inverse_transform(betas).shape
    (4, 4, 4, 10)
    """

    subject: str
    shape: tuple[int, int, int]
    affine: np.ndarray
    voxel_indices: np.ndarray
    coords_mm: np.ndarray
    parcel_labels: Mapping[str, np.ndarray]
    parcel_names: Mapping[str, Mapping[int, str]]

    def __post_init__(self) -> None:
        check_name(self.subject, "subject")  # stores and checkpoints keep a folder of this name
        check_atlas_names(self.parcel_labels)

    @classmethod
    def from_mask_img(
        cls,
        mask_img: Image,
        atlases: Mapping[str, Image] | None = None,
        *,
        parcel_names: Mapping[str, Mapping[int, str]] | None = None,
        subject: str = "scan",
        threshold: float | None = None,
    ) -> Self:
        """Make a masker of the voxels inside a mask.

        Parameters
        ----------
        mask_img : str, Path or nibabel image
            3-D binary mask in MNI space; voxels above 0 are inside.
        atlases : mapping of str to (str, Path or nibabel image), optional
            Atlas name -> 3-D label image on the grid of the mask; 0: no parcel.
        parcel_names : mapping of str to mapping of int to str, optional
            Atlas name -> parcel label -> parcel name; by default from the BIDS lookup table
            (columns `index`, `name`) beside each atlas file.
        subject : str
            Subject label.
        threshold : float, optional
            For a mask that is not binary, such as a probability map: voxels above it are inside.

        Returns
        -------
        VoxelMasker
            The masker, its voxels in C order.

        Raises
        ------
        InputError
            For a mask that is empty, not binary or without orientation, an atlas on another grid,
            labels that are not whole numbers, or a label without a name.

        Examples
        --------
        >>> import nibabel as nib
        >>> import numpy as np
        >>> len(VoxelMasker.from_mask_img(nib.Nifti1Image(np.eye(3)[:, :, None], np.eye(4))))
        3
        """
        img, voxel_indices = read_mask(mask_img, threshold)
        labels, names = {}, {}
        for atlas, atlas_img in (atlases or {}).items():
            labels[atlas], names[atlas] = extract_parcel_labels(
                atlas_img, atlas, voxel_indices, img, (parcel_names or {}).get(atlas)
            )
        return cls.from_voxel_indices(subject, img, voxel_indices, labels, names)

    @classmethod
    def from_voxel_indices(
        cls,
        subject: str,
        img: SpatialImage,
        voxel_indices: np.ndarray,
        parcel_labels: Mapping[str, np.ndarray],
        parcel_names: Mapping[str, Mapping[int, str]],
    ) -> Self:
        """Make a masker of voxels of an image's grid.

        Parameters
        ----------
        subject : str
            Subject label.
        img : nibabel image
            3-D image in MNI space, of which only shape and affine are used.
        voxel_indices : ndarray of shape (n_voxels, 3)
            Indices of the voxels.
        parcel_labels : mapping of str to ndarray of shape (n_voxels,)
            Atlas name -> parcel labels.
        parcel_names : mapping of str to mapping of int to str
            Atlas name -> parcel label -> parcel name.

        Returns
        -------
        VoxelMasker
            The masker, with the coordinates that the image's affine gives.
        """
        return cls(
            subject=subject,
            shape=tuple(img.shape),
            affine=np.asarray(img.affine, np.float64),
            voxel_indices=voxel_indices,
            coords_mm=nib.affines.apply_affine(img.affine, voxel_indices).astype(np.float32),
            parcel_labels=parcel_labels,
            parcel_names=parcel_names,
        )

    def __len__(self) -> int:
        return len(self.voxel_indices)

    def __repr__(self) -> str:
        voxel_size = tuple(round(float(mm), 3) for mm in nib.affines.voxel_sizes(self.affine))
        shape = tuple(map(int, self.shape))
        return (
            f"{type(self).__name__}(subject={self.subject!r}, n_voxels={len(self)}, "
            f"shape={shape}, voxel_size_mm={voxel_size}, atlases={list(self.parcel_labels)})"
        )

    def select_voxels(self, keep: np.ndarray) -> Self:
        """Make a masker of some of the voxels.

        Parameters
        ----------
        keep : ndarray of shape (n_voxels,), bool, or of shape (n_selected,), int
            Boolean selection, or row numbers in their new order.

        Returns
        -------
        VoxelMasker
            Masker of the selected voxels.

        Examples
        --------
        >>> import nibabel as nib
        >>> import numpy as np
        >>> masker = VoxelMasker.from_mask_img(nib.Nifti1Image(np.ones((2, 2, 2)), np.eye(4)))
        >>> masker.select_voxels(np.array([7, 0])).voxel_indices.tolist()
        [[1, 1, 1], [0, 0, 0]]
        """
        return replace(
            self,
            voxel_indices=self.voxel_indices[keep],
            coords_mm=self.coords_mm[keep],
            parcel_labels={atlas: labels[keep] for atlas, labels in self.parcel_labels.items()},
        )

    def inverse_transform(self, betas: np.ndarray, fill: float = 0.0) -> nib.Nifti1Image:
        """Put betas, or any number per voxel, into an image on the subject's grid.

        Parameters
        ----------
        betas : ndarray of shape (n_voxels,) or (n_trials, n_voxels)
            Numbers in the order of the voxels.
        fill : float
            Value outside the voxels.

        Returns
        -------
        nibabel.Nifti1Image
            3-D, or 4-D with one volume per trial, in the data type of `betas`.

        Raises
        ------
        InputError
            If `betas` has another number of voxels.

        Examples
        --------
        >>> import nibabel as nib
        >>> import numpy as np
        >>> masker = VoxelMasker.from_mask_img(nib.Nifti1Image(np.eye(2)[:, :, None], np.eye(4)))
        >>> masker.inverse_transform(np.array([3.0, 4.0])).get_fdata()[:, :, 0]
        array([[3., 0.],
               [0., 4.]])
        """
        betas = np.asarray(betas)
        check_values(betas, len(self), self.subject)
        volumes = np.full(self.shape + betas.shape[:-1], fill, betas.dtype)
        volumes[tuple(self.voxel_indices.T)] = betas.T
        return nib.Nifti1Image(volumes, self.affine)

    def transform(self, img: Image, volumes: Sequence[int] | None = None) -> np.ndarray:
        """Extract the betas of an image, reading a few volumes at a time.

        Parameters
        ----------
        img : str, Path or nibabel image
            3-D or 4-D image on the subject's grid, one volume per trial.
        volumes : sequence of int, optional
            Volumes to read, from 0, in any order; by default all.

        Returns
        -------
        ndarray of shape (n_trials, n_voxels), float32
            Betas, with slope and intercept of the image applied.

        Raises
        ------
        InputError
            For another grid, a volume that the image does not have, NaN or infinity inside the
            mask, or a damaged file.

        Examples
        --------
        >>> import nibabel as nib
        >>> import numpy as np
        >>> masker = VoxelMasker.from_mask_img(nib.Nifti1Image(np.eye(2)[:, :, None], np.eye(4)))
        >>> scan = nib.Nifti1Image(np.arange(8.0).reshape(2, 2, 1, 2), np.eye(4))
        >>> masker.transform(scan)
        array([[0., 6.],
               [1., 7.]], dtype=float32)
        """
        img = load_img(img, "scan")
        count = len(volumes) if volumes is not None else count_volumes(img)
        betas = np.empty((count, len(self)), np.float32)
        for positions, chunk in self.iter_transform(img, volumes):
            betas[positions] = chunk
        return betas

    def iter_transform(
        self, img: Image, volumes: Sequence[int] | None = None, *, finite: bool = True
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Extract the betas of an image chunk by chunk, each volume being read once.

        Parameters
        ----------
        img, volumes
            As for `transform`.
        finite : bool
            Whether NaN and infinity inside the mask are errors.

        Yields
        ------
        positions : ndarray of shape (n_chunk_trials,)
            Positions of the chunk's trials in `volumes`.
        betas : ndarray of shape (n_chunk_trials, n_voxels), float32
            Their betas.

        Raises
        ------
        InputError
            As `transform`.

        Examples
        --------
        >>> import nibabel as nib
        >>> import numpy as np
        >>> masker = VoxelMasker.from_mask_img(nib.Nifti1Image(np.ones((2, 2, 2)), np.eye(4)))
        >>> scan = nib.Nifti1Image(np.zeros((2, 2, 2, 5)), np.eye(4))
        >>> [betas.shape for _, betas in masker.iter_transform(scan)]
        [(5, 8)]
        """
        img = load_img(img, "scan")
        check_orientation(img, "scan")
        check_same_grid(img, self.shape, self.affine, "scan", "the mask")
        count = count_volumes(img)
        numbers = np.arange(count) if volumes is None else np.asarray(volumes)
        missing = sorted({v for v in numbers.tolist() if not 0 <= v < count})
        if missing or not len(numbers):
            raise InputError(
                f"scan {img_filename(img)} has volumes 0 to {count - 1}; "
                f"{missing or 'none'} were asked for."
            )
        step = max(1, CHUNK_BYTES // int(np.prod(self.shape) * 4))
        for start in range(0, count, step):
            stop = min(start + step, count)
            positions = np.flatnonzero((numbers >= start) & (numbers < stop))
            if not len(positions):
                continue
            chunk = get_data(img, "scan", (slice(start, stop),) if img.ndim == 4 else ())
            inside = chunk.reshape((*self.shape, -1))[tuple(self.voxel_indices.T)]
            betas = inside[:, numbers[positions] - start].T.astype(np.float32)
            if finite:
                check_finite(betas, f"scan {img_filename(img)}")
            yield positions, betas

    def encode_parcels(self, atlas: str, names: Sequence[str]) -> np.ndarray:
        """Encode the parcel of each voxel as its position in a list of parcel names.

        Parameters
        ----------
        atlas : str
            Name of the atlas.
        names : sequence of str
            Parcel names that a model knows, in its order.

        Returns
        -------
        ndarray of shape (n_voxels,), int64
            1 + position of the parcel's name in `names`; 0: in no parcel, or the masker lacks the
            atlas.

        Raises
        ------
        InputError
            If a voxel lies in a parcel that is not in `names`.

        Examples
        --------
        >>> import nibabel as nib
        >>> import numpy as np
        >>> mask_img = nib.Nifti1Image(np.ones((3, 1, 1)), np.eye(4))
        >>> labels = np.array([0, 1, 2], np.int16).reshape(3, 1, 1)
        >>> masker = VoxelMasker.from_mask_img(
        ...     mask_img,
        ...     {"visual": nib.Nifti1Image(labels, np.eye(4))},
        ...     parcel_names={"visual": {1: "V1", 2: "V2"}},
        ... )
        >>> masker.encode_parcels("visual", ["V2", "V1"])
        array([0, 2, 1])
        """
        if atlas not in self.parcel_labels:
            return np.zeros(len(self), np.int64)
        position = {name: i for i, name in enumerate(names, 1)}
        labels = np.unique(self.parcel_labels[atlas])
        parcels = {int(label): self.parcel_names[atlas][label] for label in labels if label}
        unknown = sorted(set(parcels.values()) - set(position))
        if unknown:
            raise InputError(
                f"{self.subject}: the atlas {atlas} has {len(unknown)} parcel names that the "
                f"model does not know: {unknown[:5]}. Expected names such as {list(names)[:5]}. "
                "Rename them in the lookup table, or leave this atlas out."
            )
        codes = np.zeros(max([0, *parcels]) + 1, np.int64)
        codes[list(parcels)] = [position[name] for name in parcels.values()]
        return codes[self.parcel_labels[atlas]]


def count_volumes(img: SpatialImage) -> int:
    """Count the volumes of a 3-D or 4-D image."""
    return img.shape[3] if img.ndim == 4 else 1
