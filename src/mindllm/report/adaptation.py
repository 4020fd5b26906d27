"""Table and figure of an adaptation curve, for the terminal and as files."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table as ScreenTable

from mindllm.evaluation.adaptation_curve import (
    ANATOMY,
    LABELLED,
    RIDGE,
    SCRATCH,
    UNLABELLED,
    AdaptationRow,
)
from mindllm.evaluation.conditions import ALL_SUBJECTS, Kind
from mindllm.plotting.style import FOREGROUND, new_figure, style_axes, to_png
from mindllm.report.figures import COLORS
from mindllm.report.render import table_lines
from mindllm.report.tables import Cell, Table, TableRow, to_head
from mindllm.utils.files import atomic_write

TITLE = "Adaptation to a left-out subject"
CAPTION = (
    "Percent of trials, mean of the subjects' means; 95 % bootstrap interval over answers and "
    "subjects. Gain: top 1 minus that of anatomy only, paired."
)
LINES: dict[str, Kind] = {LABELLED: "fmri", RIDGE: "blind", SCRATCH: "baseline"}


def adaptation_cells(rows: Sequence[AdaptationRow]) -> list[list[str]]:
    """Return the tiers of all subjects: tier, labels, top 1, 2-way and gain, as texts."""
    return [
        [
            row.tier,
            str(row.n_labels),
            interval(row.top1, row.top1_ci_low, row.top1_ci_high),
            interval(row.two_way, row.two_way_ci_low, row.two_way_ci_high),
            interval(row.gain, row.gain_ci_low, row.gain_ci_high, "+"),
        ]
        for row in rows
        if row.subject == ALL_SUBJECTS
    ]


def interval(value: float, low: float, high: float, sign: str = "") -> str:
    """Return a value in percent with its interval."""
    value, low, high = 100 * value, 100 * low, 100 * high
    return f"{value:{sign}.1f} ({low:{sign}.1f} – {high:{sign}.1f})"


HEAD = ("Tier", "Labels", "Top 1", "2-way", "Gain")


def adaptation_lines(rows: Sequence[AdaptationRow]) -> list[str]:
    """Return the Markdown of the table and the figure."""
    cells = [TableRow([Cell(text) for text in texts]) for texts in adaptation_cells(rows)]
    table = Table(to_head(*HEAD), [cells], "")
    subjects = {row.subject for row in rows} - {ALL_SUBJECTS}
    about = f"{len(subjects)} left-out subjects; each in [adaptation.tsv](adaptation.tsv)."
    figure = "![Adaptation curve](adaptation.png)"
    return [f"## {TITLE}", "", about, "", *table_lines(table), CAPTION, "", figure, ""]


def adaptation_table(rows: Sequence[AdaptationRow]) -> ScreenTable:
    """Return the tiers of all subjects, for the terminal.

    Parameters
    ----------
    rows : sequence of AdaptationRow

    Returns
    -------
    rich.table.Table
    """
    screen = ScreenTable(*HEAD, title=TITLE, title_justify="left", box=SIMPLE_HEAD)
    screen.caption, screen.caption_justify = CAPTION, "left"
    for texts in adaptation_cells(rows):
        screen.add_row(*map(escape, texts))
    return screen


def write_adaptation(rows: Sequence[AdaptationRow], directory: Path) -> None:
    """Write adaptation.tsv and adaptation.png.

    Parameters
    ----------
    rows : sequence of AdaptationRow
    directory : Path
    """
    with atomic_write(directory / "adaptation.tsv") as path:
        pd.DataFrame([asdict(row) for row in rows]).to_csv(path, sep="\t", index=False)
    with atomic_write(directory / "adaptation.png") as path:
        path.write_bytes(adaptation_figure(rows))


def adaptation_figure(rows: Sequence[AdaptationRow]) -> bytes:
    """Draw top 1 by the number of labelled trials; tiers without labels at 0."""
    figure = new_figure(5.2, 3.2)
    axes = figure.subplots()
    of_all = [row for row in rows if row.subject == ALL_SUBJECTS]
    for tier, color in LINES.items():
        tiers = (tier, UNLABELLED) if tier == LABELLED else (tier,)
        part = sorted((r for r in of_all if r.tier in tiers), key=lambda row: row.n_labels)
        counts = [row.n_labels for row in part]
        axes.plot(counts, [100 * r.top1 for r in part], "o-", color=COLORS[color], label=tier)
        low, high = ([100 * getattr(r, f"top1_ci_{end}") for r in part] for end in ("low", "high"))
        axes.fill_between(counts, low, high, color=COLORS[color], alpha=0.12, lw=0)
    (anatomy,) = (row for row in of_all if row.tier == ANATOMY)
    axes.axhline(100 * anatomy.top1, color=FOREGROUND[False], lw=1, ls=(0, (2, 3)), label=ANATOMY)
    axes.set(xlabel="labelled trials of the subject", ylabel="top 1 (%)", ylim=(0, None))
    style_axes(axes, False)
    axes.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    return to_png(figure)
