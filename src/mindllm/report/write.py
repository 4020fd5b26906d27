"""Write the report about a result, and show its main table at the terminal."""

from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.markup import escape
from rich.table import Table as ScreenTable

from mindllm.data.store import Store
from mindllm.evaluation.results import EvaluationResult
from mindllm.model.modeling import MindLLM
from mindllm.report.brain_figures import brain_tables, draw_brain_figures, map_attention
from mindllm.report.contribution_maps import (
    FIGURE,
    contribution_table,
    draw_contributions,
    map_contributions,
)
from mindllm.report.figure_tables import result_tables, write_tables
from mindllm.report.figures import draw_result_figures
from mindllm.report.render import FIGURES, to_html, to_markdown
from mindllm.report.score_sections import scores_section
from mindllm.report.sections import build_sections
from mindllm.report.summary import summarize_findings
from mindllm.report.tables import Cell, Table
from mindllm.utils.files import atomic_write
from mindllm.utils.folders import replace_directory


def write_report(
    result: EvaluationResult,
    out: str | Path,
    model: MindLLM | None = None,
    store: Store | None = None,
) -> Path:
    """Write a report into a folder.

    Besides the files of `EvaluationResult.save`: report.html, report.md and figures/, in which
    every picture has its numbers beside it as tab-separated values.

    Parameters
    ----------
    result : EvaluationResult
        The result.
    out : str or Path
        The folder; it is made if needed, and an earlier report in it is replaced as a whole.
    model, store : MindLLM, Store, optional
        The evaluated ones, for the brain figures and the table of attention by parcel. Without
        them these are left out.

    Returns
    -------
    Path
        report.html.
    """
    out = Path(out)
    with replace_directory(out) as folder:
        write_files(result, folder, model, store)
    return out / "report.html"


def write_files(
    result: EvaluationResult, out: Path, model: MindLLM | None, store: Store | None
) -> None:
    """Write the files of a result, the figures, report.md and report.html; see `write_report`."""
    result.write_files(out)
    subjects = [info.subject for info in result.run_info.subjects]
    maps, contributions = None, []
    if model is not None and store is not None:
        maps = map_attention(model, store, subjects)
        contributions = map_contributions(model, store, result.predictions)
    light, dark = (
        draw_result_figures(result, is_dark)
        | (draw_brain_figures(maps, is_dark) if maps else {})
        | ({FIGURE: draw_contributions(contributions, is_dark)} if contributions else {})
        for is_dark in (False, True)
    )
    for name, png in light.items():
        with atomic_write(out / FIGURES / f"{name}.png") as path:
            path.write_bytes(png)
    tables = result_tables(result) | (brain_tables(maps) if maps else {})
    if contributions:
        tables[FIGURE] = contribution_table(contributions)
    write_tables(tables, out / FIGURES)
    summary, sections = summarize_findings(result), build_sections(result, maps, contributions)
    with atomic_write(out / "report.md") as path:
        path.write_text(to_markdown(result, summary, sections, light, tables), encoding="utf-8")
    with atomic_write(out / "report.html") as path:
        path.write_text(to_html(result, summary, sections, light, dark, tables), encoding="utf-8")


def to_table(result: EvaluationResult) -> Group:
    """Return the summary above the scores of all subjects, for the terminal.

    Parameters
    ----------
    result : EvaluationResult
        Its run_info names the subjects.

    Returns
    -------
    rich.console.Group
        To be printed with rich; text of the data is escaped.
    """
    table = screen_table(scores_section(result).tables[0])
    sentences = [f"{escape(sentence)}\n" for sentence in summarize_findings(result)]
    return Group(*sentences, table)


def screen_table(table: Table) -> ScreenTable:
    """Return a table of a report for the terminal, the row of fMRI in bold."""
    screen = ScreenTable(caption=escape(table.caption), caption_justify="left", box=SIMPLE_HEAD)
    for cell in table.head:
        screen.add_column(escape(cell.text))
    for row in (row for group in table.groups for row in group):
        label, *cells = row.cells
        style = "bold" if row.kind == "fmri" else None
        screen.add_row(escape(label.text), *map(cell_markup, cells), style=style)
    return screen


def cell_markup(cell: Cell) -> str:
    """Return rich markup of a cell, its note below it."""
    text = escape(cell.text)
    return f"{text}\n[dim]{escape(cell.note)}[/dim]" if cell.note else text
