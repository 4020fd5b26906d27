"""Voxel spaces from ROI volumes laid out as NSD's are: subj01/nsdgeneral.nii.gz is the mask, its neighbours parcellations."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.spatialimages import SpatialImage

from mindllm.fmri.atlases import extract_label_values, load_atlas_lut
from mindllm.fmri.masker import VoxelMasker
from mindllm.fmri.nifti import read_mask
from mindllm.utils.errors import InputError

MASK = "nsdgeneral"
OUTSIDE = "not cortex"  # NSD marks it with -1
logger = logging.getLogger(__name__)


def find_roi_subjects(root: Path) -> list[str]:
    """The people with a folder of ROI volumes. Raises InputError if there are none."""
    found = sorted(folder.name for folder in root.glob("subj*") if folder.is_dir())
    if not found:
        raise InputError(
            f"{root} has no folder of a person; expected subj01/{MASK}.nii.gz and so on."
        )
    return found


def load_roi_maskers(
    folders: Mapping[str, Path],
    atlases: Mapping[str, int] | None = None,
    *,
    masks: Mapping[str, Path] | None = None,
    lookups: Mapping[str, Sequence[Path]] | None = None,
) -> dict[str, VoxelMasker]:
    """The voxel spaces of some people (subject -> folder of ROI volumes), their region numbers meaning the same in all.

    parcellations: those to read, with the number of regions each may have (0 counts as one); None: all that are there, but
    those of one hemisphere alone (lh.NAME, rh.NAME).  masks: the mask files, else nsdgeneral.nii.gz in the folders.
    Names come from lookup tables (NAME.tsv, or FreeSurfer's NAME.ctab) beside the volumes, above them, or in `lookups`;
    else numbers serve. Raises InputError for a missing file, another grid than the mask's, or a region number out of range.
    """
    subjects = list(folders)
    raw: dict[str, dict[str, np.ndarray]] = {}
    places: dict[str, tuple[SpatialImage, np.ndarray]] = {}
    for subject, folder in folders.items():
        file = (masks or {}).get(subject, folder / f"{MASK}.nii.gz")
        image, ijk = places[subject] = read_mask(file)
        there = sorted(f.name.removesuffix(".nii.gz") for f in folder.glob("*.nii.gz") if f != file)
        wanted = (
            [p for p in there if not p.startswith(("lh.", "rh."))]
            if atlases is None
            else list(atlases)
        )
        raw[subject] = {
            p: extract_label_values(
                folder / f"{p}.nii.gz", f"{p} of {subject}", ijk, image, lowest=-1
            )
            for p in wanted
        }
    names, beyond = {}, {}
    for p in dict.fromkeys(p for numbers in raw.values() for p in numbers):
        having = [s for s in subjects if p in raw[s]]
        highest = max(int(raw[s][p].max()) for s in having)
        rows = (atlases or {}).get(p, highest + 1)
        if highest >= rows:
            who = next(s for s in having if raw[s][p].max() == highest)
            raise InputError(
                f"{folders[who] / p}.nii.gz has the region number {highest}, but {p} has {rows - 1} regions."
            )
        first = having[0]
        names[p] = load_parcel_names(
            [folders[first], folders[first].parent, *(lookups or {}).get(first, [])], p, rows
        )
        beyond[p] = rows  # the number of what is no cortex
        if any((raw[s][p] < 0).any() for s in having):
            names[p][rows] = OUTSIDE
    spaces = {}
    for subject, (image, ijk) in places.items():
        regions = {
            p: np.where(n < 0, beyond[p], n).astype(np.int32) for p, n in raw[subject].items()
        }
        mm = nib.affines.apply_affine(image.affine, ijk).astype(np.float32)
        spaces[subject] = VoxelMasker(
            subject, tuple(image.shape), np.asarray(image.affine, np.float64), ijk, mm, regions,
            {p: names[p] for p in regions},
        )  # fmt: skip
    return spaces


def load_parcel_names(folders: Sequence[Path], atlas_name: str, rows: int) -> dict[int, str]:
    """Number -> name of the regions 1 to rows - 1: from a lookup table in one of these folders, else the numbers themselves."""
    places = [
        folder / f"{atlas_name}{suffix}"
        for folder in folders
        for suffix in (".tsv", ".ctab", ".mgz.ctab")
    ]
    table = next((place for place in places if place.is_file()), None)
    if table is None:
        logger.info(
            "%s: no %s there, so regions are named by their numbers", atlas_name, places[0].name
        )
        return {n: str(n) for n in range(1, rows)}
    if table.suffix == ".tsv":
        found = load_atlas_lut(table.with_suffix(".nii.gz"), atlas_name)
    else:
        words = [line.split() for line in table.read_text(encoding="utf-8").splitlines()]
        found = {int(w[0]): w[1] for w in words if len(w) > 1 and w[0].isdecimal()}
    names = {n: found.get(n, str(n)) for n in range(1, rows)}
    if len(set(names.values())) < len(names):
        raise InputError(
            f"lookup table {table} gives two regions one name; expected a name for each of 1 to {rows - 1}."
        )
    return names
