"""Training curves and bars."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mindllm.plotting.style import new_figure, style_axes, to_png
from mindllm.utils.files import atomic_write


def plot_counts(table: pd.DataFrame) -> bytes:
    """One bar per row of counts, its parts the columns, side by side."""
    figure = new_figure(8, 0.7 + 0.32 * len(table))
    axes, start = figure.subplots(), np.zeros(len(table))
    names = [str(name) for name in table.index[::-1]]
    for name, colour in zip(table, ("#4a90c4", "#9a7fc7", "#e4572e", "#c9d1d9"), strict=False):
        counts = table[name].to_numpy(float)[::-1]
        if counts.any():
            axes.barh(names, counts, left=start, color=colour, label=name, height=0.7)
        start += counts
    style_axes(axes)
    axes.legend(frameon=False, fontsize=8, loc="lower right", bbox_to_anchor=(1, 1), ncol=4)
    figure.tight_layout()
    return to_png(figure)


def plot_training_curve(history: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    """Draw losses and validation scores against the step, one column per stage, to `path` (.png, .svg or .pdf).

    history: dicts of `step`, `stage`, `loss`, and where measured `val_loss` and other `val_...` scores.
    """
    path, stages = Path(path), list(dict.fromkeys(entry["stage"] for entry in history))
    scores = sorted(
        {key for entry in history for key in entry if key.startswith("val_") and key != "val_loss"}
    )
    spans = [max(1, sum(entry["stage"] == stage for entry in history)) for stage in stages]
    widths = [max(span, 0.3 * max(spans)) for span in spans]
    lines = 2 if scores else 1
    figure = new_figure(4.6 * max(len(stages), 1) + 0.6, 2.7 * lines)
    grid = figure.subplots(
        lines,
        max(len(stages), 1),
        sharex="col",
        sharey=False,
        squeeze=False,
        width_ratios=widths or [1],
    )
    for column, stage in enumerate(stages):
        entries = [entry for entry in history if entry["stage"] == stage]
        title = f"stage {stage}" if isinstance(stage, int) else str(stage)
        draw_curves(
            grid[0, column], entries, {"loss": "training", "val_loss": "validation"}, title, "loss"
        )
        if scores:
            draw_curves(
                grid[1, column],
                entries,
                {key: key.removeprefix("val_") for key in scores},
                "",
                "validation score",
            )
            top = [entry[key] for entry in history for key in scores if entry.get(key) is not None]
            grid[1, column].set_ylim(
                min(0, *top), 1.08 * max(top) or 1
            )  # one scale, so that stages compare
        grid[-1, column].set_xlabel("step")
    figure.tight_layout()
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=130)


def draw_curves(
    axes: Any,
    entries: Sequence[Mapping[str, Any]],
    names: Mapping[str, str],
    title: str,
    label: str,
) -> None:
    """One line per key of `names` that the entries hold, against their step."""
    colours = ("#7b8794", "#e4572e", "#4a90c4", "#9a7fc7", "#5b9a68")
    for colour, (key, name) in zip(
        colours if "loss" in names else colours[1:] * 3, names.items(), strict=False
    ):
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
    style_axes(axes)
    axes.grid(axis="y", alpha=0.2)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8)
