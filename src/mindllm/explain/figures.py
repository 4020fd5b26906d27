"""Pictures as PNG bytes, drawn without a display: brains, intervals, training curves. Each exists for light and dark pages."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd

from mindllm.files import whole_file
from mindllm.voxels import VoxelSpace

CELL_MM = 4.0
INK = {False: "#1d2530", True: "#e6e9ee"}
PAPER = {False: "#ffffff", True: "#000000"}


def new_figure(width: float, height: float, dark: bool = False) -> Any:
    """An empty figure in inches that needs no display and leaves the caller's matplotlib backend alone."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), facecolor=PAPER[dark])
    FigureCanvasAgg(figure)
    return figure


def to_png(figure: Any, dpi: int = 110, transparent: bool = False) -> bytes:
    """The figure as PNG bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, facecolor="none" if transparent else figure.get_facecolor())
    return buffer.getvalue()


def on_common_grid(spaces: Sequence[VoxelSpace], values: Sequence[np.ndarray] | None = None) -> nib.Nifti1Image:
    """People's voxels in one MNI grid of 4 mm cubes: the mean of values (V,) over people, or (None) the number of people there."""
    low = np.floor(np.min([space.mm.min(0) for space in spaces], axis=0) / CELL_MM) - 1
    high = np.ceil(np.max([space.mm.max(0) for space in spaces], axis=0) / CELL_MM) + 1
    shape = tuple((high - low + 1).astype(int))
    total, people = np.zeros(shape), np.zeros(shape)
    for i, space in enumerate(spaces):
        cells = tuple((np.rint(space.mm / CELL_MM) - low).astype(int).T)
        count, summed = np.zeros(shape), np.zeros(shape)
        np.add.at(count, cells, 1)
        np.add.at(summed, cells, np.asarray(values[i], float) if values is not None else 1.0)
        total += np.divide(summed, count, out=np.zeros(shape), where=count > 0)
        people += count > 0
    data = people if values is None else np.divide(total, people, out=np.zeros(shape), where=people > 0)
    affine = np.diag([CELL_MM, CELL_MM, CELL_MM, 1.0])
    affine[:3, 3] = low * CELL_MM
    return nib.Nifti1Image(data.astype(np.float32), affine)


def voxel_picture(spaces: Sequence[VoxelSpace], dark: bool = False) -> bytes:
    """Glass brains of where people's voxels are: colour is how many mm of voxels one looks through, mean over people."""
    from nilearn.plotting import plot_glass_brain

    image = on_common_grid(spaces)
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


def attention_picture(spaces: Sequence[VoxelSpace], times_uniform: Sequence[np.ndarray], dark: bool = False) -> bytes:
    """Where the tokens look, times_uniform (V,) per person: 1 = as much as everywhere."""
    looked = np.concatenate([np.asarray(values) for values in times_uniform])
    return brain_slices(spaces, times_uniform, max(float(np.quantile(looked, 0.97)), 2.0), dark)


def brain_slices(
    spaces: Sequence[VoxelSpace], values: Sequence[np.ndarray], top: float, dark: bool = False, slices: int = 7
) -> bytes:
    """Axial slices of the MNI template with values (V,) per person, the mean over people; colours go from 0 to `top`."""
    from nilearn.datasets import load_mni152_template
    from nilearn.plotting import plot_stat_map

    image = on_common_grid(spaces, values)
    z = np.concatenate([space.mm[:, 2] for space in spaces])
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


def count_bars(table: pd.DataFrame) -> bytes:
    """One bar per row of counts, its parts the columns, side by side."""
    figure = new_figure(8, 0.7 + 0.32 * len(table))
    axes, start = figure.subplots(), np.zeros(len(table))
    names = [str(name) for name in table.index[::-1]]
    for name, colour in zip(table, ("#4a90c4", "#9a7fc7", "#e4572e", "#c9d1d9"), strict=False):
        counts = table[name].to_numpy(float)[::-1]
        if counts.any():
            axes.barh(names, counts, left=start, color=colour, label=name, height=0.7)
        start += counts
    dress(axes)
    axes.legend(frameon=False, fontsize=8, loc="lower right", bbox_to_anchor=(1, 1), ncol=4)
    figure.tight_layout()
    return to_png(figure)


def dress(axes: Any, dark: bool = False) -> None:
    """Quiet axes in the page's ink."""
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(INK[dark])
    axes.tick_params(colors=INK[dark], length=0)
    axes.xaxis.label.set_color(INK[dark])
    axes.yaxis.label.set_color(INK[dark])
    axes.title.set_color(INK[dark])


def training_curve(history: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    """Draw losses and validation scores against the step, one column per stage, to `path` (.png, .svg or .pdf).

    history: dicts of `step`, `stage`, `loss`, and where measured `val_loss` and other `val_...` scores.
    """
    path, stages = Path(path), list(dict.fromkeys(entry["stage"] for entry in history))
    scores = sorted({key for entry in history for key in entry if key.startswith("val_") and key != "val_loss"})
    spans = [max(1, sum(entry["stage"] == stage for entry in history)) for stage in stages]
    widths = [max(span, 0.3 * max(spans)) for span in spans]
    lines = 2 if scores else 1
    figure = new_figure(4.6 * max(len(stages), 1) + 0.6, 2.7 * lines)
    grid = figure.subplots(
        lines, max(len(stages), 1), sharex="col", sharey=False, squeeze=False, width_ratios=widths or [1]
    )
    for column, stage in enumerate(stages):
        entries = [entry for entry in history if entry["stage"] == stage]
        title = f"stage {stage}" if isinstance(stage, int) else str(stage)
        draw_curves(grid[0, column], entries, {"loss": "training", "val_loss": "validation"}, title, "loss")
        if scores:
            draw_curves(
                grid[1, column], entries, {key: key.removeprefix("val_") for key in scores}, "", "validation score"
            )
            top = [entry[key] for entry in history for key in scores if entry.get(key) is not None]
            grid[1, column].set_ylim(min(0, *top), 1.08 * max(top) or 1)  # one scale, so that stages compare
        grid[-1, column].set_xlabel("step")
    figure.tight_layout()
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=130)


def draw_curves(
    axes: Any, entries: Sequence[Mapping[str, Any]], names: Mapping[str, str], title: str, label: str
) -> None:
    """One line per key of `names` that the entries hold, against their step."""
    colours = ("#7b8794", "#e4572e", "#4a90c4", "#9a7fc7", "#5b9a68")
    for colour, (key, name) in zip(colours if "loss" in names else colours[1:] * 3, names.items(), strict=False):
        points = [(entry["step"], entry[key]) for entry in entries if entry.get(key) is not None]
        if points:
            axes.plot(
                *zip(*points, strict=True),
                color=colour,
                lw=1.6,
                marker="o" if len(points) < 40 else None,
                ms=3,
                label=name,
            )
    axes.set(title=title, ylabel=label)
    dress(axes)
    axes.grid(axis="y", alpha=0.2)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8)
