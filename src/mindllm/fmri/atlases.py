"""Parcellations: their labels on a grid, and the lookup tables that name them."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from nibabel.spatialimages import SpatialImage

from mindllm.fmri.nifti import Image, check_same_grid, get_data, img_filename, load_img
from mindllm.utils.errors import InputError


def atlases_by_name(files: Sequence[Path]) -> dict[str, Path]:
    """Parcellation -> file, of files named atlas-<NAME>_..._dseg.nii.gz."""
    return {
        found[1]: file for file in files if (found := re.search(r"atlas-([A-Za-z0-9]+)", file.name))
    }


def extract_parcel_labels(
    atlas: Image,
    atlas_name: str,
    ijk: np.ndarray,
    mask: SpatialImage,
    parcel_names: Mapping[int, str] | None,
) -> tuple[np.ndarray, dict[int, str]]:
    """Region numbers (V,) at voxels of the mask's grid, and their names: given, or from the lookup table beside the file."""
    labels = extract_label_values(atlas, atlas_name, ijk, mask)
    table = parcel_names or load_atlas_lut(
        atlas if isinstance(atlas, (str, Path)) else None, atlas_name
    )
    nameless = sorted(set(np.unique(labels).astype(int).tolist()) - {0} - set(table))
    if nameless:
        raise InputError(
            f"atlas {atlas_name} uses the region numbers {nameless[:10]} that its lookup table does not name ({len(table)} names known). Complete the table: columns `index` and `name`, one row per region."
        )
    return labels, {int(k): str(v) for k, v in table.items() if int(k) != 0}


def extract_label_values(
    atlas: Image, atlas_name: str, ijk: np.ndarray, mask: SpatialImage, lowest: int = 0
) -> np.ndarray:
    """Whole numbers (V,) of a label volume at voxels of the mask's grid, none below `lowest`."""
    image = load_img(atlas, f"atlas {atlas_name}", dimensions=3)
    check_same_grid(image, mask.shape, mask.affine, f"atlas {atlas_name}", "the mask")
    labels = get_data(image, f"atlas {atlas_name}")[tuple(ijk.T)]
    if (
        not np.isfinite(labels).all()
        or (labels < lowest).any()
        or (labels != np.round(labels)).any()
    ):
        raise InputError(
            f"atlas {atlas_name} {img_filename(image)} has values that are not whole numbers >= {lowest} inside the mask; expected region numbers, 0 = in no region. Resample atlases with nearest-neighbour interpolation."
        )
    return labels.astype(np.int32)


def load_atlas_lut(atlas: str | Path | None, atlas_name: str) -> dict[int, str]:
    """Region number -> name from the BIDS table beside an atlas file (`atlas-X_..._dseg.tsv` or `atlas-X_dseg.tsv`)."""
    if atlas is None:
        raise InputError(
            f"atlas {atlas_name} was given as an image without names. Pass names={{{atlas_name!r}: {{1: 'V1', ...}}}}."
        )
    path = Path(atlas)
    stem = path.name.removesuffix(".gz").removesuffix(".nii")
    candidates = [path.with_name(f"{stem}.tsv"), path.with_name(f"{stem.split('_')[0]}_dseg.tsv")]
    table = next((c for c in candidates if c.is_file()), None)
    if table is None:
        raise InputError(
            f"atlas {atlas_name}: no lookup table with the region names beside {path}. Expected {candidates[0].name} or {candidates[1].name} with the columns `index` and `name`."
        )
    rows = pd.read_csv(table, sep="\t")
    if not {"index", "name"} <= set(rows.columns):
        raise InputError(
            f"lookup table {table} has the columns {list(rows.columns)}; expected `index` and `name`."
        )
    return dict(zip(rows["index"].astype(int), rows["name"].astype(str), strict=True))
