"""A report as Markdown, and as one HTML page that needs nothing from the network."""

import html
import re
from collections.abc import Collection, Mapping, Sequence

from mindllm.evaluation.results import EvaluationResult
from mindllm.report.methods_text import UNKNOWN
from mindllm.report.pages import load_template, to_data_uri
from mindllm.report.tables import Section, Table

FIGURES = "figures"  # folder beside report.md
MARKUP = re.compile(r"[\\`*\[\]|]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")
HTML = re.compile(r"[<&](?=[A-Za-z/!?#])")


def to_markdown(
    result: EvaluationResult,
    summary: Sequence[str],
    sections: Sequence[Section],
    figures: Mapping[str, bytes],
    tables: Collection[str] = (),
) -> str:
    """Render a report as Markdown.

    Parameters
    ----------
    result : EvaluationResult
        Names the model and the store.
    summary : sequence of str
        Sentences above the sections.
    sections : sequence of Section
        The sections.
    figures : mapping of str to bytes
        Drawn figures by name, which lie in the folder `figures` beside the file.
    tables : collection of str
        Names of the figures whose numbers lie there too, as name.tsv.

    Returns
    -------
    str
        Text that Markdown would read as markup is escaped.
    """
    run = result.run_info
    model, store = run.model.name or UNKNOWN, run.data.store or UNKNOWN
    lines = [f"# Evaluation of {escape_markdown(model)} on {escape_markdown(store)}", ""]
    lines += [f"{escape_markdown(sentence)}\n" for sentence in summary]
    for section in sections:
        lines += [f"## {section.title}", ""]
        lines += [f"{escape_markdown(text)}\n" for text in section.paragraphs]
        for figure in section.figures:
            if figure.name in figures:
                alt, caption = escape_markdown(figure.alt), escape_markdown(figure.caption)
                if figure.name in tables:
                    caption += f" [Numbers]({FIGURES}/{figure.name}.tsv)"
                lines += [f"![{alt}]({FIGURES}/{figure.name}.png)", "", caption, ""]
        for table in section.tables:
            lines += table_lines(table)
    return "\n".join(lines)


def table_lines(table: Table) -> list[str]:
    """Return the lines of a Markdown table, its caption above it."""
    head = [cell.text for cell in table.head]
    rows = [[c.text_and_note for c in row.cells] for group in table.groups for row in group]
    lines = [escape_markdown(table.caption), ""] if table.caption else []
    lines += [table_line(head), "|---" * len(head) + "|", *map(table_line, rows), ""]
    return lines


def table_line(texts: Sequence[str]) -> str:
    """Return the line of one row of a Markdown table."""
    return f"| {' | '.join(map(escape_markdown, texts))} |"


def escape_markdown(text: str) -> str:
    """Return text on one line, without anything that Markdown reads as markup.

    Parameters
    ----------
    text : str
        Any text.

    Returns
    -------
    str
        Fit for a paragraph or a cell of a table.

    Examples
    --------
    >>> print(escape_markdown("a_b | *c*\\n<i> < 1"))
    a_b \\| \\*c\\* &lt;i> < 1
    """
    escaped = MARKUP.sub(r"\\\g<0>", HTML.sub(lambda match: html.escape(match[0]), text))
    return " ".join(escaped.split())


def to_html(
    result: EvaluationResult,
    summary: Sequence[str],
    sections: Sequence[Section],
    figures: Mapping[str, bytes],
    dark_figures: Mapping[str, bytes],
    tables: Collection[str] = (),
) -> str:
    """Render a report as one HTML page.

    Parameters
    ----------
    result : EvaluationResult
        Names the model, the store and the subjects.
    summary : sequence of str
        Sentences above the sections.
    sections : sequence of Section
        The sections.
    figures, dark_figures : mapping of str to bytes
        Drawn figures by name, for light and dark pages.
    tables : collection of str
        Names of the figures whose numbers lie beside the page, as figures/name.tsv.

    Returns
    -------
    str
        Styles and figures are inside the page; all text is escaped.
    """
    return load_template("evaluation.html.jinja").render(
        run=result.run_info,
        model=result.run_info.model.name or UNKNOWN,
        store=result.run_info.data.store or UNKNOWN,
        summary=summary,
        sections=sections,
        tables={name: f"{FIGURES}/{name}.tsv" for name in tables},
        figures={name: to_data_uri(png) for name, png in figures.items()},
        dark_figures={name: to_data_uri(png) for name, png in dark_figures.items()},
    )
