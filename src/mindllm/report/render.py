"""The report for the terminal, as Markdown, and as one HTML page that needs nothing from the network."""

import base64
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.markup import escape
from rich.table import Table as ScreenTable

from mindllm.report.sections import ReportBuilder
from mindllm.report.tables import Content

Predictions = Sequence[Mapping[str, Any]]


def as_table(content: Content, predictions: Predictions) -> Group:
    """The verdict above the scores of everybody beside their controls, for the terminal."""
    shown = ReportBuilder(content, predictions).scores().tables[0]
    screen = ScreenTable(caption=escape(shown.caption), caption_justify="left", box=SIMPLE_HEAD)
    for cell in shown.head:
        screen.add_column(escape(cell.text))
    for condition, cells in (row for group in shown.groups for row in group):
        texts = [
            escape(cells[0].text),
            *(
                f"{escape(c.text)}\n[dim]{escape(c.note)}[/dim]" if c.note else escape(c.text)
                for c in cells[1:]
            ),
        ]
        screen.add_row(*texts, style="bold" if condition == "fmri" else None)
    return Group(*[f"{escape(sentence)}\n" for sentence in content["verdict"]], screen)


def as_markdown(content: Content, predictions: Predictions, pictures: Mapping[str, bytes]) -> str:
    """The verdict and every section; pictures lie beside it in a folder."""
    meta = content["meta"]
    lines = [f"# Evaluation of {meta['model']['name']} on {meta['data']['store']}", ""]
    lines += [f"{sentence}\n" for sentence in content["verdict"]]
    for section in ReportBuilder(content, predictions, whose(pictures)).sections():
        lines += [f"## {section.title}", "", *[f"{words}\n" for words in section.words]]
        for kind, name, words in section.pictures:
            if f"{kind}|{name}|light" in pictures:
                lines += [f"![{cell(words)}](figures/{kind}-{name}.png)", ""]
        for table in section.tables:
            lines += [table.caption, ""] if table.caption else []
            lines += [
                "| " + " | ".join(cell(head.text) for head in table.head) + " |",
                "|---" * len(table.head) + "|",
            ]
            lines += [
                "| " + " | ".join(cell(c.both) for c in cells) + " |"
                for group in table.groups
                for _, cells in group
            ]
            lines.append("")
    return "\n".join(lines)


def cell(text: str) -> str:
    """Text in a Markdown table."""
    return " ".join(text.replace("|", "\\|").split())


def whose(pictures: Mapping[str, bytes]) -> list[str]:
    """The people, or `all`, who have pictures of their brains."""
    return list(
        dict.fromkeys(name.split("|")[1] for name in pictures if name.startswith("voxels|"))
    )


def as_html(content: Content, predictions: Predictions, pictures: Mapping[str, bytes]) -> str:
    """One page: verdict and sections; styles and pictures are inside it."""
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    template = environment.from_string(
        files("mindllm.report")
        .joinpath("templates", "evaluation.html.jinja")
        .read_text(encoding="utf-8")
    )
    encoded = {
        name: "data:image/png;base64," + base64.b64encode(png).decode()
        for name, png in pictures.items()
    }
    sections = ReportBuilder(content, predictions, whose(pictures)).sections()
    return template.render(
        content=content, meta=content["meta"], sections=sections, pictures=encoded
    )
