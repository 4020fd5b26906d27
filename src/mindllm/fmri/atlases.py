"""Atlases: parcel labels on a grid, and the lookup tables that name the parcels."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from nibabel.spatialimages import SpatialImage

from mindllm.fmri.nifti import (
    Image,
    check_orientation,
    check_same_grid,
    get_data,
    img_filename,
    is_on_grid,
    load_img,
)
from mindllm.utils.errors import InputError
from mindllm.utils.tables import read_table, require_values

# Of voxels.parquet, beside one column per atlas; see `mindllm.fmri.masker_io`.
VOXEL_COLUMNS = ("i", "j", "k", "x_mm", "y_mm", "z_mm", "ncsnr")


def check_atlas_names(names: Iterable[str]) -> None:
    """Check that no atlas is called as a column of the table of voxels.

    Parameters
    ----------
    names : iterable of str
        Names of the atlases.

    Raises
    ------
    InputError
        If one is one of VOXEL_COLUMNS, or empty.
    """
    if refused := [name for name in names if not name or name in VOXEL_COLUMNS]:
        raise InputError(
            f"an atlas cannot be called {refused[0]!r}: the table of voxels has columns "
            f"{', '.join(VOXEL_COLUMNS)} of its own. Give the atlas another name."
        )


def select_atlases(files: Sequence[Path], mask_img: SpatialImage) -> dict[str, Path]:
    """Select one file of each atlas: where there are several, the one on the grid of the mask.

    Parameters
    ----------
    files : sequence of Path
        Files whose names have the BIDS entity `atlas`, such as atlas-<NAME>_res-2_dseg.nii.gz;
        others are passed over.
    mask_img : nibabel image
        The mask.

    Returns
    -------
    dict of str to Path
        Atlas name -> file.

    Raises
    ------
    InputError
        If several files of one atlas are on the grid of the mask, or none of several is.
    """
    candidates: dict[str, list[Path]] = {}
    for file in files:
        if match := re.search(r"atlas-([A-Za-z0-9]+)", file.name):
            candidates.setdefault(match[1], []).append(file)
    selected = {}
    for name, paths in candidates.items():
        fitting = paths
        if len(paths) > 1:
            what, grid = f"atlas {name}", (mask_img.shape[:3], mask_img.affine)
            images = [load_img(path, what, dimensions=3) for path in paths]
            fitting = [p for p, img in zip(paths, images, strict=True) if is_on_grid(img, *grid)]
        if len(fitting) != 1:
            raise InputError(
                f"atlas {name} has {len(paths)} files, of which {len(fitting)} are on the grid of "
                f"the mask {img_filename(mask_img)}: {', '.join(map(str, fitting or paths))}. "
                "Expected one that is; move the others elsewhere, or rename their entity `atlas`."
            )
        selected[name] = fitting[0]
    return selected


def extract_parcel_labels(
    atlas_img: Image,
    atlas_name: str,
    voxel_indices: np.ndarray,
    mask_img: SpatialImage,
    parcel_names: Mapping[int, str] | None,
) -> tuple[np.ndarray, dict[int, str]]:
    """Read the parcel labels at the voxels of a mask, and the names of the parcels.

    Parameters
    ----------
    atlas_img : str, Path or nibabel image
        3-D label image on the grid of the mask; 0: no parcel.
    atlas_name : str
        Name of the atlas.
    voxel_indices : ndarray of shape (n_voxels, 3)
        Voxels of the mask.
    mask_img : nibabel image
        The mask.
    parcel_names : mapping of int to str, optional
        Parcel label -> parcel name; by default from the lookup table beside the atlas file.

    Returns
    -------
    parcel_labels : ndarray of shape (n_voxels,), int32
        Label of each voxel's parcel, 0: none.
    parcel_names : dict of int to str
        Parcel label -> parcel name, without 0.

    Raises
    ------
    InputError
        For another grid, labels that are not whole numbers, no lookup table, or a label without a
        name.
    """
    labels = extract_label_values(atlas_img, atlas_name, voxel_indices, mask_img)
    atlas_file = atlas_img if isinstance(atlas_img, (str, Path)) else None
    names = parcel_names or load_atlas_lut(atlas_file, atlas_name)
    unnamed = sorted(set(np.unique(labels).astype(int).tolist()) - {0} - set(names))
    if unnamed:
        raise InputError(
            f"atlas {atlas_name} {atlas_file or '(in memory)'} uses the parcel labels "
            f"{unnamed[:10]} that its lookup table does not name ({len(names)} names known). "
            "Complete the table: columns `index` and `name`, one row per parcel."
        )
    return labels, {int(label): str(name) for label, name in names.items() if int(label) != 0}


def extract_label_values(
    atlas_img: Image,
    atlas_name: str,
    voxel_indices: np.ndarray,
    mask_img: SpatialImage,
    lowest: int = 0,
    needs_orientation: bool = True,
) -> np.ndarray:
    """Read the whole numbers of a label image at the voxels of a mask.

    Parameters
    ----------
    atlas_img : str, Path or nibabel image
        3-D label image on the grid of the mask.
    atlas_name : str
        Name of the atlas, for messages.
    voxel_indices : ndarray of shape (n_voxels, 3)
        Voxels of the mask.
    mask_img : nibabel image
        The mask.
    lowest : int
        Lowest number allowed.
    needs_orientation : bool
        Whether the image must say where its voxels are.

    Returns
    -------
    ndarray of shape (n_voxels,), int32
        Number at each voxel.

    Raises
    ------
    InputError
        For another grid, or values that are not whole numbers of at least `lowest`.
    """
    what = f"atlas {atlas_name}"
    img = load_img(atlas_img, what, dimensions=3)
    if needs_orientation:
        check_orientation(img, what)
    check_same_grid(img, mask_img.shape, mask_img.affine, what, "the mask")
    labels = get_data(img, what)[tuple(voxel_indices.T)]
    is_valid = np.isfinite(labels) & (labels >= lowest) & (labels == np.round(labels))
    if not is_valid.all():
        raise InputError(
            f"{what} {img_filename(img)} has values that are not whole numbers >= {lowest} inside "
            "the mask; expected parcel labels, 0 = in no parcel. Resample atlases with "
            "nearest-neighbor interpolation."
        )
    return labels.astype(np.int32)


def load_atlas_lut(atlas_file: str | Path | None, atlas_name: str) -> dict[int, str]:
    """Read the BIDS lookup table beside an atlas file.

    Parameters
    ----------
    atlas_file : str, Path or None
        Atlas file atlas-X_..._dseg.nii.gz, whose table is atlas-X_..._dseg.tsv or
        atlas-X_dseg.tsv; None: the atlas has no file.
    atlas_name : str
        Name of the atlas, for messages.

    Returns
    -------
    dict of int to str
        Parcel label -> parcel name.

    Raises
    ------
    InputError
        If there is no table, or it lacks the column `index` or `name`.
    """
    if atlas_file is None:
        raise InputError(
            f"atlas {atlas_name} was given as an image without names. "
            f"Pass parcel_names={{{atlas_name!r}: {{1: 'V1', ...}}}}."
        )
    path = Path(atlas_file)
    stem = path.name.removesuffix(".gz").removesuffix(".nii")
    candidates = [path.with_name(f"{stem}.tsv"), path.with_name(f"{stem.split('_')[0]}_dseg.tsv")]
    table_file = next((file for file in candidates if file.is_file()), None)
    if table_file is None:
        expected = " or ".join(dict.fromkeys(file.name for file in candidates))
        raise InputError(
            f"atlas {atlas_name}: no lookup table with the parcel names beside {path}. Expected "
            f"{expected} with the columns `index` and `name`."
        )
    columns = ("index", "name")
    table = read_table(table_file, f"the lookup table of the atlas {atlas_name}", columns)
    require_values(table, columns, table_file)
    if (repeated := table["index"].duplicated()).any():
        raise InputError(
            f"{table_file}, line {table.index[repeated][0]} gives the parcel "
            f"{table['index'][repeated].iloc[0]} a second name; expected one line per parcel."
        )
    return dict(zip(table["index"].tolist(), table["name"], strict=True))
