"""A person's voxels: where each one is, which regions it belongs to, and the way back to a NIfTI volume."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import nibabel as nib
import numpy as np

from mindllm.errors import InputError
from mindllm.images import Image, describe, open_image, read_array, read_lookup, same_grid

PIECE_BYTES = 2**26


@dataclass(frozen=True)
class VoxelSpace:
    """One subject's V voxels. Values of a trial are always in the order of `ijk`.

    name: the subject.  shape, affine: the grid of the scan, and voxel index -> mm (4 x 4).
    ijk: (V, 3) voxel indices.  mm: (V, 3) positions in MNI millimetres.
    regions: parcellation -> (V,) region numbers, 0 = in no region.  region_names: parcellation -> number -> name.
    """

    name: str
    shape: tuple[int, int, int]
    affine: np.ndarray
    ijk: np.ndarray
    mm: np.ndarray
    regions: Mapping[str, np.ndarray]
    region_names: Mapping[str, Mapping[int, str]]

    @classmethod
    def from_mask(
        cls,
        mask: Image,
        atlases: Mapping[str, Image] | None = None,
        *,
        names: Mapping[str, Mapping[int, str]] | None = None,
        name: str = "scan",
    ) -> Self:
        """The voxels where `mask` is not zero, labelled by `atlases` (parcellation -> label volume on the same grid).

        Region names come from `names`, or from the BIDS lookup table (`index`, `name`) beside an atlas file.
        Raises InputError for an empty mask, another grid, labels that are not whole numbers, or a label without a name.
        """
        image = open_image(mask, "mask", dimensions=3)
        inside = read_array(image, "mask")
        if not np.isfinite(inside).all():
            raise InputError(f"mask {describe(image)} holds NaN or infinite values; expected 0 outside and 1 inside.")
        ijk = np.argwhere(inside != 0).astype(np.int32)
        if not len(ijk):
            raise InputError(
                f"mask {describe(image)} is empty: no voxel differs from 0. Give the mask of the voxels to read."
            )
        if abs(np.linalg.det(image.affine[:3, :3])) < 1e-9 or not np.isfinite(image.affine).all():
            raise InputError(
                f"mask {describe(image)} has a singular affine, so its voxels have no position:\n{image.affine}\nExpected an invertible voxel-to-mm matrix."
            )
        regions, region_names = {}, {}
        for parcellation, atlas in (atlases or {}).items():
            labels = open_image(atlas, f"atlas {parcellation}", dimensions=3)
            same_grid(labels, image.shape, image.affine, f"atlas {parcellation}", "the mask")
            found = read_array(labels, f"atlas {parcellation}")[tuple(ijk.T)]
            if not np.isfinite(found).all() or (found < 0).any() or (found != np.round(found)).any():
                raise InputError(
                    f"atlas {parcellation} {describe(labels)} has values that are not whole numbers >= 0 inside the mask; expected region numbers, 0 = in no region. Resample atlases with nearest-neighbour interpolation."
                )
            regions[parcellation] = found.astype(np.int32)
            table = (names or {}).get(parcellation) or read_lookup(
                atlas if isinstance(atlas, (str, Path)) else None, parcellation
            )
            nameless = sorted(set(np.unique(regions[parcellation]).tolist()) - {0} - set(table))
            if nameless:
                raise InputError(
                    f"atlas {parcellation} uses the region numbers {nameless[:10]} that its lookup table does not name ({len(table)} names known). Complete the table: columns `index` and `name`, one row per region."
                )
            region_names[parcellation] = {int(k): str(v) for k, v in table.items() if int(k) != 0}
        mm = nib.affines.apply_affine(image.affine, ijk).astype(np.float32)
        return cls(name, tuple(image.shape), np.asarray(image.affine, np.float64), ijk, mm, regions, region_names)

    def __len__(self) -> int:
        return len(self.ijk)

    def select(self, keep: np.ndarray) -> Self:
        """The space of some of these voxels: `keep` is a (V,) boolean array or an array of voxel numbers."""
        return replace(
            self, ijk=self.ijk[keep], mm=self.mm[keep], regions={p: r[keep] for p, r in self.regions.items()}
        )

    def unmask(self, values: np.ndarray, fill: float = 0.0) -> nib.Nifti1Image:
        """Values (V,) or (B, V) as a 3-D or 4-D NIfTI image on this subject's grid, `fill` outside the voxels."""
        values = np.asarray(values)
        check_values(values, len(self), self.name)
        volume = np.full(self.shape + values.shape[:-1], fill, values.dtype)
        volume[tuple(self.ijk.T)] = values.T
        return nib.Nifti1Image(volume, self.affine)

    def read(self, scan: Image, volumes: Sequence[int] | None = None) -> np.ndarray:
        """The values (B, V) of a 3-D or 4-D scan, float32, read a few volumes at a time.

        Raises InputError for another grid, a volume that is not there, NaN or infinity, or a damaged file.
        """
        positions, pieces = zip(*self.read_pieces(scan, volumes), strict=True)
        return np.concatenate(pieces)[np.argsort(np.concatenate(positions))]

    def read_pieces(
        self, scan: Image, volumes: Sequence[int] | None = None, *, finite: bool = True
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield (positions in `volumes`, values (b, V)) until every volume was read once; memory stays near one piece."""
        image = open_image(scan, "scan")
        same_grid(image, self.shape, self.affine, "scan", "the mask")
        count = 1 if image.ndim == 3 else image.shape[3]
        wanted = np.arange(count) if volumes is None else np.asarray(volumes)
        if len(wanted) == 0 or wanted.min() < 0 or wanted.max() >= count:
            raise InputError(
                f"scan {describe(image)} has volumes 0 to {count - 1}; {sorted(set(wanted.tolist()))} were asked for."
            )
        step = max(1, PIECE_BYTES // int(np.prod(self.shape) * 4))
        for start in range(0, count, step):
            stop = min(start + step, count)
            positions = np.flatnonzero((wanted >= start) & (wanted < stop))
            if not len(positions):
                continue
            piece = read_array(image, "scan", (slice(start, stop),) if image.ndim == 4 else ())
            values = piece.reshape(self.shape + (-1,))[tuple(self.ijk.T)].T.astype(np.float32)[
                wanted[positions] - start
            ]
            if finite:
                check_finite(values, f"scan {describe(image)}")
            yield positions, values


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
            f"{where} holds NaN or infinite values in {len(voxels)} of {values.shape[1]} voxels of its mask (first trial concerned: {trials[0]}). Take these voxels out of the mask (`mindllm prepare bids --nan drop` does so), or mend the scan."
        )
