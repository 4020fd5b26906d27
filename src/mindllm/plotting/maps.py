"""Maps of positive and negative numbers: glass brain, slices, inflated and flat cortex."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np

from mindllm.plotting.brain import draw_axial_slices, spread_heights
from mindllm.plotting.style import FOREGROUND, new_figure, to_png

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TOP_QUANTILE = 0.995  # of the absolute values, where a color scale ends
N_SLICES = 7
HEMISPHERES = ("left", "right")
SURFACE = "fsaverage5"
GRAY, SULCAL_DARKNESS = 0.82, 0.1


def signed_top(img: nib.Nifti1Image) -> float:
    """Return the end of a color scale that is symmetric about 0.

    Parameters
    ----------
    img : Nifti1Image
        0 where there is no voxel.

    Returns
    -------
    float
        The 99.5th percentile of the absolute values that are not 0.
    """
    values = np.abs(np.asarray(img.dataobj))
    values = values[values > 0]
    return float(np.quantile(values, TOP_QUANTILE)) if len(values) else 1.0


def plot_glass_brain_map(img: nib.Nifti1Image, unit: str, signed: bool = True) -> bytes:
    """Draw a map as glass brains from four sides.

    Parameters
    ----------
    img : Nifti1Image
        In MNI space.
    unit : str
        Label of the color scale.
    signed : bool
        Whether the numbers may be negative.

    Returns
    -------
    bytes
        PNG.
    """
    from nilearn.plotting import plot_glass_brain

    figure = new_figure(10, 2.9)
    display = plot_glass_brain(
        img,
        figure=figure,
        display_mode="lyrz",
        plot_abs=False,
        colorbar=True,
        cbar_tick_format="%.2g",
        symmetric_cbar=signed,
        **asdict(color_scale(img, signed)),
    )
    label_colorbar(display, unit)
    return to_png(figure)


def plot_slices_map(img: nib.Nifti1Image, unit: str, signed: bool = True) -> bytes:
    """Draw a map as seven axial slices over the MNI template; arguments as before.

    Parameters
    ----------
    img, unit, signed
        As for `plot_glass_brain_map`.

    Returns
    -------
    bytes
        PNG.
    """
    rows = np.argwhere(np.asarray(img.dataobj) != 0)
    z = nib.affines.apply_affine(img.affine, rows)[:, 2] if len(rows) else np.zeros(1)
    figure, display = draw_axial_slices(
        img,
        spread_heights(z, N_SLICES),
        cbar_tick_format="%.2g",
        symmetric_cbar=signed,
        **asdict(color_scale(img, signed)),
    )
    label_colorbar(display, unit)
    return to_png(figure)


def plot_cortex_map(img: nib.Nifti1Image, unit: str, signed: bool = True) -> bytes:
    """Draw a map on the inflated cortex of fsaverage5, from the side and from the middle.

    Parameters
    ----------
    img, unit, signed
        As for `plot_glass_brain_map`.

    Returns
    -------
    bytes
        PNG.
    """
    from nilearn.plotting import plot_surf_stat_map

    meshes, values, sulci = load_surfaces(img)
    scale = color_scale(img, signed)
    figure = new_figure(10, 1.7)
    views = [(side, view) for side in HEMISPHERES for view in ("lateral", "medial", "ventral")]
    for column, (side, view) in enumerate(views):
        axes = figure.add_axes(
            (column / 6.6, -0.1, 1 / 6.6, 1.2), projection="3d", computed_zorder=False
        )
        plot_surf_stat_map(
            meshes["inflated"].parts[side],
            values[side],
            bg_map=sulci[side],
            hemi=side,
            view=view,
            axes=axes,
            figure=figure,
            colorbar=False,
            bg_on_data=True,
            **asdict(scale),
        )
    add_colorbar(figure, scale, unit)
    return to_png(figure)


def plot_flat_map(img: nib.Nifti1Image, unit: str, signed: bool = True) -> bytes:
    """Draw a map on the flattened cortex of fsaverage5, left and right.

    Parameters
    ----------
    img, unit, signed
        As for `plot_glass_brain_map`.

    Returns
    -------
    bytes
        PNG. Gray is the cortex, darker in sulci, where the map has no voxel.
    """
    meshes, values, sulci = load_surfaces(img)
    scale = color_scale(img, signed)
    figure = new_figure(10, 4.2)
    for column, side in enumerate(HEMISPHERES):
        axes = figure.add_axes((0.01 + 0.455 * column, 0.02, 0.445, 0.9))
        draw_flat(axes, meshes["flat"].parts[side], values[side], sulci[side], scale)
        axes.set_title(f"{side} hemisphere", color=FOREGROUND[False], fontsize=10)
    add_colorbar(figure, scale, unit)
    return to_png(figure)


def draw_flat(
    axes: Axes, mesh: Any, values: np.ndarray, sulci: np.ndarray, scale: ColorScale
) -> None:
    """Draw values per vertex on a flat mesh, over the sulci."""
    x, y = mesh.coordinates[:, 0], mesh.coordinates[:, 1]
    gray = GRAY - SULCAL_DARKNESS * np.sign(sulci)
    axes.tripcolor(
        x, y, mesh.faces, gray, cmap="gray", vmin=0, vmax=1, shading="gouraud", rasterized=True
    )
    visible = np.isfinite(values) & (np.abs(values) > scale.threshold)
    faces = mesh.faces[visible[mesh.faces].all(1)]
    if len(faces):
        axes.tripcolor(
            x,
            y,
            faces,
            np.nan_to_num(values),
            shading="gouraud",
            cmap=scale.cmap,
            vmin=scale.vmin,
            vmax=scale.vmax,
        )
    axes.set_aspect("equal")
    axes.axis("off")


def load_surfaces(img: nib.Nifti1Image) -> tuple[Any, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Meshes of fsaverage5, a map's values per vertex by hemisphere, and the sulcal depth.

    A vertex has the mean of the voxels between white matter and pia; NaN where there is none.
    """
    from nilearn.datasets import load_fsaverage, load_fsaverage_data
    from nilearn.surface import vol_to_surf

    meshes = load_fsaverage(SURFACE)
    data = np.asarray(img.dataobj, np.float32)
    masked = nib.Nifti1Image(np.where(data == 0, np.nan, data), img.affine)
    values = {
        side: vol_to_surf(
            masked,
            meshes["pial"].parts[side],
            inner_mesh=meshes["white_matter"].parts[side],
            interpolation="nearest_most_frequent",
        )
        for side in HEMISPHERES
    }
    depth = load_fsaverage_data(SURFACE, data_type="sulcal").data.parts
    return meshes, values, {side: np.asarray(depth[side]).ravel() for side in HEMISPHERES}


@dataclass(frozen=True)
class ColorScale:
    """Colors of a map and their ends, by nilearn's names; below the threshold nothing is drawn."""

    cmap: str
    vmin: float
    vmax: float
    threshold: float


def color_scale(img: nib.Nifti1Image, signed: bool) -> ColorScale:
    """Colors of a map and their ends, as nilearn takes them."""
    top = signed_top(img)
    if signed:
        return ColorScale("RdBu_r", -top, top, 0.02 * top)
    return ColorScale("inferno_r", 0.0, top, 0.02 * top)


def add_colorbar(figure: Any, scale: ColorScale, unit: str) -> None:
    """Add a color bar at the right of a figure."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    axes = figure.add_axes((0.925, 0.15, 0.012, 0.7))
    colors = ScalarMappable(Normalize(scale.vmin, scale.vmax), scale.cmap)
    bar = figure.colorbar(colors, cax=axes, format="%.2g")
    bar.set_label(unit, fontsize=8)
    axes.tick_params(labelsize=8)


def label_colorbar(display: Any, unit: str) -> None:
    """Write the unit beside nilearn's color bar."""
    bar = getattr(display, "_cbar", None)
    if bar is not None:
        bar.set_label(unit, fontsize=8)


def interactive_map(img: nib.Nifti1Image, title: str, signed: bool = True) -> str:
    """Return a page of its own in which one can walk through the slices of a map.

    Parameters
    ----------
    img : Nifti1Image
        In MNI space.
    title : str
        Above the map.
    signed : bool
        Whether the numbers may be negative.

    Returns
    -------
    str
        HTML that needs nothing from the network.
    """
    from nilearn.plotting import view_img

    scale = color_scale(img, signed)
    view = view_img(
        img,
        title=title,
        cmap=scale.cmap,
        vmin=scale.vmin,
        vmax=scale.vmax,
        threshold=scale.threshold,
        symmetric_cmap=signed,
        resampling_interpolation="nearest",
    )
    # nilearn's page asks its server for an icon
    return re.sub(r"<link rel=\"icon\"[^>]*>", "", str(view.get_standalone()))
