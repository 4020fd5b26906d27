"""Maskers from ROI volumes in NSD's layout: subj01/nsdgeneral.nii.gz, beside it the atlases."""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from nibabel.spatialimages import SpatialImage

from mindllm.fmri.atlases import extract_label_values, load_atlas_lut
from mindllm.fmri.masker import VoxelMasker
from mindllm.fmri.nifti import read_mask
from mindllm.utils.errors import InputError
from mindllm.utils.sorting import natural_sorted
from mindllm.utils.text_files import read_text

MASK = "nsdgeneral"
LABEL = re.compile(r"[0-9]{1,9}")
OUTSIDE = "not cortex"  # NSD labels it -1
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ROIVolumes:
    """One subject's mask and atlases.

    Parameters
    ----------
    folder : Path
        Folder of the volumes.
    mask_img : nibabel image
        The mask.
    voxel_indices : ndarray of shape (n_voxels, 3)
        Voxels of the mask.
    labels : dict of str to ndarray of shape (n_voxels,)
        Atlas name -> parcel labels; -1: not cortex.
    """

    folder: Path
    mask_img: SpatialImage
    voxel_indices: np.ndarray
    labels: dict[str, np.ndarray]


def find_roi_subjects(root: Path) -> list[str]:
    """Find the subjects with a folder of ROI volumes.

    Parameters
    ----------
    root : Path
        Folder with subj01 and so on.

    Returns
    -------
    list of str
        Names of the folders, sorted.

    Raises
    ------
    InputError
        If there are none.
    """
    subjects = natural_sorted(folder.name for folder in root.glob("subj*") if folder.is_dir())
    if not subjects:
        raise InputError(
            f"{root} has no folder of a subject; expected subj01/{MASK}.nii.gz and so on."
        )
    return subjects


def load_roi_maskers(
    folders: Mapping[str, Path],
    atlases: Mapping[str, int] | None = None,
    *,
    masks: Mapping[str, Path] | None = None,
    lookups: Mapping[str, Sequence[Path]] | None = None,
    needs_orientation: bool = True,
) -> dict[str, VoxelMasker]:
    """Load the maskers of subjects, with parcel labels that mean the same in all of them.

    Parameters
    ----------
    folders : mapping of str to Path
        Subject -> folder of ROI volumes.
    atlases : mapping of str to int, optional
        Atlas to read -> number of labels it may have, 0 included; by default all volumes there,
        but those of one hemisphere alone (lh.NAME, rh.NAME).
    masks : mapping of str to Path, optional
        Subject -> mask file; by default nsdgeneral.nii.gz in the folder.
    lookups : mapping of str to sequence of Path, optional
        Subject -> further folders with lookup tables. Tables (NAME.tsv, or FreeSurfer's NAME.ctab)
        are looked for beside the volumes, in the folder above, then there; without one, parcels
        are named by their labels.
    needs_orientation : bool
        Whether the coordinates are taken from the volumes.

    Returns
    -------
    dict of str to VoxelMasker
        Subject -> masker. Voxels that NSD labels -1 get a parcel `not cortex` of their own.

    Raises
    ------
    InputError
        For a missing file, another grid than the mask's, or a parcel label out of range.
    """
    subjects = {
        subject: read_roi_volumes(
            subject, folder, (masks or {}).get(subject), atlases, needs_orientation
        )
        for subject, folder in folders.items()
    }
    n_labels: dict[str, int] = {}
    parcel_names: dict[str, dict[int, str]] = {}
    for atlas in dict.fromkeys(atlas for rois in subjects.values() for atlas in rois.labels):
        with_atlas = {s: rois for s, rois in subjects.items() if atlas in rois.labels}
        n_labels[atlas] = count_labels(atlas, list(with_atlas.values()), atlases)
        first, rois = next(iter(with_atlas.items()))
        parcel_names[atlas] = load_parcel_names(
            [rois.folder, rois.folder.parent, *(lookups or {}).get(first, [])],
            atlas,
            n_labels[atlas],
        )
        if any((rois.labels[atlas] < 0).any() for rois in with_atlas.values()):
            parcel_names[atlas][n_labels[atlas]] = OUTSIDE
    return {
        subject: VoxelMasker.from_voxel_indices(
            subject,
            rois.mask_img,
            rois.voxel_indices,
            {
                atlas: np.where(labels < 0, n_labels[atlas], labels).astype(np.int32)
                for atlas, labels in rois.labels.items()
            },
            {atlas: parcel_names[atlas] for atlas in rois.labels},
        )
        for subject, rois in subjects.items()
    }


def read_roi_volumes(
    subject: str,
    folder: Path,
    mask_file: Path | None,
    atlases: Mapping[str, int] | None,
    needs_orientation: bool,
) -> ROIVolumes:
    """Read the mask and the atlases of a subject; see `load_roi_maskers`."""
    mask_file = mask_file or folder / f"{MASK}.nii.gz"
    mask_img, voxel_indices = read_mask(mask_file, is_roi=True, needs_orientation=needs_orientation)
    if atlases is None:
        files = [file for file in folder.glob("*.nii.gz") if file != mask_file]
        names = sorted(file.name.removesuffix(".nii.gz") for file in files)
        names = [name for name in names if not name.startswith(("lh.", "rh."))]
    else:
        names = list(atlases)
    labels = {
        name: extract_label_values(
            folder / f"{name}.nii.gz",
            f"{name} of {subject}",
            voxel_indices,
            mask_img,
            lowest=-1,
            needs_orientation=needs_orientation,
        )
        for name in names
    }
    return ROIVolumes(folder, mask_img, voxel_indices, labels)


def count_labels(
    atlas: str, subjects: Sequence[ROIVolumes], atlases: Mapping[str, int] | None
) -> int:
    """Count an atlas's labels, 0 included: as stated in `atlases`, else up to the highest one."""
    highest = [int(rois.labels[atlas].max()) for rois in subjects]
    n_labels = (atlases or {}).get(atlas, max(highest) + 1)
    if max(highest) >= n_labels:
        folder = subjects[highest.index(max(highest))].folder
        raise InputError(
            f"{folder / atlas}.nii.gz has the parcel label {max(highest)}, "
            f"but {atlas} has {n_labels - 1} parcels."
        )
    return n_labels


def load_parcel_names(folders: Sequence[Path], atlas_name: str, n_labels: int) -> dict[int, str]:
    """Load the names of the parcels 1 to `n_labels` - 1.

    Parameters
    ----------
    folders : sequence of Path
        Folders in which a lookup table is looked for.
    atlas_name : str
        Name of the atlas.
    n_labels : int
        Number of labels, 0 included.

    Returns
    -------
    dict of int to str
        Parcel label -> parcel name; the label itself where no table names it.

    Raises
    ------
    InputError
        If the table gives two parcels one name.
    """
    suffixes = (".tsv", ".ctab", ".mgz.ctab")
    candidates = [folder / f"{atlas_name}{suffix}" for folder in folders for suffix in suffixes]
    table = next((file for file in candidates if file.is_file()), None)
    if table is None:
        logger.info(
            "%s: no %s there, so parcels are named by their labels", atlas_name, candidates[0].name
        )
        return {label: str(label) for label in range(1, n_labels)}
    if table.suffix == ".tsv":
        known = load_atlas_lut(table.with_suffix(".nii.gz"), atlas_name)
    else:
        text = read_text(table, "the lookup table of an atlas")
        rows = [line.split() for line in text.splitlines()]
        known = {int(row[0]): row[1] for row in rows if len(row) > 1 and LABEL.fullmatch(row[0])}
    names = {label: known.get(label, str(label)) for label in range(1, n_labels)}
    if len(set(names.values())) < len(names):
        raise InputError(
            f"lookup table {table} gives two parcels one name; "
            f"expected a name for each of 1 to {n_labels - 1}."
        )
    return names
