"""Voxel spaces from ROI volumes laid out as NSD's are: subj01/nsdgeneral.nii.gz is the mask, its neighbours parcellations."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np

from mindllm.errors import InputError
from mindllm.images import read_lookup, read_mask, read_numbers
from mindllm.voxels import VoxelSpace

MASK = "nsdgeneral"
OUTSIDE = "not cortex"  # NSD marks it with -1
logger = logging.getLogger(__name__)


def people(root: Path) -> list[str]:
    """The people with a folder of ROI volumes. Raises InputError if there are none."""
    found = sorted(folder.name for folder in root.glob("subj*") if folder.is_dir())
    if not found:
        raise InputError(f"{root} has no folder of a person; expected subj01/{MASK}.nii.gz and so on.")
    return found


def read_spaces(
    root: Path, subjects: Sequence[str], parcellations: Mapping[str, int] | None = None
) -> dict[str, VoxelSpace]:
    """The voxel spaces of some people, their region numbers meaning the same in all.

    parcellations: those to read, with the number of regions each may have (0 counts as one); None: all that are there.
    Names come from lookup tables beside the volumes or in `root` (NAME.tsv or FreeSurfer's NAME.ctab), else numbers serve.
    Raises InputError for a missing file, another grid than the mask's, or a region number out of range.
    """
    raw: dict[str, dict[str, np.ndarray]] = {}
    masks = {}
    for subject in subjects:
        image, ijk = read_mask(root / subject / f"{MASK}.nii.gz")
        files = {file.name.removesuffix(".nii.gz"): file for file in sorted((root / subject).glob("*.nii.gz"))}
        wanted = sorted(set(files) - {MASK}) if parcellations is None else list(parcellations)
        masks[subject] = image, ijk
        raw[subject] = {
            p: read_numbers(root / subject / f"{p}.nii.gz", f"{p} of {subject}", ijk, image, lowest=-1) for p in wanted
        }
    known = list(dict.fromkeys(p for numbers in raw.values() for p in numbers))
    names, places = {}, {}
    for p in known:
        highest = max(int(raw[s][p].max()) for s in subjects if p in raw[s])
        rows = (parcellations or {}).get(p, highest + 1)
        if highest >= rows:
            who = next(s for s in subjects if p in raw[s] and raw[s][p].max() == highest)
            raise InputError(
                f"{root / who / p}.nii.gz has the region number {highest}, but {p} has {rows - 1} regions."
            )
        names[p] = name_regions(root, subjects[0], p, rows)
        places[p] = rows  # of voxels outside the cortex
        if any((raw[s][p] < 0).any() for s in subjects if p in raw[s]):
            names[p][rows] = OUTSIDE
    spaces = {}
    for subject in subjects:
        image, ijk = masks[subject]
        regions = {p: np.where(n < 0, places[p], n).astype(np.int32) for p, n in raw[subject].items()}
        mm = nib.affines.apply_affine(image.affine, ijk).astype(np.float32)
        spaces[subject] = VoxelSpace(
            subject, tuple(image.shape), np.asarray(image.affine, np.float64), ijk, mm, regions,
            {p: names[p] for p in regions},
        )  # fmt: skip
    return spaces


def name_regions(root: Path, subject: str, parcellation: str, rows: int) -> dict[int, str]:
    """Number -> name of the regions 1 to rows - 1: from a lookup table, else the numbers themselves."""
    places = [
        folder / f"{parcellation}{suffix}"
        for folder in (root / subject, root)
        for suffix in (".tsv", ".ctab", ".mgz.ctab")
    ]
    table = next((place for place in places if place.is_file()), None)
    if table is None:
        logger.info("%s: no %s there, so regions are named by their numbers", parcellation, places[0].name)
        return {n: str(n) for n in range(1, rows)}
    if table.suffix == ".tsv":
        found = read_lookup(table.with_suffix(".nii.gz"), parcellation)
    else:
        words = [line.split() for line in table.read_text(encoding="utf-8").splitlines()]
        found = {int(w[0]): w[1] for w in words if len(w) > 1 and w[0].isdecimal()}
    names = {n: found.get(n, str(n)) for n in range(1, rows)}
    if len(set(names.values())) < len(names):
        raise InputError(
            f"lookup table {table} gives two regions one name; expected a name for each of 1 to {rows - 1}."
        )
    return names
