"""A person's voxels: where each one is, which regions it belongs to, and the way back to a NIfTI volume."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import nibabel as nib
import numpy as np

from mindllm.fmri.atlases import extract_parcel_labels
from mindllm.fmri.nifti import Image, check_same_grid, get_data, img_filename, load_img, read_mask
from mindllm.utils.errors import InputError
from mindllm.utils.files import check_name
from mindllm.utils.validation import check_finite, check_values

CHUNK_BYTES = 2**26


@dataclass(frozen=True)
class VoxelMasker:
    """One subject's V voxels. Values of a trial are always in the order of `ijk`.

    name: the subject.  shape, affine: the grid of the scan, and voxel index -> mm (4 x 4).
    ijk: (V, 3) voxel indices.  mm: (V, 3) positions in MNI millimetres.
    regions: parcellation -> (V,) region numbers, 0 = in no region.  region_names: parcellation -> number -> name.
    """

    subject: str
    shape: tuple[int, int, int]
    affine: np.ndarray
    voxel_indices: np.ndarray
    coords_mm: np.ndarray
    parcel_labels: Mapping[str, np.ndarray]
    parcel_names: Mapping[str, Mapping[int, str]]

    def __post_init__(self) -> None:
        check_name(self.subject, "subject")  # stores and model folders keep a folder of this name

    @classmethod
    def from_mask_img(
        cls,
        mask_img: Image,
        atlases: Mapping[str, Image] | None = None,
        *,
        parcel_names: Mapping[str, Mapping[int, str]] | None = None,
        subject: str = "scan",
    ) -> Self:
        """The voxels where `mask` is above 0, labelled by `atlases` (parcellation -> label volume on the same grid).

        Region names come from `names`, or from the BIDS lookup table (`index`, `name`) beside an atlas file.
        Raises InputError for an empty mask, another grid, labels that are not whole numbers, or a label without a name.
        """
        image, ijk = read_mask(mask_img)
        regions, region_names = {}, {}
        for p, atlas in (atlases or {}).items():
            regions[p], region_names[p] = extract_parcel_labels(
                atlas, p, ijk, image, (parcel_names or {}).get(p)
            )
        mm = nib.affines.apply_affine(image.affine, ijk).astype(np.float32)
        return cls(
            subject,
            tuple(image.shape),
            np.asarray(image.affine, np.float64),
            ijk,
            mm,
            regions,
            region_names,
        )

    def __len__(self) -> int:
        return len(self.voxel_indices)

    def select_voxels(self, keep: np.ndarray) -> Self:
        """The space of some of these voxels: `keep` is a (V,) boolean array or an array of voxel numbers."""
        regions = {p: numbers[keep] for p, numbers in self.parcel_labels.items()}
        return replace(
            self,
            voxel_indices=self.voxel_indices[keep],
            coords_mm=self.coords_mm[keep],
            parcel_labels=regions,
        )

    def inverse_transform(self, values: np.ndarray, fill: float = 0.0) -> nib.Nifti1Image:
        """Values (V,) or (B, V) as a 3-D or 4-D NIfTI image on this subject's grid, `fill` outside the voxels."""
        values = np.asarray(values)
        check_values(values, len(self), self.subject)
        volume = np.full(self.shape + values.shape[:-1], fill, values.dtype)
        volume[tuple(self.voxel_indices.T)] = values.T
        return nib.Nifti1Image(volume, self.affine)

    def transform(self, img: Image, volumes: Sequence[int] | None = None) -> np.ndarray:
        """The values (B, V) of a 3-D or 4-D scan, float32, read a few volumes at a time.

        Raises InputError for another grid, a volume that is not there, NaN or infinity, or a damaged file.
        """
        image = load_img(img, "scan")
        count = len(volumes) if volumes is not None else image.shape[3] if image.ndim == 4 else 1
        out = np.empty((count, len(self)), np.float32)
        for positions, values in self.iter_transform(image, volumes):
            out[positions] = values
        return out

    def iter_transform(
        self, img: Image, volumes: Sequence[int] | None = None, *, finite: bool = True
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield (positions in `volumes`, values (b, V)) until every volume was read once; memory stays near one piece."""
        image = load_img(img, "scan")
        check_same_grid(image, self.shape, self.affine, "scan", "the mask")
        count = 1 if image.ndim == 3 else image.shape[3]
        wanted = np.arange(count) if volumes is None else np.asarray(volumes)
        odd = sorted({v for v in wanted.tolist() if not 0 <= v < count})
        if odd or not len(wanted):
            raise InputError(
                f"scan {img_filename(image)} has volumes 0 to {count - 1}; {odd or 'none'} were asked for."
            )
        step = max(1, CHUNK_BYTES // int(np.prod(self.shape) * 4))
        for start in range(0, count, step):
            stop = min(start + step, count)
            positions = np.flatnonzero((wanted >= start) & (wanted < stop))
            if not len(positions):
                continue
            piece = get_data(image, "scan", (slice(start, stop),) if image.ndim == 4 else ())
            inside = piece.reshape((*self.shape, -1))[tuple(self.voxel_indices.T)]
            values = inside[:, wanted[positions] - start].T.astype(np.float32)
            if finite:
                check_finite(values, f"scan {img_filename(image)}")
            yield positions, values

    def encode_parcels(self, atlas: str, names: Sequence[str]) -> np.ndarray:
        """(V,) regions of a parcellation as places in `names`, from 1; 0: in no region, or the parcellation is missing.

        Raises InputError for a region that is not among `names`.
        """
        if atlas not in self.parcel_labels:
            return np.zeros(len(self), np.int64)
        place = {name: i for i, name in enumerate(names, 1)}
        theirs = {
            int(n): self.parcel_names[atlas][n] for n in np.unique(self.parcel_labels[atlas]) if n
        }
        unknown = sorted(set(theirs.values()) - set(place))
        if unknown:
            raise InputError(
                f"{self.subject}: the parcellation {atlas} has {len(unknown)} region names that the model does not know: {unknown[:5]}. "
                f"Expected names such as {list(names)[:5]}. Rename them in the lookup table, or leave this parcellation out."
            )
        table = np.zeros(max([0, *theirs]) + 1, np.int64)
        table[list(theirs)] = [place[name] for name in theirs.values()]
        return table[self.parcel_labels[atlas]]
