"""Brain figures as PNG bytes, drawn without a display, for light and dark pages."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np

from mindllm.fmri.masker import VoxelMasker
from mindllm.plotting.style import new_figure, to_png

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GRID_MM = 4.0
MAX_DEPTH_MM = 70.0  # end of the color scale of the voxel coverage
MIN_TOP_ATTENTION = 2.0
TOP_QUANTILE = 0.97  # of the values, where a color scale ends


def top_of_scale(values: Sequence[np.ndarray], minimum: float) -> float:
    """Return the end of a color scale: the 97th percentile of the values, at least `minimum`.

    Parameters
    ----------
    values : sequence of ndarrays (n_voxels,)
        One per subject.
    minimum : float
        Smallest end of the scale.

    Returns
    -------
    float
        In the unit of the values.

    Examples
    --------
    >>> import numpy as np
    >>> top_of_scale([np.zeros(3), np.ones(3)], minimum=2.0)
    2.0
    """
    return max(minimum, float(np.quantile(np.concatenate(values), TOP_QUANTILE)))


def resample_to_common_grid(
    maskers: Sequence[VoxelMasker], values: Sequence[np.ndarray] | None = None
) -> nib.Nifti1Image:
    """Resample the voxels of several subjects to one MNI grid of 4 mm.

    Parameters
    ----------
    maskers : sequence of VoxelMasker
        One per subject.
    values : sequence of ndarrays (n_voxels,), optional
        One per subject.

    Returns
    -------
    Nifti1Image
        Mean of the values over the voxels in a cell, then over the subjects with voxels there;
        without values, the number of these subjects. 0 where there is none.
    """
    low = np.floor(np.min([masker.coords_mm.min(0) for masker in maskers], axis=0) / GRID_MM) - 1
    high = np.ceil(np.max([masker.coords_mm.max(0) for masker in maskers], axis=0) / GRID_MM) + 1
    shape = tuple((high - low + 1).astype(int))
    total, n_subjects = np.zeros(shape), np.zeros(shape)
    for index, masker in enumerate(maskers):
        cells = tuple((np.rint(masker.coords_mm / GRID_MM) - low).astype(int).T)
        counts, sums = np.zeros(shape), np.zeros(shape)
        np.add.at(counts, cells, 1)
        np.add.at(sums, cells, 1.0 if values is None else np.asarray(values[index], float))
        total += _divide(sums, counts)
        n_subjects += counts > 0
    data = n_subjects if values is None else _divide(total, n_subjects)
    affine = np.diag([GRID_MM, GRID_MM, GRID_MM, 1.0])
    affine[:3, 3] = low * GRID_MM
    return nib.Nifti1Image(data.astype(np.float32), affine)


def _divide(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return sums / counts of the same shape, 0 where the count is 0."""
    return np.divide(sums, counts, out=np.zeros(sums.shape), where=counts > 0)


def plot_voxel_coverage(maskers: Sequence[VoxelMasker], dark: bool = False) -> bytes:
    """Draw where the subjects' voxels are, as glass brains from four sides.

    Parameters
    ----------
    maskers : sequence of VoxelMasker
        One per subject.
    dark : bool
        Whether the figure is for a dark page.

    Returns
    -------
    bytes
        PNG. The color is the depth of voxels along the line of sight in mm, mean over subjects.
    """
    from nilearn.plotting import plot_glass_brain

    img = resample_to_common_grid(maskers)
    depth = np.asarray(img.dataobj) * GRID_MM / len(maskers)
    low = img.affine[:3, 3] - GRID_MM / 2
    extent = [(start, start + GRID_MM * size) for start, size in zip(low, depth.shape, strict=True)]
    left = int(np.clip(np.rint(-low[0] / GRID_MM), 0, len(depth)))  # cells of the left hemisphere
    projections = {
        "l": (depth[:left].sum(0), 1, 2),
        "y": (depth.sum(1), 0, 2),
        "r": (depth[left:].sum(0), 1, 2),
        "z": (depth.sum(2), 0, 1),
    }
    figure = new_figure(10, 2.9, dark)
    # nilearn projects the largest value, which is flat for a mask: only its outlines are used.
    display = plot_glass_brain(None, figure=figure, black_bg=dark, display_mode="lyrz")
    for view, (projection, across, up) in projections.items():
        draw_projection(
            display.axes[view].ax, projection, (*extent[across], *extent[up]), dark=dark
        )
    return to_png(figure)


def draw_projection(
    axes: "Axes",
    projection: np.ndarray,
    extent_mm: tuple[float, float, float, float],
    dark: bool = False,
) -> None:
    """Draw a projection (n_across, n_up) behind a glass brain whose limits stay as they are."""
    limits = axes.get_xlim(), axes.get_ylim()
    axes.imshow(
        np.ma.masked_equal(projection.T, 0),
        origin="lower",
        extent=extent_mm,
        cmap="viridis" if dark else "YlGnBu",
        vmin=0,
        vmax=MAX_DEPTH_MM,
        interpolation="nearest",
        aspect="equal",
        zorder=0,
    )
    axes.set(xlim=limits[0], ylim=limits[1])


def plot_attention(
    maskers: Sequence[VoxelMasker], relative_attention: Sequence[np.ndarray], dark: bool = False
) -> bytes:
    """Draw which voxels the queries attend to, as axial slices.

    Parameters
    ----------
    maskers, relative_attention : sequences over subjects
        VoxelMasker, and ndarray (n_voxels,) in which 1 is as much as if every voxel got the same.
    dark : bool
        Whether the figure is for a dark page.

    Returns
    -------
    bytes
        PNG. The colors end at the 97th percentile, at least at 2.
    """
    top = top_of_scale(relative_attention, MIN_TOP_ATTENTION)
    return plot_brain_slices(maskers, relative_attention, top, dark)


def plot_brain_slices(
    maskers: Sequence[VoxelMasker],
    values: Sequence[np.ndarray],
    top: float,
    dark: bool = False,
    n_slices: int = 7,
    cut_coords: Sequence[float] | None = None,
) -> bytes:
    """Draw values per voxel, mean over subjects, on axial slices of the MNI template.

    Parameters
    ----------
    maskers : sequence of VoxelMasker
        One per subject.
    values : sequence of ndarrays (n_voxels,)
        One per subject.
    top : float
        Colors go from 0 to `top`.
    dark : bool
        Whether the figure is for a dark page.
    n_slices : int
        Number of slices, at equal fractions of the voxels.
    cut_coords : sequence of float, optional
        Heights of the slices in mm, instead.

    Returns
    -------
    bytes
        PNG.
    """
    figure, _ = draw_axial_slices(
        resample_to_common_grid(maskers, values),
        cut_coords or slice_heights(maskers, n_slices),
        dark,
        cbar_tick_format="%.1f",
        cmap="plasma",
        vmin=0.0,
        vmax=top,
        symmetric_cbar=False,
        threshold=1e-6,
    )
    return to_png(figure)


def plot_signed_slices(
    maskers: Sequence[VoxelMasker],
    values: Sequence[np.ndarray],
    limit: float,
    cut_coords: Sequence[float],
    dark: bool = False,
) -> bytes:
    """Draw values of both signs, mean over subjects, on axial slices of the MNI template.

    Parameters
    ----------
    maskers : sequence of VoxelMasker
        One per subject.
    values : sequence of ndarrays (n_voxels,)
        One per subject.
    limit : float
        Colors go from -limit to limit.
    cut_coords : sequence of float
        Heights of the slices in mm.
    dark : bool
        Whether the figure is for a dark page.

    Returns
    -------
    bytes
        PNG.
    """
    figure, _ = draw_axial_slices(
        resample_to_common_grid(maskers, values),
        cut_coords,
        dark,
        cbar_tick_format="%.2g",
        cmap="RdBu_r",
        vmin=-limit,
        vmax=limit,
        threshold=1e-12,
    )
    return to_png(figure)


def draw_axial_slices(
    img: nib.Nifti1Image, cut_coords: Sequence[float], dark: bool = False, **colors: Any
) -> tuple["Figure", Any]:
    """Draw an image on axial slices of the MNI template.

    Parameters
    ----------
    img : Nifti1Image
        In MNI space.
    cut_coords : sequence of float
        Heights of the slices in mm.
    dark : bool
        Whether the figure is for a dark page.
    **colors
        Colors and color bar, as nilearn's `plot_stat_map` takes them.

    Returns
    -------
    figure : matplotlib.figure.Figure
    display : nilearn.plotting.displays.BaseSlicer
    """
    from nilearn.datasets import load_mni152_template
    from nilearn.plotting import plot_stat_map

    figure = new_figure(10, 2.2, dark)
    display = plot_stat_map(
        img,
        bg_img=load_mni152_template(resolution=2),
        figure=figure,
        display_mode="z",
        cut_coords=list(cut_coords),
        black_bg=dark,
        resampling_interpolation="nearest",
        **colors,
    )
    return figure, display


def slice_heights(maskers: Sequence[VoxelMasker], n_slices: int) -> list[float]:
    """Choose heights of axial slices at equal fractions of the subjects' voxels.

    Parameters
    ----------
    maskers : sequence of VoxelMasker
        One per subject.
    n_slices : int
        Number of slices.

    Returns
    -------
    list of float
        In mm, ascending; fewer where they would be the same.
    """
    return spread_heights(np.concatenate([masker.coords_mm[:, 2] for masker in maskers]), n_slices)


def spread_heights(z: np.ndarray, n_slices: int) -> list[float]:
    """Heights in mm at equal fractions of voxels at heights z (n_voxels,), ascending."""
    return np.unique(np.round(np.quantile(z, np.linspace(0.06, 0.94, n_slices)))).tolist()
