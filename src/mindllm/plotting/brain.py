"""Pictures of brains as PNG bytes, drawn without a display, for light and dark pages."""

from collections.abc import Sequence

import nibabel as nib
import numpy as np

from mindllm.fmri.masker import VoxelMasker
from mindllm.plotting.style import new_figure, to_png

CELL_MM = 4.0


def resample_to_common_grid(
    spaces: Sequence[VoxelMasker], values: Sequence[np.ndarray] | None = None
) -> nib.Nifti1Image:
    """People's voxels in one MNI grid of 4 mm cubes: the mean of values (V,) over people, or (None) the number of people there."""
    low = np.floor(np.min([space.coords_mm.min(0) for space in spaces], axis=0) / CELL_MM) - 1
    high = np.ceil(np.max([space.coords_mm.max(0) for space in spaces], axis=0) / CELL_MM) + 1
    shape = tuple((high - low + 1).astype(int))
    total, people = np.zeros(shape), np.zeros(shape)
    for i, space in enumerate(spaces):
        cells = tuple((np.rint(space.coords_mm / CELL_MM) - low).astype(int).T)
        count, summed = np.zeros(shape), np.zeros(shape)
        np.add.at(count, cells, 1)
        np.add.at(summed, cells, np.asarray(values[i], float) if values is not None else 1.0)
        total += np.divide(summed, count, out=np.zeros(shape), where=count > 0)
        people += count > 0
    data = (
        people
        if values is None
        else np.divide(total, people, out=np.zeros(shape), where=people > 0)
    )
    affine = np.diag([CELL_MM, CELL_MM, CELL_MM, 1.0])
    affine[:3, 3] = low * CELL_MM
    return nib.Nifti1Image(data.astype(np.float32), affine)


def plot_voxel_coverage(spaces: Sequence[VoxelMasker], dark: bool = False) -> bytes:
    """Glass brains of where people's voxels are: colour is how many mm of voxels one looks through, mean over people."""
    from nilearn.plotting import plot_glass_brain

    image = resample_to_common_grid(spaces)
    depth = np.asarray(image.dataobj) * CELL_MM / len(spaces)
    low = image.affine[:3, 3] - CELL_MM / 2
    extent = [(a, a + CELL_MM * n) for a, n in zip(low, depth.shape, strict=True)]  # mm, per axis
    left = int(np.clip(np.rint(-low[0] / CELL_MM), 0, len(depth)))  # cells of the left hemisphere
    shown = {
        "l": (depth[:left].sum(0), 1, 2),
        "y": (depth.sum(1), 0, 2),
        "r": (depth[left:].sum(0), 1, 2),
        "z": (depth.sum(2), 0, 1),
    }
    figure = new_figure(10, 2.9, dark)
    # nilearn's own projection shows the largest value, which is flat for a mask; only its brains are used.
    display = plot_glass_brain(None, figure=figure, black_bg=dark, display_mode="lyrz")
    for name, (seen, across, up) in shown.items():
        data = np.ma.masked_equal(seen.T, 0)
        axes = display.axes[name].ax
        limits = axes.get_xlim(), axes.get_ylim()
        axes.imshow(
            data,
            origin="lower",
            extent=(*extent[across], *extent[up]),
            cmap="YlGnBu" if not dark else "viridis",
            vmin=0,
            vmax=70,
            interpolation="nearest",
            aspect="equal",
            zorder=0,
        )
        axes.set(xlim=limits[0], ylim=limits[1])
    return to_png(figure)


def plot_attention(
    spaces: Sequence[VoxelMasker], times_uniform: Sequence[np.ndarray], dark: bool = False
) -> bytes:
    """Where the tokens look, times_uniform (V,) per person: 1 = as much as everywhere."""
    looked = np.concatenate([np.asarray(values) for values in times_uniform])
    return plot_brain_slices(
        spaces, times_uniform, max(float(np.quantile(looked, 0.97)), 2.0), dark
    )


def plot_brain_slices(
    spaces: Sequence[VoxelMasker],
    values: Sequence[np.ndarray],
    top: float,
    dark: bool = False,
    slices: int = 7,
) -> bytes:
    """Axial slices of the MNI template with values (V,) per person, the mean over people; colours go from 0 to `top`."""
    from nilearn.datasets import load_mni152_template
    from nilearn.plotting import plot_stat_map

    image = resample_to_common_grid(spaces, values)
    z = np.concatenate([space.coords_mm[:, 2] for space in spaces])
    # Equal parts of the voxels between slices, whatever piece of the brain was measured.
    cuts = np.unique(np.round(np.quantile(z, np.linspace(0.06, 0.94, slices)))).tolist()
    figure = new_figure(10, 2.2, dark)
    options = {
        "cmap": "plasma",
        "vmin": 0.0,
        "vmax": top,
        "symmetric_cbar": False,
        "threshold": 1e-6,
    }
    plot_stat_map(
        image,
        bg_img=load_mni152_template(resolution=2),
        figure=figure,
        display_mode="z",
        cut_coords=cuts,
        black_bg=dark,
        resampling_interpolation="nearest",
        cbar_tick_format="%.1f",
        **options,
    )
    return to_png(figure)
