"""Tables and figure of a cross-validation, for the terminal and as files."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import pandas as pd
from rich.markup import escape
from rich.table import Table as ScreenTable

from mindllm.evaluation.adaptation_curve import AdaptationRow
from mindllm.evaluation.conditions import ALL_SUBJECTS, CONDITIONS
from mindllm.evaluation.cross_validation import ProtocolScores
from mindllm.evaluation.results import MetricRow
from mindllm.metrics.calibration import Estimate
from mindllm.metrics.registry import METRICS, TEXT_SIMILARITY_METRICS
from mindllm.plotting.style import FOREGROUND, new_figure, style_axes, to_png
from mindllm.report.adaptation import adaptation_lines, write_adaptation
from mindllm.report.figures import COLORS, draw_bins
from mindllm.report.render import table_lines
from mindllm.report.tables import Cell, Table, TableRow, score_cell, to_head
from mindllm.report.write import screen_table
from mindllm.utils.files import atomic_write, write_json
from mindllm.utils.folders import replace_directory

LABELS = METRICS | TEXT_SIMILARITY_METRICS
PROTOCOL_METRICS = tuple(
    f"{prefix}_{name}"
    for prefix in ("identification_evidence", "text_similarity")
    for name in ("top1", "top5", "10way", "2way")
)
CAPTION = (
    "Percent of trials, mean of the subjects' means; 95 % bootstrap interval over answers and "
    "subjects. Difference: fMRI minus the condition, 2-way, paired. There are no p-values, because "
    "every subject is both tested and fitted to, so that tests of subjects are not independent."
)


def scores_table(scores: ProtocolScores) -> Table:
    """Return conditions by metrics, with the difference of fMRI; its caption is the calibration."""
    by_key = {
        (row.condition, row.metric): row for row in scores.rows if row.subject == ALL_SUBJECTS
    }
    metrics, rows = measured_metrics(scores), []
    for name, condition in CONDITIONS.items():
        measured = [by_key.get((name, metric)) for metric in metrics]
        if all(row is None for row in measured):
            continue
        label = "fMRI, encoding model" if name == "fmri" else condition.label
        cells = [score_cell(row).text_and_note for row in measured]
        texts = [label, *cells, difference_text(measured[-1])]
        rows.append(TableRow([Cell(text) for text in texts], condition.kind))
    head = to_head("Condition", *(LABELS[m].label for m in metrics), "fMRI minus it")
    return Table(head, [rows], calibration_text(scores))


def measured_metrics(scores: ProtocolScores) -> list[str]:
    """Return the metrics that mean something among so many candidates, 2-way last."""
    measured = {row.metric for row in scores.rows}
    return [m for m in PROTOCOL_METRICS if m in measured and LABELS[m].number < scores.n_candidates]


def difference_text(row: MetricRow | None) -> str:
    """Return fMRI minus a condition in points, with its interval."""
    if row is None or row.difference is None:
        return ""
    ends = (row.difference_ci_low or 0.0, row.difference_ci_high or 0.0)
    return f"{100 * row.difference:+.1f} ({100 * ends[0]:+.1f} to {100 * ends[1]:+.1f})"


def calibration_text(scores: ProtocolScores) -> str:
    """Return the calibration of the probabilities in words."""
    c = scores.calibration
    if c is None:
        return (
            "Answers by their similarity with the text that is chosen about a trial, among the "
            "answers of training and texts that the language model writes like them."
        )
    parts = [
        f"expected calibration error {estimate_text(c.expected_calibration_error)}",
        f"Brier score {estimate_text(c.brier_score)}",
        f"negative log-likelihood {estimate_text(c.negative_log_likelihood)} nats",
    ]
    if c.probability.auroc is not None:
        parts.insert(1, f"AUROC of right against wrong {estimate_text(c.probability.auroc)}")
    return f"Probabilities by evidence: {', '.join(parts)}."


def estimate_text(estimate: Estimate) -> str:
    """Return a value with its interval."""
    return f"{estimate.value:.3f} ({estimate.ci_low:.3f} – {estimate.ci_high:.3f})"


def title(scores: ProtocolScores) -> str:
    """Return what a table is about."""
    return (
        f"{scores.name}: {scores.n_subjects} left-out subject{'s' * (scores.n_subjects > 1)}; "
        f"{scores.n_trials} trials, each identified among {scores.n_candidates} answers"
    )


def cross_validation_table(scores: ProtocolScores) -> ScreenTable:
    """Return the scores of one protocol, for the terminal.

    Parameters
    ----------
    scores : ProtocolScores

    Returns
    -------
    rich.table.Table
    """
    table = screen_table(scores_table(scores))
    table.title, table.title_justify = escape(title(scores)), "left"
    return table


def write_cross_validation(
    results: Mapping[str, ProtocolScores],
    directory: Path,
    adaptation: Sequence[AdaptationRow] = (),
) -> None:
    """Write cross_validation.json, cross_validation.md, reliability.png; texts.tsv of free text.

    Parameters
    ----------
    results : mapping of str to ProtocolScores
    adaptation : sequence of AdaptationRow
        Of an adaptation curve, which is written to adaptation.tsv and adaptation.png.
    directory : Path
        Made if it does not exist; earlier tables in it are replaced as a whole.
    """
    with replace_directory(directory) as folder:
        write_files(results, folder, adaptation)


def write_files(
    results: Mapping[str, ProtocolScores], directory: Path, adaptation: Sequence[AdaptationRow]
) -> None:
    """Write the files of `write_cross_validation`."""
    lines = ["# Cross-validation of evidence", "", CAPTION, ""]
    for scores in results.values():
        lines += [f"## {scores.name.capitalize()}", "", f"{title(scores)}.", ""]
        table = scores_table(scores)
        lines += [*table_lines(replace(table, caption="")), table.caption, ""]
        if scores.texts:
            lines += ["The texts are in [texts.tsv](texts.tsv).", ""]
    lines += ["![Reliability](reliability.png)", ""]
    if adaptation:
        lines += adaptation_lines(adaptation)
        write_adaptation(adaptation, directory)
    with atomic_write(directory / "cross_validation.md") as path:
        path.write_text("\n".join(lines), encoding="utf-8")
    with atomic_write(directory / "reliability.png") as path:
        path.write_bytes(reliability_figure(results))
    texts = [asdict(text) for scores in results.values() for text in scores.texts]
    if texts:
        with atomic_write(directory / "texts.tsv") as path:
            pd.DataFrame(texts).to_csv(path, sep="\t", index=False)
    content = {name: asdict(replace(scores, texts=())) for name, scores in results.items()}
    write_json(directory / "cross_validation.json", content)


def reliability_figure(results: Mapping[str, ProtocolScores]) -> bytes:
    """Draw the fraction that is correct against the probability, and against coverage."""
    figure = new_figure(8, 3.1)
    left, right = figure.subplots(1, 2, sharey=True)
    left.plot([0, 100], [0, 100], color=FOREGROUND[False], lw=1, ls=(0, (2, 3)), alpha=0.7)
    curves = {name: s.calibration for name, s in results.items() if s.calibration}
    for (name, curve), color in zip(curves.items(), (COLORS["fmri"], COLORS["blind"]), strict=True):
        draw_bins(left, curve.probability.bins, color, name, 100)
        coverage = [100 * value for value in curve.coverage]
        right.plot(coverage, [100 * value for value in curve.accuracy], color=color, lw=1.6)
    left.set(xlabel="probability of the answer with the most evidence (%)", xlim=(-4, 104))
    left.set(ylabel="correct (%)", ylim=(-4, 104))
    right.set(xlabel="trials that are answered, the surest first (%)", xlim=(0, 104))
    for axes in (left, right):
        style_axes(axes, False)
        axes.grid(color=FOREGROUND[False], alpha=0.12)
    left.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    return to_png(figure)
