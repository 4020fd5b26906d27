"""What a section of a report is made of: cells, tables and figures; and the cells of scores."""

from collections.abc import Sequence
from dataclasses import dataclass

from mindllm.evaluation.conditions import ALL_SUBJECTS, CONDITIONS, Kind
from mindllm.evaluation.results import EvaluationResult, MetricRow
from mindllm.metrics.registry import METRICS
from mindllm.report.formatting import UNDEFINED, format_interval, format_p, format_percent
from mindllm.report.summary import main_metric

LIKELIHOOD_METRICS = (
    "exact_match",
    "identification_top1",
    "identification_top5",
    "identification_2way",
    "identification_llr_top1",
)
EVIDENCE_METRICS = (
    "identification_evidence_top1",
    "identification_evidence_top5",
    "identification_evidence_2way",
    "identification_top1",
    "identification_2way",
    "exact_match",
)


@dataclass(frozen=True, slots=True)
class Bar:
    """Bar below a score; all in [0, 1]. chance_level is None where there is none."""

    value: float
    ci_low: float
    ci_high: float
    chance_level: float | None


@dataclass(frozen=True, slots=True)
class Cell:
    """Text of a cell, with a small note and a bar below it."""

    text: str
    note: str = ""
    bar: Bar | None = None

    @property
    def text_and_note(self) -> str:
        """Both in one line."""
        return f"{self.text} ({self.note})" if self.note else self.text


@dataclass(frozen=True, slots=True)
class TableRow:
    """Cells of a row. kind: of its condition, for the color; None: no condition."""

    cells: Sequence[Cell]
    kind: Kind | None = None


@dataclass(frozen=True, slots=True)
class Table:
    """Groups of rows under a head."""

    head: Sequence[Cell]
    groups: Sequence[Sequence[TableRow]]
    caption: str = ""


@dataclass(frozen=True, slots=True)
class FigureReference:
    """A figure by its name (without suffix), with its caption; shown if it was drawn.

    alt: what is to be seen in it, with its main numbers, for readers who do not see it.
    """

    name: str
    caption: str
    alt: str


@dataclass(frozen=True, slots=True)
class Section:
    """A part of a report: paragraphs, figures and tables. collapsed: shown on demand."""

    title: str
    paragraphs: Sequence[str] = ()
    tables: Sequence[Table] = ()
    figures: Sequence[FigureReference] = ()
    collapsed: bool = False


def main_metrics(result: EvaluationResult) -> tuple[str, ...]:
    """Return the metrics of the main tables: by evidence first, where it was measured."""
    return EVIDENCE_METRICS if result.evidence else LIKELIHOOD_METRICS


def to_head(*columns: str | tuple[str, str]) -> list[Cell]:
    """Return the head of a table from texts, or texts with their notes."""
    return [Cell(column) if isinstance(column, str) else Cell(*column) for column in columns]


def to_rows(rows: Sequence[Sequence[str]]) -> list[TableRow]:
    """Return texts as rows without a condition."""
    return [TableRow([Cell(text) for text in row]) for row in rows]


def score_cell(row: MetricRow | None, bar: bool = False) -> Cell:
    """Return a score in percent with its interval, or a dash where it is not defined.

    Parameters
    ----------
    row : MetricRow or None
        The score in [0, 1]; None: not measured.
    bar : bool
        Whether a bar is drawn below it.

    Returns
    -------
    Cell
        With the interval as its note.
    """
    if row is None or row.value is None:
        return Cell(UNDEFINED)
    ends = None
    if bar and row.ci_low is not None and row.ci_high is not None:
        ends = Bar(row.value, row.ci_low, row.ci_high, row.chance_level)
    return Cell(format_percent(row.value), format_interval(row), ends)


def condition_cell(condition: str) -> Cell:
    """Return the label of a condition with its meaning."""
    return Cell(CONDITIONS[condition].label, CONDITIONS[condition].meaning)


def p_value_cell(row: MetricRow | None, n_permutations: int) -> Cell:
    """Return the p-value of fMRI above a condition; empty for fMRI itself."""
    if row is None or row.p_value is None or row.condition == "fmri":
        return Cell("")
    return Cell(format_p(row.p_value, n_permutations))


def measured_conditions(result: EvaluationResult, metric: str, subject: str) -> list[str]:
    """Return the conditions with a row of a metric, in the order of CONDITIONS.

    Parameters
    ----------
    result : EvaluationResult
        The result.
    metric, subject : str
        As in `EvaluationResult.row`.

    Returns
    -------
    list of str
        Keys of CONDITIONS.
    """
    return [name for name in CONDITIONS if result.row(metric, name, subject) is not None]


def condition_table(result: EvaluationResult, caption: str, subject: str = ALL_SUBJECTS) -> Table:
    """Return conditions by main metrics, with the p-value of fMRI above each condition.

    Parameters
    ----------
    result : EvaluationResult
        The result.
    caption : str
        Above the table.
    subject : str
        A subject label, or ALL_SUBJECTS.

    Returns
    -------
    Table
        Its first row is that of fMRI.
    """
    metrics, main = main_metrics(result), main_metric(result)
    head = to_head(
        "Condition",
        *((METRICS[m].label, METRICS[m].meaning) for m in metrics),
        ("fMRI above it, top 1", "one-sided p, in these subjects"),
    )
    rows = []
    for name in measured_conditions(result, main, subject):
        scores = [score_cell(result.row(m, name, subject), bar=True) for m in metrics]
        main_row = result.row(main, name, subject)
        p = p_value_cell(main_row, result.run_info.n_permutations)
        rows.append(TableRow([condition_cell(name), *scores, p], CONDITIONS[name].kind))
    return Table(head, [rows], caption)
