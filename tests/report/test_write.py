"""The written report: its files, sections and figures, and text of the data that stays text."""

import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from mindllm.evaluation.results import EvaluationResult
from mindllm.fmri.masker import VoxelMasker
from mindllm.model.modeling import MindLLM
from mindllm.report.brain_figures import brain_tables, draw_brain_figures, map_attention
from mindllm.report.render import escape_markdown
from mindllm.report.sections import build_sections, choose_examples
from mindllm.report.summary import summarize_findings
from mindllm.report.write import to_table, write_report
from tests.report.example import REPORT_FILES, change_rows, make_records, make_result, make_run_info

MARKUP = "<script>alert(1)</script> [bold]*b*|_c_"
TITLES = [
    "Scores and controls",
    "Single subjects",
    "Text scores",
    "Protocols",
    "Calibration",
    "Confusion by category",
    "Noise ceiling",
    "Without a parcel",
    "Examples",
    "Published results",
    "Not measured",
    "Methods",
]


class Page(HTMLParser):
    """Collects what a page refers to, and checks that tags close."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = ("src", "href", "srcset", "data", "action")
        self.links += [value or "" for name, value in attrs if name in names]
        if tag not in ("meta", "img", "source", "br", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def print_table(result: EvaluationResult) -> str:
    Console(file=(screen := io.StringIO()), width=160).print(to_table(result))
    return screen.getvalue()


def test_the_folder_holds_the_result_and_the_report(tmp_path: Path) -> None:
    result = make_result()
    assert write_report(result, tmp_path / "out") == tmp_path / "out" / "report.html"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == REPORT_FILES
    figures = sorted(path.name for path in (tmp_path / "out" / "figures").iterdir())
    names = ("calibration", "confusion", "coverage", "intervals")
    assert figures == [f"{name}-all.{suffix}" for name in names for suffix in ("png", "tsv")]
    loaded = EvaluationResult.load(tmp_path / "out")
    assert loaded.scores == result.scores


def test_markdown_has_every_section_and_figure(tmp_path: Path) -> None:
    result = make_result()
    write_report(result, tmp_path)
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert text.startswith("# Evaluation of my-model on a store\n")
    assert re.findall(r"^## (.*)$", text, re.M) == TITLES
    assert all(sentence in text for sentence in summarize_findings(result)[:4])
    pictures = re.findall(r"!\[(.*)\]\((.*)\)", text)
    assert len(pictures) == 4
    for alt, name in pictures:
        assert len(alt) > 40
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
        assert f"[Numbers]({name.replace('.png', '.tsv')})" in text
    columns = [line.count("|") - line.count("\\|") for line in text.split("\n") if "|" in line[:1]]
    assert min(columns) > 2


def test_the_page_is_complete_and_fetches_nothing(tmp_path: Path) -> None:
    html = write_report(make_result(), tmp_path).read_text(encoding="utf-8")
    page = Page()
    page.feed(html)
    assert not page.open
    numbers = [link for link in page.links if not link.startswith("data:image/png;base64,")]
    assert len(page.links) == 3 * 4, "light, dark and numbers"
    assert len(numbers) == 4
    for link in numbers:
        assert len(pd.read_csv(tmp_path / link, sep="\t"))
    alts = re.findall(r'alt="([^"]*)"', html)
    assert len(alts) == len(set(alts)) == 4
    assert not [alt for alt in alts if f"<figcaption>{alt}" in html], "no caption is said twice"
    assert not re.search(r"<script|<link|@import|url\(", html)
    for kind in ("fmri", "shuffled", "blind", "baseline", "reference"):
        assert f'<tr class="{kind}">' in html
    assert 'class="chance" style="left: 10.00%"' in html


def test_text_of_the_data_is_no_markup(tmp_path: Path) -> None:
    result = replace(make_result(), predictions=make_records(text=MARKUP))
    run = make_run_info(("sub-01", "sub-02"), null_tokens_text=MARKUP)
    result = replace(result, run_info=replace(run, model=replace(run.model, name=MARKUP)))
    html = write_report(result, tmp_path).read_text(encoding="utf-8")
    page = Page()
    page.feed(html)
    assert not page.open
    assert "<script" not in html
    assert "&lt;script&gt;" in html
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "<script" not in text
    assert r"&lt;script>alert(1)&lt;/script> \[bold\]\*b\*\|\_c\_" in text


def test_the_terminal_shows_markup_as_text() -> None:
    result = make_result(1)
    info = replace(result.run_info.subjects[0], subject="[bold]sub")
    run = replace(result.run_info, subjects=(info,))
    assert "Percent of trials, [bold]sub;" in print_table(replace(result, run_info=run))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("p < 0.05, max_new_tokens", "p < 0.05, max_new_tokens"),
        ("a\nb  c", "a b c"),
        ("AT&amp;T & co", "AT&amp;amp;T & co"),
        ("__a__ `b`", r"\_\_a\_\_ \`b\`"),
    ],
)
def test_markdown_escapes_what_would_be_markup_alone(text: str, expected: str) -> None:
    assert escape_markdown(text) == expected


def test_the_terminal_shows_summary_and_scores() -> None:
    screen = print_table(make_result())
    assert "above its controls" in " ".join(screen.split())
    assert "nearest neighbor" in screen
    assert "55.0 – 65.0" in screen
    assert "[dim]" not in screen


def test_sections_follow_from_what_was_measured() -> None:
    result = make_result(1, confusion=None, ablation=None, noise_ceilings=[], text_scores=[])
    run = make_run_info(("sub-01",), text_scores_skipped="no Java", skipped_conditions={})
    sections = {s.title: s for s in build_sections(replace(result, run_info=run))}
    gone = {
        "Single subjects",
        "Confusion by category",
        "Without a parcel",
        "Published results",
        "Not measured",
    }
    assert list(sections) == [title for title in TITLES if title not in gone]
    assert sections["Text scores"].paragraphs == ["Not measured: no Java"]
    assert "No stimulus was shown twice" in sections["Noise ceiling"].paragraphs[0]


def test_text_scores_are_percent_and_mark_ties() -> None:
    result = change_rows(make_result(), "noise", difference_ci_low=-0.1)
    (section,) = (s for s in build_sections(result) if s.title == "Text scores")
    cells = {row.cells[0].text: row.cells for row in section.tables[0].groups[0]}
    assert (cells["fMRI"][1].text, cells["fMRI"][-1].text) == ("60.00", "600.00")
    assert cells["noise input"][1].text == "10.00 ≈"
    assert cells["zero input"][1].text == "10.00"
    assert cells["fMRI"][1].note == "55.0 – 65.0"


@pytest.mark.parametrize("n", [1, 2, 3, 5, 8, 100])
def test_examples_show_the_worst_beside_the_best(n: int) -> None:
    examples = choose_examples(make_records(n))
    shown = [record.trial_index for records in examples.values() for record in records]
    assert len(set(shown)) == len(shown)
    assert {0, n - 1} <= set(shown)


class Maskers:
    """Stands in for a store of subjects with the same voxels."""

    def __init__(self, masker: VoxelMasker) -> None:
        self.template = masker

    def masker(self, subject: str) -> VoxelMasker:
        return replace(self.template, subject=subject)


def test_attention_is_shown_per_subject_and_parcel(tiny_model: MindLLM, space: VoxelMasker) -> None:
    store = Maskers(space)
    maps = map_attention(tiny_model, store, ["sub-01", "sub-02"])  # type: ignore[arg-type]
    assert maps.groups == {
        "all": ["sub-01", "sub-02"],
        "sub-01": ["sub-01"],
        "sub-02": ["sub-02"],
    }
    assert np.mean(maps.relative_attention[0]) == pytest.approx(1, rel=1e-4)
    assert {parcel.atlas for parcel in maps.parcels} == set(space.parcel_labels)
    for parcel in maps.parcels:
        ratio = parcel.attention / parcel.voxel_fraction
        assert parcel.relative_attention == pytest.approx(ratio)
    figures = draw_brain_figures(maps)
    section = build_sections(make_result(), maps)[-4]
    assert section.title == "Voxels and attention"
    assert {figure.name for figure in section.figures} == set(figures)
    assert "largest is" in section.figures[1].alt
    tables = brain_tables(maps)
    assert set(tables) == set(figures)
    assert list(tables["voxels-all"]) == ["x_mm", "y_mm", "z_mm", "n_subjects"]
    assert set(tables["voxels-all"]["n_subjects"]) == {2}, "both have the same voxels"
    assert len(tables["attention-sub-01"]) == len(tables["voxels-sub-01"])
    assert (tables["attention-sub-01"]["relative_attention"] > 0).all()
    assert len(section.tables[0].groups[0]) == len(maps.parcels)


def test_many_subjects_share_their_brain_figures(tiny_model: MindLLM, space: VoxelMasker) -> None:
    subjects = [f"sub-{i:02d}" for i in range(7)]
    maps = map_attention(tiny_model, Maskers(space), subjects)  # type: ignore[arg-type]
    assert maps.groups == {"all": subjects}
