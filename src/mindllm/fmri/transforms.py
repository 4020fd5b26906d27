"""MNI coordinates by FreeSurfer's linear transform: scanner -> MNI305 -> MNI152."""

import re
from pathlib import Path

import numpy as np
from nibabel.affines import apply_affine

from mindllm.utils.errors import InputError

# FreeSurfer's fsaverage space to MNI152
# (FreeSurfer wiki, CoordinateSystems, case 8; from average/mni152.register.dat).
MNI305_TO_MNI152 = np.array([
    [0.9975, -0.0073, 0.0176, -0.0429],
    [0.0146, 1.0009, -0.0024, 1.5496],
    [-0.0130, -0.0093, 0.9971, 1.1840],
    [0.0, 0.0, 0.0, 1.0],
])  # fmt: skip
TRANSFORM_FILES = ("talairach.xfm", "talairach.lta")
BRAIN_BOX_MM = np.array([[-100, -140, -90], [100, 105, 120]])  # around the MNI brain
NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"


def scanner_to_mni152(coords_mm: np.ndarray, transforms_dir: Path) -> np.ndarray:
    """Convert scanner coordinates of a subject to MNI152 coordinates.

    The transform is linear, so the result is right to some millimeters.

    Parameters
    ----------
    coords_mm : ndarray of shape (n_voxels, 3)
        Scanner coordinates in millimeters.
    transforms_dir : Path
        FreeSurfer's folder mri/transforms of the subject, with talairach.xfm or talairach.lta.

    Returns
    -------
    ndarray of shape (n_voxels, 3), float32
        MNI152 coordinates in millimeters.

    Raises
    ------
    InputError
        If there is no transform, it is damaged, or it puts more than a tenth of the voxels
        outside the MNI brain.

    References
    ----------
    FreeSurfer wiki, CoordinateSystems, case 8.
    """
    candidates = [transforms_dir / name for name in TRANSFORM_FILES]
    file = next((candidate for candidate in candidates if candidate.is_file()), None)
    if file is None:
        raise InputError(
            f"there is no {candidates[0]} (or {TRANSFORM_FILES[1]}), which leads to MNI space."
        )
    mni_mm = apply_affine(MNI305_TO_MNI152 @ read_transform(file), coords_mm)
    inside = ((mni_mm >= BRAIN_BOX_MM[0]) & (mni_mm <= BRAIN_BOX_MM[1])).all(1).mean()
    if inside < 0.9:
        raise InputError(
            f"{file} places {1 - inside:.0%} of the voxels outside of the MNI brain. "
            "It is damaged, or leads elsewhere."
        )
    return mni_mm.astype(np.float32)


def read_transform(file: Path) -> np.ndarray:
    """Read the linear transform from scanner to MNI305 millimeters.

    Parameters
    ----------
    file : Path
        MNI's .xfm or FreeSurfer's .lta.

    Returns
    -------
    ndarray of shape (4, 4)
        The matrix.

    Raises
    ------
    InputError
        If the file is damaged, or an .lta of a type other than 0 (voxels) or 1 (millimeters).
    """
    content = file.read_text(encoding="utf-8", errors="replace")
    try:
        if file.suffix == ".xfm":
            numbers = re.findall(NUMBER, content.split("Linear_Transform")[1])
            return np.vstack([np.array(numbers[:12], float).reshape(3, 4), [0, 0, 0, 1]])
        kind = int(re.findall(r"type\s*=\s*(\d+)", content)[0])
        numbers = re.findall(NUMBER, content.split("1 4 4", 1)[1])
        matrix = np.array(numbers[:16], float).reshape(4, 4)
        if kind == 1:  # millimeters to millimeters
            return matrix
        if kind == 0:  # voxels to voxels
            source, target = (read_grid(content, side) for side in ("src", "dst"))
            return target @ matrix @ np.linalg.inv(source)
    except (IndexError, ValueError, np.linalg.LinAlgError) as error:
        raise InputError(
            f"{file} is damaged: no transform can be read from it ({error}). Fetch it again."
        ) from error
    raise InputError(f"{file} is of type {kind}; expected 0 (voxels) or 1 (millimeters).")


def read_grid(content: str, side: str) -> np.ndarray:
    """Read the (4, 4) voxel-to-mm matrix of the volume `src` or `dst` of an .lta file."""
    section = content.split(f"{side} volume info", 1)[1]

    def read_vector(name: str) -> np.ndarray:
        line = re.findall(rf"{name}\s*=(.*)", section)[0]
        return np.array(re.findall(NUMBER, line)[:3], float)

    directions = np.stack([read_vector(name) for name in ("xras", "yras", "zras")], 1)
    axes = directions * read_vector("voxelsize")
    affine = np.eye(4)
    affine[:3, :3] = axes
    affine[:3, 3] = read_vector("cras") - axes @ (read_vector("volume") / 2)
    return affine
