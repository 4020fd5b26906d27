"""Table and figure of an ablation of keys, for the terminal and as files."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import pandas as pd
from rich.markup import escape
from rich.table import Table as ScreenTable

from mindllm.evaluation.conditions import ALL_SUBJECTS, CONDITIONS
from mindllm.evaluation.key_ablation import BOTH, KeyAblationRow, KeyVariant
from mindllm.plotting.style import FOREGROUND, new_figure, style_axes, to_png
from mindllm.report.figures import COLORS
from mindllm.report.render import table_lines
from mindllm.report.tables import Cell, Table, TableRow, to_head
from mindllm.report.write import screen_table
from mindllm.utils.files import atomic_write
from mindllm.utils.folders import replace_directory

TITLE = "Ablation of the keys"
CAPTION = (
    "Percent of trials of subjects that were left out of training, mean of the subjects' means; "
    "95 % bootstrap interval over answers and subjects. Minus both: paired, under the same "
    "condition. fMRI, ridge and permuted pairs are read from the same trained query outputs; "
    "ridge does not align the subject. There are no p-values, because every subject is both "
    "tested and trained on."
)
HEAD = ("Keys", "Condition", "Top 1", "2-way", "Top 1 minus both", "2-way minus both")
LABELS = {"trained_on_permuted_pairs": "fitted to permuted pairs"}


def key_table(rows: Sequence[KeyAblationRow], variants: Sequence[KeyVariant]) -> Table:
    """Return variants and conditions by scores, of all subjects."""
    meanings = {variant.name: variant.meaning for variant in variants}
    lines = []
    for row in rows:
        if row.subject != ALL_SUBJECTS:
            continue
        condition = CONDITIONS[row.condition]
        texts = [
            f"{row.variant}: {meanings[row.variant]}" if row.condition == "fmri" else row.variant,
            LABELS.get(row.condition, condition.label),
            interval(row.top1, row.top1_ci_low, row.top1_ci_high),
            interval(row.two_way, row.two_way_ci_low, row.two_way_ci_high),
        ]
        if row.variant == BOTH:
            texts += ["", ""]
        else:
            texts += [
                interval(
                    row.top1_difference,
                    row.top1_difference_ci_low,
                    row.top1_difference_ci_high,
                    "+",
                ),
                interval(
                    row.two_way_difference,
                    row.two_way_difference_ci_low,
                    row.two_way_difference_ci_high,
                    "+",
                ),
            ]
        lines.append(TableRow([Cell(text) for text in texts], condition.kind))
    return Table(to_head(*HEAD), [lines], "")


def interval(value: float, low: float, high: float, sign: str = "") -> str:
    """Return a value in percent with its interval."""
    value, low, high = 100 * value, 100 * low, 100 * high
    return f"{value:{sign}.1f} ({low:{sign}.1f} to {high:{sign}.1f})"


def conclusion(rows: Sequence[KeyAblationRow]) -> str:
    """Say which variants `both` is above, below, or not told apart from, by 2-way of fMRI."""
    groups: dict[str, list[str]] = {"above": [], "below": [], "not told apart from": []}
    for row in rows:
        if row.subject != ALL_SUBJECTS or row.condition != "fmri" or row.variant == BOTH:
            continue
        if row.two_way_difference_ci_high < 0:
            groups["above"].append(row.variant)
        elif row.two_way_difference_ci_low > 0:
            groups["below"].append(row.variant)
        else:
            groups["not told apart from"].append(row.variant)
    parts = [f"{words} {', '.join(names)}" for words, names in groups.items() if names]
    return f"By the interval of the 2-way difference, `{BOTH}` is {'; '.join(parts)}."


def key_ablation_table(
    rows: Sequence[KeyAblationRow], variants: Sequence[KeyVariant]
) -> ScreenTable:
    """Return the table for the terminal.

    Parameters
    ----------
    rows : sequence of KeyAblationRow
    variants : sequence of KeyVariant

    Returns
    -------
    rich.table.Table
    """
    table = screen_table(key_table(rows, variants))
    table.title, table.title_justify = escape(TITLE), "left"
    return table


def write_key_ablation(
    rows: Sequence[KeyAblationRow], variants: Sequence[KeyVariant], directory: Path
) -> None:
    """Write key_ablation.md, key_ablation.tsv and key_ablation.png.

    Parameters
    ----------
    rows : sequence of KeyAblationRow
    variants : sequence of KeyVariant
    directory : Path
        Earlier files in it are replaced as a whole.
    """
    subjects = {row.subject for row in rows} - {ALL_SUBJECTS}
    about = (
        f"{len(subjects)} left-out subject{'s' * (len(subjects) > 1)}, "
        f"{rows[0].n_seeds} training{'s' * (rows[0].n_seeds > 1)} of each; each subject in "
        "[key_ablation.tsv](key_ablation.tsv)."
    )
    lines = [f"# {TITLE}", "", about, "", conclusion(rows), ""]
    lines += [*table_lines(key_table(rows, variants)), "", CAPTION, ""]
    lines += ["![Ablation of the keys](key_ablation.png)", ""]
    with replace_directory(directory) as folder:
        with atomic_write(folder / "key_ablation.md") as path:
            path.write_text("\n".join(lines), "utf-8")
        with atomic_write(folder / "key_ablation.tsv") as path:
            pd.DataFrame([asdict(row) for row in rows]).to_csv(path, sep="\t", index=False)
        with atomic_write(folder / "key_ablation.png") as path:
            path.write_bytes(key_ablation_figure(rows))


def key_ablation_figure(rows: Sequence[KeyAblationRow]) -> bytes:
    """Draw top 1 and 2-way of every variant and condition, with intervals over all subjects."""
    of_all = [row for row in rows if row.subject == ALL_SUBJECTS]
    names = list(dict.fromkeys(row.variant for row in of_all))
    figure = new_figure(8, 1.2 + 0.5 * len(names))
    for axes, metric, label in zip(
        figure.subplots(1, 2, sharey=True),
        ("top1", "two_way"),
        ("top 1 (%)", "2-way (%)"),
        strict=True,
    ):
        conditions = list(dict.fromkeys(row.condition for row in of_all))
        for row in of_all:
            number = conditions.index(row.condition)
            y = names.index(row.variant) + 0.17 * (number - 1.5)
            color = COLORS[CONDITIONS[row.condition].kind]
            ends = [100 * getattr(row, f"{metric}_ci_{end}") for end in ("low", "high")]
            axes.plot(ends, [y, y], color=color, lw=3, alpha=0.5, solid_capstyle="round")
            first = row.variant == names[0]
            name = LABELS.get(row.condition, CONDITIONS[row.condition].label) if first else None
            marker = "o" if number != conditions.index("trained_on_permuted_pairs") else "s"
            axes.plot(100 * getattr(row, metric), y, marker, color=color, ms=5, label=name)
        axes.set_yticks(range(len(names)), names)
        axes.set_xlabel(label)
        style_axes(axes, False)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.grid(axis="x", alpha=0.2)
    lines, labels = axes.get_legend_handles_labels()
    options = {"frameon": False, "fontsize": 8, "labelcolor": FOREGROUND[False]}
    figure.legend(lines, labels, loc="upper center", ncols=len(labels), **options)
    figure.tight_layout(rect=(0, 0, 1, 0.94))
    return to_png(figure)
