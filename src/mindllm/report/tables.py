"""The report's tables of scores: what a section is made of, and the sections that compare conditions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mindllm.evaluation.conditions import CONDITIONS
from mindllm.evaluation.text_scores import TEXT_METRICS
from mindllm.metrics.registry import METRICS
from mindllm.report.summary import find_rows, get_row, p_text, percent

MAIN_METRICS = ("exact_match", "identification_top1", "identification_top5", "identification_2way", "identification_llr_top1")  # fmt: skip
Content = Mapping[str, Any]


@dataclass(frozen=True)
class Cell:
    """Text with a small note below it; `bar`: value, low, high and chance from 0 to 1, where a bar is drawn."""

    text: str
    note: str = ""
    bar: tuple[float, float, float, float | None] | None = None

    @property
    def both(self) -> str:
        """Text and note in one line."""
        return f"{self.text} ({self.note})" if self.note else self.text


@dataclass(frozen=True)
class Table:
    """Groups of rows under a head; a row is its condition (for the colour, or "") and its cells."""

    caption: str
    head: Sequence[Cell]
    groups: Sequence[Sequence[tuple[str, Sequence[Cell]]]]


@dataclass(frozen=True)
class Section:
    """A part of the report: words, tables, and pictures as (kind, whose, words); `folded`: shown when asked for."""

    title: str
    words: Sequence[str] = ()
    tables: Sequence[Table] = ()
    pictures: Sequence[tuple[str, str, str]] = ()
    folded: bool = False


def interval(row: Mapping[str, Any], scale: float = 100) -> str:
    """Both ends of the interval of a score."""
    return f"{scale * row['ci_low']:.1f} – {scale * row['ci_high']:.1f}"


def share_cell(row: Mapping[str, Any], bar: bool = False) -> Cell:
    """A share as a percentage with its interval; a dash where it does not apply."""
    if row["value"] is None:
        return Cell("–")
    ends = (row["value"], row["ci_low"], row["ci_high"], row["chance_level"])
    return Cell(percent(row["value"]), interval(row), ends if bar else None)


@dataclass
class ScoreTables:
    """The sections of scores, from report.json's content."""

    content: Content
    predictions: Sequence[Mapping[str, Any]] = ()
    whose: Sequence[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rows, self.meta = self.content["rows"], self.content["meta"]
        self.people = list(self.meta["subjects"])

    def score_cell(self, metric: str, condition: str, subject: str | None = None) -> Cell:
        """A value with its interval and its bar."""
        row = next(iter(find_rows(self.rows, metric, condition, subject)), None)
        return Cell("–") if row is None else share_cell(row, bar=True)

    def p_cell(
        self, condition: str, metric: str = "identification_top1", subject: str | None = None
    ) -> Cell:
        """How sure it is that the brain is above a condition."""
        row = next(iter(find_rows(self.rows, metric, condition, subject)), None)
        if row is None or "p_value" not in row or condition == "fmri":
            return Cell("")
        return Cell(p_text(row["p_value"], self.meta["permutations"]))

    def table_of(self, conditions: Sequence[str], subject: str | None, caption: str) -> Table:
        """Conditions by metrics, of one person or everybody."""
        head = [
            Cell("Condition"),
            *(Cell(METRICS[m].label, METRICS[m].meaning) for m in MAIN_METRICS),
        ]
        head.append(Cell("Brain above it, top 1", "one-sided p, in these people"))
        rows = [
            (c, [Cell(CONDITIONS[c].label, CONDITIONS[c].meaning), *(self.score_cell(m, c, subject) for m in MAIN_METRICS), self.p_cell(c, subject=subject)])
            for c in conditions
        ]  # fmt: skip
        return Table(caption, head, [rows])

    def conditions(self, subject: str | None = None) -> list[str]:
        """Those that were measured."""
        return [c for c in CONDITIONS if find_rows(self.rows, "identification_top1", c, subject)]

    def scores(self) -> Section:
        """Everybody, under every condition."""
        many = len(self.people) > 1
        chance = (
            get_row(self.rows, "identification_top1")["chance_level"],
            get_row(self.rows, "identification_top5")["chance_level"],
        )
        who = f"the mean of {len(self.people)} people's means" if many else self.people[0]
        interval = (
            "bootstrap over people and answers; too narrow with few people"
            if many
            else "bootstrap over answers"
        )
        caption = f"Per cent of trials, {who}; 95 % interval ({interval}). Chance among {len(self.meta['candidates'])} answers: {percent(chance[0])} (top 1), {percent(chance[1])} (top 5), 50 % (pairwise)."
        words = "The intervals along the line: top 1, value and 95 % interval of the scan and of each control."
        return Section(
            "Scores beside their controls",
            (),
            [self.table_of(self.conditions(), None, caption)],
            [("intervals", "all", words)],
        )

    def persons(self) -> Section | None:
        """The same for each person."""
        if len(self.people) == 1:
            return None
        tables = [
            self.table_of(
                self.conditions(s), s, f"{s}: {self.meta['subjects'][s]['trials']} trials."
            )
            for s in self.people
        ]
        return Section("Each person", (), tables, folded=True)

    def texts(self) -> Section:
        """BLEU and its kin."""
        rows = self.content["texts"]
        if not rows:
            return Section("Text scores", [f"Left out: {self.meta['no_text_scores']}"])
        names = [c for c in CONDITIONS if find_rows(rows, "BLEU-1", c)]
        lines = []
        for c in names:
            cells = [Cell(CONDITIONS[c].label, CONDITIONS[c].meaning)]
            for metric in TEXT_METRICS:
                row = get_row(rows, metric, c)
                worse = (
                    ""
                    if c == "fmri"
                    or CONDITIONS[c].kind == "reference"
                    or row["difference_ci_low"] > 0
                    else " ≈"
                )
                cells.append(Cell(f"{row['value']:.2f}{worse}", interval(row, 1)))
            lines.append((c, cells))
        caption = "BLEU, METEOR, ROUGE-L and CIDEr of the free-running text as pycocoevalcap computes them, against all accepted answers; 95 % interval. ≈: the brain is not above this condition (the interval of the paired difference reaches 0)."
        return Section(
            "Text scores",
            (),
            [Table(caption, [Cell("Condition"), *map(Cell, TEXT_METRICS)], [lines])],
        )

    def protocols(self) -> Section | None:
        """Protocols as rows of their own."""
        groups = []
        for part in self.content["protocols"]:
            people = "1 person" if part["people"] == 1 else f"{part['people']} people"
            count = f"{people}, {part['trials']} scans, {part['stimuli']} stimuli, {part['candidates']} candidates"
            lines = []
            for c in ("fmri", "shuffled_trials", "null_tokens"):
                cells = [
                    Cell(part["name"], count if c == "fmri" else ""),
                    Cell(CONDITIONS[c].label),
                ]
                for metric in MAIN_METRICS:
                    row = next(
                        r for r in part["rows"] if (r["metric"], r["condition"]) == (metric, c)
                    )
                    cells.append(share_cell(row))
                for metric in ("BLEU-4", "CIDEr"):
                    text = [
                        r for r in part["texts"] if (r["metric"], r["condition"]) == (metric, c)
                    ]
                    cells.append(Cell(f"{text[0]['value']:.2f}" if text else "–"))
                lines.append((c, cells))
            groups.append(lines)
        head = [
            Cell("Protocol"),
            Cell("Condition"),
            *(Cell(METRICS[m].label) for m in MAIN_METRICS),
            Cell("BLEU-4"),
            Cell("CIDEr"),
        ]
        words = "Protocols are not mixed: each is measured among its own candidates. Those that this data does not allow (repeats, named sets of stimuli, people or stimuli both seen and new) have no row."
        return Section(
            "Protocols", [words], [Table("Everybody together; 95 % interval.", head, groups)]
        )
