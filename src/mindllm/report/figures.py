"""The report's figures of numbers, as PNG bytes for light and dark pages."""

from typing import TYPE_CHECKING

import numpy as np

from mindllm.evaluation.conditions import ALL_SUBJECTS, CONDITIONS, Kind
from mindllm.evaluation.results import ConfusionResult, EvaluationResult, MetricRow
from mindllm.metrics.calibration import CalibrationBin, CalibrationResult, EvidenceCalibration
from mindllm.metrics.registry import METRICS
from mindllm.plotting.style import BACKGROUND, FOREGROUND, new_figure, style_axes, to_png
from mindllm.report.summary import main_metric

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

COLORS: dict[Kind, str] = {
    "fmri": "#e4572e",
    "shuffled": "#7b8794",
    "blind": "#4a90c4",
    "trained": "#7b8794",
    "baseline": "#5b9a68",
    "reference": "#9a7fc7",
}
MAX_NAME = 34  # characters of a category's name
MIN_PERCENT = 0.5  # of a cell of the confusion matrix that is drawn
STRONG_PERCENT = 55  # from here on a cell's text is in the color of the background


def draw_result_figures(result: EvaluationResult, dark: bool = False) -> dict[str, bytes]:
    """Draw the figures that need nothing but the result.

    Parameters
    ----------
    result : EvaluationResult
        The result.
    dark : bool
        Whether the figures are for a dark page.

    Returns
    -------
    dict of str to bytes
        Name to PNG.
    """
    figures = {
        "intervals-all": interval_figure(result, dark=dark),
        "calibration-all": calibration_figure(result.calibration, dark),
    }
    if result.calibration.evidence is not None:
        figures["coverage-all"] = coverage_figure(result.calibration.evidence, dark)
    if result.confusion is not None:
        figures["confusion-all"] = confusion_figure(result.confusion, dark)
    return figures


def interval_figure(
    result: EvaluationResult, metric: str | None = None, dark: bool = False
) -> bytes:
    """Draw one metric of every condition in percent; None: the metric of the headline.

    A line per condition with its 95 % interval, a small dot per subject, and chance.
    """
    metric = metric or main_metric(result)
    rows = [row for row in result.scores if row.metric == metric and row.value is not None]
    pooled = {row.condition for row in rows if row.subject == ALL_SUBJECTS}
    names = [name for name in CONDITIONS if name in pooled]
    figure = new_figure(8, 0.9 + 0.3 * len(names), dark)
    axes = figure.add_subplot(facecolor="none")
    for row in rows:
        if row.condition in pooled:
            draw_score(axes, row, names.index(row.condition))
    chance = next((100 * row.chance_level for row in rows if row.chance_level), None)
    if chance is not None:
        color = FOREGROUND[dark]
        axes.axvline(chance, color=color, ls=(0, (2, 3)), lw=1, alpha=0.7)
        axes.text(chance, -0.75, f" chance {chance:.3g} %", color=color, fontsize=8)
    axes.set(
        yticks=range(len(names)),
        yticklabels=[CONDITIONS[name].label for name in names],
        xlim=(-1, None),
        ylim=(len(names) - 0.4, -0.7),
    )
    label = METRICS[metric].label.lower()
    axes.set_xlabel(f"identification, {label} (% of trials); small dots are subjects")
    style_axes(axes, dark)
    axes.grid(axis="x", color=FOREGROUND[dark], alpha=0.12)
    figure.tight_layout()
    return to_png(figure, transparent=True)


def draw_score(axes: "Axes", row: MetricRow, y: float) -> None:
    """Draw a score in percent at the height y: with its interval, or small for a single subject."""
    color, value = COLORS[CONDITIONS[row.condition].kind], 100 * (row.value or 0)
    if row.subject != ALL_SUBJECTS:
        axes.plot(value, y + 0.26, "o", color=color, ms=3, alpha=0.6)
        return
    if row.ci_low is not None and row.ci_high is not None:
        ends = [100 * row.ci_low, 100 * row.ci_high]
        axes.plot(ends, [y, y], color=color, lw=4, alpha=0.55, solid_capstyle="round")
    axes.plot(value, y, "o", color=color, ms=8, alpha=1)


def calibration_figure(calibration: CalibrationResult, dark: bool = False) -> bytes:
    """Draw the fraction that is correct in bins of equal count.

    Against the log-likelihood ratio (left) and the candidate's probability (right).
    """
    figure = new_figure(8, 3.1, dark)
    left, right = figure.subplots(1, 2, sharey=True)
    blue = COLORS["blind"]
    draw_bins(left, calibration.prediction.bins, COLORS["fmri"], "prediction")
    draw_bins(left, calibration.top_candidate.bins, blue, "most likely candidate")
    left.set(xlabel="log-likelihood ratio (nats)", ylabel="correct (%)", ylim=(-4, 104))
    right.plot([0, 100], [0, 100], color=FOREGROUND[dark], lw=1, ls=(0, (2, 3)), alpha=0.7)
    draw_bins(right, calibration.probability.bins, blue, "most likely candidate", 100)
    if calibration.evidence is not None:
        bins = calibration.evidence.probability.bins
        draw_bins(right, bins, COLORS["fmri"], "candidate with the most evidence", 100)
    right.set(xlabel="probability of that candidate (%)", xlim=(-4, 104))
    for axes in (left, right):
        axes.set_facecolor("none")
        style_axes(axes, dark)
        axes.grid(color=FOREGROUND[dark], alpha=0.12)
        axes.legend(frameon=False, fontsize=8, labelcolor=FOREGROUND[dark])
    figure.tight_layout()
    return to_png(figure, transparent=True)


def coverage_figure(evidence: EvidenceCalibration, dark: bool = False) -> bytes:
    """Draw the accuracy of the trials that are answered, by how many of them are."""
    figure = new_figure(8, 2.8, dark)
    axes = figure.add_subplot(facecolor="none")
    coverage, accuracy = (100 * np.array(v) for v in (evidence.coverage, evidence.accuracy))
    axes.plot(coverage, accuracy, color=COLORS["fmri"], lw=1.8)
    axes.axhline(accuracy[-1], color=FOREGROUND[dark], ls=(0, (2, 3)), lw=1, alpha=0.7)
    axes.set(
        xlabel="trials that are answered, the surest first (%)",
        ylabel="correct (%)",
        xlim=(0, 102),
        ylim=(-4, 104),
    )
    style_axes(axes, dark)
    axes.grid(color=FOREGROUND[dark], alpha=0.12)
    figure.tight_layout()
    return to_png(figure, transparent=True)


def draw_bins(
    axes: "Axes", bins: "Sequence[CalibrationBin]", color: str, label: str, factor: float = 1
) -> None:
    """Draw the bins of a reliability curve with their intervals, scores times the factor."""
    x = [factor * b.mean_score for b in bins]
    axes.plot(x, [100 * b.accuracy for b in bins], "o-", color=color, ms=4, lw=1.4, label=label)
    low, high = [100 * b.ci_low for b in bins], [100 * b.ci_high for b in bins]
    axes.vlines(x, low, high, color=color, lw=2.5, alpha=0.35)


def confusion_figure(confusion: ConfusionResult, dark: bool = False) -> bytes:
    """Draw targets' categories (rows) by predicted categories (columns), percent of the row."""
    names = [
        name if len(name) <= MAX_NAME else f"{name[: MAX_NAME - 2]}…"
        for name in confusion.categories
    ]
    counts = np.array(confusion.counts, float)
    percents = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    size = 0.4 * len(names)
    figure = new_figure(3.4 + size, 1.9 + size, dark)
    axes = figure.add_subplot(facecolor="none")
    cells = np.ma.masked_less(percents, MIN_PERCENT)
    axes.imshow(cells, cmap="magma" if dark else "YlOrRd", vmin=0, vmax=100)
    for (row, column), percent in np.ndenumerate(percents):
        if percent >= MIN_PERCENT:
            is_strong = percent > STRONG_PERCENT
            color = BACKGROUND[dark] if is_strong != dark else FOREGROUND[dark]
            text = f"{percent:.0f}"
            axes.text(column, row, text, ha="center", va="center", fontsize=8, color=color)
    axes.set(
        xticks=range(len(names)),
        yticks=range(len(names)),
        yticklabels=[f"{name} ({int(n)})" for name, n in zip(names, counts.sum(1), strict=True)],
    )
    axes.set_xticklabels(names, rotation=45, ha="right")
    style_axes(axes, dark)
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(labelsize=9)
    figure.tight_layout()
    return to_png(figure, transparent=True)
