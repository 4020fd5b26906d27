"""MNI millimetres by FreeSurfer's linear transform: a person's scanner millimetres -> MNI305 -> MNI152."""

import re
from pathlib import Path

import numpy as np
from nibabel.affines import apply_affine

from mindllm.utils.errors import InputError

# FreeSurfer's fsaverage space to MNI152 (FreeSurfer wiki, CoordinateSystems, case 8; from average/mni152.register.dat).
MNI305_TO_MNI152 = np.array([
    [0.9975, -0.0073, 0.0176, -0.0429],
    [0.0146, 1.0009, -0.0024, 1.5496],
    [-0.0130, -0.0093, 0.9971, 1.1840],
    [0.0, 0.0, 0.0, 1.0],
])  # fmt: skip
TRANSFORMS = ("talairach.xfm", "talairach.lta")
BOX = np.array([[-100, -140, -90], [100, 105, 120]])  # millimetres around the MNI brain
NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"


def scanner_to_mni152(coords_mm: np.ndarray, folder: Path) -> np.ndarray:
    """Positions (V, 3) in a person's scanner millimetres as MNI152 millimetres, by the transform in `folder` (mri/transforms).

    Linear, so right to some millimetres. Raises InputError if there is no transform, or none that ends in the MNI brain.
    """
    file = next((folder / name for name in TRANSFORMS if (folder / name).is_file()), None)
    if file is None:
        raise InputError(
            f"there is no {folder / TRANSFORMS[0]} (or {TRANSFORMS[1]}), which leads to MNI space."
        )
    out = apply_affine(MNI305_TO_MNI152 @ read_transform(file), coords_mm)
    inside = ((out >= BOX[0]) & (out <= BOX[1])).all(1).mean()
    if inside < 0.9:
        raise InputError(
            f"{file} places {1 - inside:.0%} of the voxels outside of the MNI brain. It is damaged, or leads elsewhere."
        )
    return out.astype(np.float32)


def read_transform(file: Path) -> np.ndarray:
    """(4, 4) scanner millimetres -> MNI305 millimetres, of an .xfm (MNI's format) or an .lta file (FreeSurfer's)."""
    content = file.read_text(encoding="utf-8", errors="replace")
    try:
        if file.suffix == ".xfm":
            rows = re.findall(NUMBER, content.split("Linear_Transform")[1])
            return np.vstack([np.array(rows[:12], float).reshape(3, 4), [0, 0, 0, 1]])
        kind = int(re.findall(r"type\s*=\s*(\d+)", content)[0])
        matrix = np.array(re.findall(NUMBER, content.split("1 4 4", 1)[1])[:16], float).reshape(
            4, 4
        )
        if kind == 1:  # millimetres to millimetres
            return matrix
        if kind == 0:  # voxels to voxels
            source, target = (read_grid(content, side) for side in ("src", "dst"))
            return target @ matrix @ np.linalg.inv(source)
    except (IndexError, ValueError, np.linalg.LinAlgError) as error:
        raise InputError(
            f"{file} is damaged: no transform can be read from it ({error}). Fetch it again."
        ) from error
    raise InputError(f"{file} is of type {kind}; expected 0 (voxels) or 1 (millimetres).")


def read_grid(content: str, side: str) -> np.ndarray:
    """(4, 4) voxel -> millimetres of the volume that an .lta file calls `src` or `dst`."""
    part = content.split(f"{side} volume info", 1)[1]

    def numbers(name: str) -> np.ndarray:
        return np.array(re.findall(NUMBER, re.findall(rf"{name}\s*=(.*)", part)[0])[:3], float)

    axes = np.stack([numbers("xras"), numbers("yras"), numbers("zras")], 1) * numbers("voxelsize")
    out = np.eye(4)
    out[:3, :3], out[:3, 3] = axes, numbers("cras") - axes @ (numbers("volume") / 2)
    return out
