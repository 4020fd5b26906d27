"""What an evaluation finds: what was said by whom, what it earned, and the report."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Group

from mindllm.evaluate.conditions import ALL
from mindllm.metrics.inference import Groups, people_means
from mindllm.utils.files import whole_file, write_json


@dataclass(frozen=True)
class Said:
    """What a reader said: log-likelihoods or other scores of the candidates (R, C), None where it has none, and texts (R,).

    blind: (C,) what it says of the candidates without a scan, for the gain.  groups: of the rows (R,) and of the trials
    (B,), where rows stand in for trials; None: row b is trial b's own.
    """

    likelihood: np.ndarray | None
    texts: Sequence[str]
    blind: np.ndarray | None = None
    groups: Groups | None = None

    @property
    def gain(self) -> np.ndarray | None:
        """(R, C): how much likelier the scan makes each candidate."""
        return None if self.likelihood is None or self.blind is None else self.likelihood - self.blind

    def standing_in(self, of_rows: np.ndarray, of_trials: np.ndarray) -> "Said":
        """The same rows, standing in for trials of the same group."""
        return replace(self, groups=(of_rows, of_trials))

    def for_all(self, trials: int) -> "Said":
        """The same rows, standing in for every trial alike."""
        return self.standing_in(np.zeros(len(self.texts), int), np.zeros(trials, int))


@dataclass(frozen=True)
class Readings:
    """What every condition said about B trials of one person."""

    subject: str
    stimuli: np.ndarray  # (B,) what was shown
    said: Mapping[str, Said]


@dataclass(frozen=True)
class Outcome:
    """Credit per trial, condition -> (B, M), NaN where a metric does not apply; and what the tests of a condition need.

    luck: (B, M) per condition that reads trials, the mean credit of its other readings.  nulls: (P, M) means under
    permutations.  ranks: (B,) rank of the truth.  people: (B,) whose trial it is.  answers: (B,) the true answer's number,
    by which trials are resampled: stimuli of one answer are no independent evidence.
    """

    subject: str
    credit: Mapping[str, np.ndarray]
    luck: Mapping[str, np.ndarray]
    nulls: Mapping[str, np.ndarray]
    ranks: Mapping[str, np.ndarray]
    stimuli: np.ndarray
    answers: np.ndarray
    people: np.ndarray

    def mean(self, table: np.ndarray) -> np.ndarray:
        """(M,): the mean of people's means of (B, M)."""
        return people_means(table, self.people).mean(0)


FORMAT = 2


@dataclass(frozen=True)
class Report:
    """`rows` (subject x condition x metric), `texts` (likewise, the field's text scores), `protocols`, what was said
    (`predictions`, one per trial), and how it was measured (`meta`)."""

    rows: list[dict[str, Any]]
    texts: list[dict[str, Any]]
    protocols: list[dict[str, Any]]
    predictions: list[dict[str, Any]]
    meta: dict[str, Any]
    likelihoods: dict[str, Any]  # arrays: per subject (B, C), and `no_brain` (C,)
    pictures: dict[str, bytes] = field(default_factory=dict)

    def value(self, metric: str, condition: str = "brain", subject: str = ALL) -> float | None:
        """One value of the table; None where the condition was not measured."""
        keys = (metric, condition, subject)
        return next((r["value"] for r in self.rows if (r["metric"], r["condition"], r["subject"]) == keys), None)

    @property
    def content(self) -> dict[str, Any]:
        """What report.json holds."""
        return {
            "format": FORMAT, "verdict": self.meta["verdict"], "rows": self.rows, "texts": self.texts,
            "protocols": self.protocols, "meta": self.meta,
        }  # fmt: skip

    def table(self) -> Group:
        """The verdict and the scores beside their controls, to print with rich."""
        from mindllm.report.render import as_table  # which imports this module

        return as_table(self.content, self.predictions)

    def write(self, out: str | Path) -> None:
        """Write report.json, .md and .html, pictures, predictions.jsonl and likelihoods.npz into the folder `out`."""
        from mindllm.report.render import as_html, as_markdown  # which imports this module

        out = Path(out)
        with whole_file(out / "predictions.jsonl") as path:
            lines = (json.dumps(p, ensure_ascii=False) + "\n" for p in self.predictions)
            path.write_text("".join(lines), encoding="utf-8")
        with whole_file(out / "likelihoods.npz") as path:
            np.savez_compressed(path, candidates=np.array(self.meta["candidates"]), **self.likelihoods)
        for name, picture in self.pictures.items():
            kind, whose, theme = name.split("|")
            if theme == "light":
                with whole_file(out / "pictures" / f"{kind}-{whose}.png") as path:
                    path.write_bytes(picture)
        with whole_file(out / "report.md") as path:
            path.write_text(as_markdown(self.content, self.predictions, self.pictures), encoding="utf-8")
        with whole_file(out / "report.html") as path:
            path.write_text(as_html(self.content, self.predictions, self.pictures), encoding="utf-8")
        write_json(out / "report.json", self.content)
