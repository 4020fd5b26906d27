"""Training curves and bars of counts."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mindllm.plotting.style import new_figure, style_axes, to_png
from mindllm.utils.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COUNT_COLORS = ("#4a90c4", "#9a7fc7", "#e4572e", "#c9d1d9")
TRAINING_COLOR = "#7b8794"
VALIDATION_COLORS = ("#e4572e", "#4a90c4", "#9a7fc7", "#5b9a68")
LOSSES = {"loss": "training", "val_loss": "validation"}
MAX_MARKERS = 40  # up to this many points a curve has markers

HistoryEntry = Mapping[str, float | int | str | None]


def plot_counts(table: pd.DataFrame) -> bytes:
    """Draw one horizontal bar per row of counts, divided by column.

    Parameters
    ----------
    table : DataFrame
        Counts; the index labels the bars, and up to four columns are the parts of a bar.

    Returns
    -------
    bytes
        PNG.
    """
    figure = new_figure(8, 0.7 + 0.32 * len(table))
    axes, start = figure.subplots(), np.zeros(len(table))
    names = [str(name) for name in table.index[::-1]]
    for column, color in zip(table, COUNT_COLORS, strict=False):
        counts = table[column].to_numpy(float)[::-1]
        if counts.any():
            axes.barh(names, counts, left=start, color=color, label=column, height=0.7)
        start += counts
    style_axes(axes)
    axes.legend(frameon=False, fontsize=8, loc="lower right", bbox_to_anchor=(1, 1), ncol=4)
    figure.tight_layout()
    return to_png(figure)


def plot_training_curve(history: Sequence[HistoryEntry], path: str | Path) -> None:
    """Draw losses and validation scores against the step, one column per stage.

    Parameters
    ----------
    history : sequence of mappings
        Each with `step`, `stage`, `loss`, and where measured `val_loss` and other scores `val_*`.
    path : str or Path
        File to write, in a format of its suffix: .png, .svg or .pdf.
    """
    scores = sorted(
        {key for entry in history for key in entry if key.startswith("val_") and key != "val_loss"}
    )
    figure = draw_training_curve(history, scores)
    figure.tight_layout()
    with atomic_write(Path(path)) as temporary:
        figure.savefig(temporary, dpi=130)


def draw_training_curve(history: Sequence[HistoryEntry], scores: Sequence[str]) -> "Figure":
    """Draw a column per stage: the losses, and below them the scores `val_*`, if there are any."""
    stages = list(dict.fromkeys(entry["stage"] for entry in history))
    n_rows, n_columns = 2 if scores else 1, max(len(stages), 1)
    lengths = [max(1, sum(entry["stage"] == stage for entry in history)) for stage in stages]
    figure = new_figure(4.6 * n_columns + 0.6, 2.7 * n_rows)
    grid = figure.subplots(
        n_rows,
        n_columns,
        sharex="col",
        squeeze=False,
        width_ratios=[max(length, 0.3 * max(lengths)) for length in lengths] or [1],
    )
    limits = score_limits(history, scores)
    for column, stage in enumerate(stages):
        entries = [entry for entry in history if entry["stage"] == stage]
        draw_curves(grid[0, column], entries, LOSSES, "loss")
        grid[0, column].set_title(f"stage {stage}" if isinstance(stage, int) else str(stage))
        if scores:
            labels = {key: key.removeprefix("val_") for key in scores}
            draw_curves(grid[1, column], entries, labels, "validation score")
            grid[1, column].set_ylim(*limits)
        grid[-1, column].set_xlabel("step")
    return figure


def score_limits(history: Sequence[HistoryEntry], scores: Sequence[str]) -> tuple[float, float]:
    """Return one vertical scale (bottom, top) for all stages, so that they can be compared."""
    values = [value for key in scores for _, value in points_of(history, key)]
    return min([0.0, *values]), 1.08 * max(values, default=0.0) or 1


def points_of(entries: Sequence[HistoryEntry], key: str) -> list[tuple[float, float]]:
    """Return (step, value) of the entries that hold the key."""
    return [
        (float(entry["step"] or 0), float(value))
        for entry in entries
        if (value := entry.get(key)) is not None
    ]


def draw_curves(
    axes: "Axes", entries: Sequence[HistoryEntry], labels: Mapping[str, str], ylabel: str
) -> None:
    """Draw one curve against the step per key of `labels` that the entries hold."""
    colors = (TRAINING_COLOR, *VALIDATION_COLORS) if "loss" in labels else VALIDATION_COLORS * 3
    for color, (key, label) in zip(colors, labels.items(), strict=False):
        points = points_of(entries, key)
        if points:
            marker = "o" if len(points) < MAX_MARKERS else None
            steps, values = zip(*points, strict=True)
            axes.plot(steps, values, color=color, lw=1.6, marker=marker, ms=3, label=label)
    axes.set(ylabel=ylabel)
    style_axes(axes)
    axes.grid(axis="y", alpha=0.2)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8)
