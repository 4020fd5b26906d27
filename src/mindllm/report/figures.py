"""The report's figures of numbers, as PNG bytes for light and dark pages."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mindllm.evaluation.conditions import ALL_SUBJECTS, CONDITIONS, Kind
from mindllm.metrics.registry import METRICS
from mindllm.plotting.style import BACKGROUND, FOREGROUND, new_figure, style_axes, to_png

COLOURS: dict[Kind, str] = {
    "fmri": "#e4572e", "shuffled": "#7b8794", "blind": "#4a90c4", "trained": "#7b8794", "baseline": "#5b9a68",
    "reference": "#9a7fc7",
}  # fmt: skip


def interval_figure(
    rows: Sequence[Mapping[str, Any]], metric: str = "identification_top1", dark: bool = False
) -> bytes:
    """One line per condition: value and 95 % interval of everybody together, every person as a small dot, and chance."""
    rows = [row for row in rows if row["metric"] == metric and row["value"] is not None]
    names = [
        c
        for c in CONDITIONS
        if any((r["condition"], r["subject"]) == (c, ALL_SUBJECTS) for r in rows)
    ]
    figure = new_figure(8, 0.9 + 0.3 * len(names), dark)
    axes = figure.add_subplot(facecolor="none")
    for row in rows:
        if row["condition"] not in names:
            continue
        y, colour, main = (
            names.index(row["condition"]),
            COLOURS[CONDITIONS[row["condition"]].kind],
            row["subject"] == ALL_SUBJECTS,
        )
        if main:
            axes.plot(
                [100 * row["ci_low"], 100 * row["ci_high"]],
                [y, y],
                color=colour,
                lw=4,
                alpha=0.55,
                solid_capstyle="round",
            )
        axes.plot(
            100 * row["value"],
            y + 0.26 * (not main),
            "o",
            color=colour,
            ms=8 if main else 3,
            alpha=1 if main else 0.6,
        )
    chance = next((row["chance_level"] for row in rows if row["chance_level"]), None)
    if chance:
        axes.axvline(100 * chance, color=FOREGROUND[dark], ls=(0, (2, 3)), lw=1, alpha=0.7)
        axes.text(
            100 * chance, -0.75, f" chance {100 * chance:.3g} %", color=FOREGROUND[dark], fontsize=8
        )
    axes.set(
        yticks=range(len(names)),
        yticklabels=[CONDITIONS[c].label for c in names],
        xlim=(-1, None),
        ylim=(len(names) - 0.4, -0.7),
    )
    axes.set_xlabel(
        f"identification, {METRICS[metric].label.lower()} (% of trials); small dots are people"
    )
    style_axes(axes, dark)
    axes.grid(axis="x", color=FOREGROUND[dark], alpha=0.12)
    figure.tight_layout()
    return to_png(figure, transparent=True)


def calibration_figure(calibration: Mapping[str, Any], dark: bool = False) -> bytes:
    """Share that is right against evidence (left) and against the candidate's probability (right), in bins of equal count."""
    figure = new_figure(8, 3.1, dark)
    left, right = figure.subplots(1, 2, sharey=True)
    draw_bins(left, calibration["decoded"]["curve"], COLOURS["fmri"], "free-running text")
    draw_bins(left, calibration["likeliest"]["curve"], COLOURS["blind"], "likeliest candidate")
    left.set(xlabel="evidence (nats)", ylabel="right (%)", ylim=(-4, 104))
    right.plot([0, 100], [0, 100], color=FOREGROUND[dark], lw=1, ls=(0, (2, 3)), alpha=0.7)
    draw_bins(
        right, calibration["probability"]["curve"], COLOURS["blind"], "likeliest candidate", 100
    )
    right.set(xlabel="its probability (%)", xlim=(-4, 104))
    for axes in (left, right):
        axes.set_facecolor("none")
        style_axes(axes, dark)
        axes.grid(color=FOREGROUND[dark], alpha=0.12)
    left.legend(frameon=False, fontsize=8, labelcolor=FOREGROUND[dark])
    figure.tight_layout()
    return to_png(figure, transparent=True)


def draw_bins(
    axes: Any, bins: Sequence[Mapping[str, float]], colour: str, name: str, scale: float = 1
) -> None:
    """Bins of a reliability curve with their intervals."""
    x = [scale * b["mean"] for b in bins]
    axes.plot(x, [100 * b["right"] for b in bins], "o-", color=colour, ms=4, lw=1.4, label=name)
    axes.vlines(
        x,
        [100 * b["ci_low"] for b in bins],
        [100 * b["ci_high"] for b in bins],
        color=colour,
        lw=2.5,
        alpha=0.35,
    )


def confusion_figure(confusion: Mapping[str, Any], dark: bool = False) -> bytes:
    """Per cent of each true category (row) by the category of the likeliest candidate (column)."""
    names = [name if len(name) <= 34 else f"{name[:32]}…" for name in confusion["categories"]]
    counts = np.array(confusion["counts"], float)
    share = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    size = 0.4 * len(names)
    figure = new_figure(3.4 + size, 1.9 + size, dark)
    axes = figure.add_subplot(facecolor="none")
    axes.imshow(np.ma.masked_less(share, 0.5), cmap="magma" if dark else "YlOrRd", vmin=0, vmax=100)
    for (row, column), value in np.ndenumerate(share):
        if value >= 0.5:
            strong = value > 55
            axes.text(
                column,
                row,
                f"{value:.0f}",
                ha="center",
                va="center",
                fontsize=8,
                color=BACKGROUND[dark] if strong != dark else FOREGROUND[dark],
            )
    ticks = range(len(names))
    axes.set(
        xticks=ticks,
        yticks=ticks,
        yticklabels=[f"{name} ({int(n)})" for name, n in zip(names, counts.sum(1), strict=True)],
    )
    axes.set_xticklabels(names, rotation=45, ha="right")
    style_axes(axes, dark)
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(labelsize=9)
    figure.tight_layout()
    return to_png(figure, transparent=True)
