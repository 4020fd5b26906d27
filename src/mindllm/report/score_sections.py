"""Sections of scores: every condition, single subjects, text scores and protocols."""

from collections.abc import Sequence

from mindllm.evaluation.conditions import ALL_SUBJECTS, CONDITIONS
from mindllm.evaluation.results import EvaluationResult, MetricRow, ProtocolResult
from mindllm.evaluation.text_scores import TEXT_METRICS, percent_factor
from mindllm.metrics.registry import METRICS
from mindllm.report.alt_texts import describe_intervals
from mindllm.report.figure_tables import interval_table
from mindllm.report.formatting import UNDEFINED, format_interval, format_percent
from mindllm.report.summary import get_row
from mindllm.report.tables import (
    Cell,
    FigureReference,
    Section,
    Table,
    TableRow,
    condition_cell,
    condition_table,
    main_metrics,
    measured_conditions,
    score_cell,
    to_head,
)
from mindllm.utils.ranges import count_of

PROTOCOL_CONDITIONS = ("fmri", "shuffled_trials", "null_tokens")
PROTOCOL_TEXT_METRICS = ("BLEU-4", "CIDEr")


def scores_section(result: EvaluationResult) -> Section:
    """Return the scores of all subjects under every condition."""
    subjects = result.run_info.subjects
    if len(subjects) > 1:
        mean = f"the mean of {len(subjects)} subjects' means"
        interval = "bootstrap over subjects and answers; too narrow with few subjects"
    else:
        mean, interval = subjects[0].subject, "bootstrap over answers"
    top1 = format_percent(get_row(result, "identification_top1").chance_level)
    top5 = format_percent(get_row(result, "identification_top5").chance_level)
    caption = (
        f"Percent of trials, {mean}; 95 % interval ({interval}). Chance among "
        f"{len(result.run_info.candidates)} answers: {top1} (top 1), {top5} (top 5), 50 % (2-way)."
    )
    figure = FigureReference(
        "intervals-all",
        "Top 1 identification from fMRI and under every other condition: value and 95 % interval.",
        describe_intervals(interval_table(result)),
    )
    return Section("Scores and controls", (), [condition_table(result, caption)], [figure])


def subjects_section(result: EvaluationResult) -> Section | None:
    """Return the same scores of single subjects; None for one subject."""
    subjects = result.run_info.subjects
    if len(subjects) == 1:
        return None
    tables = [
        condition_table(result, f"{info.subject}: {info.n_trials} trials.", info.subject)
        for info in subjects
    ]
    return Section("Single subjects", (), tables, collapsed=True)


def text_scores_section(result: EvaluationResult) -> Section:
    """Return BLEU, METEOR, ROUGE-L and CIDEr of every condition."""
    if not result.text_scores:
        return Section("Text scores", [f"Not measured: {result.run_info.text_scores_skipped}"])
    rows = []
    for name in measured_conditions(result, "BLEU-1", ALL_SUBJECTS):
        scores = [text_score_cell(get_row(result, metric, name)) for metric in TEXT_METRICS]
        rows.append(TableRow([condition_cell(name), *scores], CONDITIONS[name].kind))
    caption = (
        "BLEU, METEOR, ROUGE-L and CIDEr (100 times CIDEr-D) of the generated text as "
        "pycocoevalcap computes them, against all references; percent, with 95 % interval. "
        "≈: fMRI is not above this condition (the interval of the paired difference reaches 0)."
    )
    table = Table(to_head("Condition", *TEXT_METRICS), [rows], caption)
    return Section("Text scores", (), [table])


def text_score_cell(row: MetricRow) -> Cell:
    """Return a text score as papers print it, marked where fMRI is not above the condition."""
    if row.value is None:
        return Cell(UNDEFINED)
    factor = percent_factor(row.metric)
    is_compared = row.condition != "fmri" and CONDITIONS[row.condition].kind != "reference"
    is_tied = is_compared and (row.difference_ci_low or 0) <= 0
    mark = " ≈" if is_tied else ""
    return Cell(f"{factor * row.value:.2f}{mark}", format_interval(row, factor))


def protocols_section(result: EvaluationResult) -> Section:
    """Return fMRI and its main controls under every protocol."""
    metrics = main_metrics(result)
    labels = [METRICS[metric].label for metric in metrics]
    head = to_head("Protocol", "Condition", *labels, *PROTOCOL_TEXT_METRICS)
    paragraph = (
        "Protocols are not mixed: each is measured among its own candidates. Protocols that this "
        "data does not allow (repetitions, named stimulus sets, subjects or stimuli both seen in "
        "training and new) have no row."
    )
    groups = [protocol_rows(protocol, metrics) for protocol in result.protocols]
    table = Table(head, groups, "All subjects together; 95 % interval.")
    return Section("Protocols", [paragraph], [table])


def protocol_rows(protocol: ProtocolResult, metrics: Sequence[str]) -> list[TableRow]:
    """Return one row per condition of a protocol."""
    counts = (
        f"{count_of(protocol.n_subjects, 'subject')}, {count_of(protocol.n_trials, 'trial')}, "
        f"{protocol.n_stimuli} stimuli, {protocol.n_candidates} candidates"
    )
    scores = {(row.metric, row.condition): row for row in (*protocol.rows, *protocol.text_rows)}
    rows = []
    for name in PROTOCOL_CONDITIONS:
        cells = [
            Cell(protocol.name, counts if name == "fmri" else ""),
            Cell(CONDITIONS[name].label),
        ]
        cells += [score_cell(scores[metric, name]) for metric in metrics]
        for metric in PROTOCOL_TEXT_METRICS:
            row = scores.get((metric, name))
            value = None if row is None else row.value
            text = UNDEFINED if value is None else f"{percent_factor(metric) * value:.2f}"
            cells.append(Cell(text))
        rows.append(TableRow(cells, CONDITIONS[name].kind))
    return rows
