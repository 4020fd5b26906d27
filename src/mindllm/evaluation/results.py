"""What an evaluation finds: what was said by whom, what it earned, and the report."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Group

from mindllm.evaluation.conditions import ALL_SUBJECTS
from mindllm.metrics.inference import Groups, subject_means
from mindllm.utils.files import atomic_write, write_json


@dataclass(frozen=True)
class ConditionPredictions:
    """What a reader said: log-likelihoods or other scores of the candidates (R, C), None where it has none, and texts (R,).

    blind: (C,) what it says of the candidates without a scan, for the gain.  groups: of the rows (R,) and of the trials
    (B,), where rows stand in for trials; None: row b is trial b's own.
    """

    log_likelihoods: np.ndarray | None
    texts: Sequence[str]
    null_log_likelihoods: np.ndarray | None = None
    groups: Groups | None = None

    @property
    def log_likelihood_ratios(self) -> np.ndarray | None:
        """(R, C): how much likelier the scan makes each candidate."""
        return (
            None
            if self.log_likelihoods is None or self.null_log_likelihoods is None
            else self.log_likelihoods - self.null_log_likelihoods
        )

    def shared_within(self, of_rows: np.ndarray, of_trials: np.ndarray) -> "ConditionPredictions":
        """The same rows, standing in for trials of the same group."""
        return replace(self, groups=(of_rows, of_trials))

    def broadcast_to_trials(self, trials: int) -> "ConditionPredictions":
        """The same rows, standing in for every trial alike."""
        return self.shared_within(np.zeros(len(self.texts), int), np.zeros(trials, int))


@dataclass(frozen=True)
class SubjectPredictions:
    """What every condition said about B trials of one person."""

    subject: str
    stimuli: np.ndarray  # (B,) what was shown
    conditions: Mapping[str, ConditionPredictions]


@dataclass(frozen=True)
class TrialScores:
    """Credit per trial, condition -> (B, M), NaN where a metric does not apply; and what the tests of a condition need.

    luck: (B, M) per condition that reads trials, the mean credit of its other readings.  nulls: (P, M) means under
    permutations.  ranks: (B,) rank of the truth.  people: (B,) whose trial it is.  answers: (B,) the true answer's number,
    by which trials are resampled: stimuli of one answer are no independent evidence.
    """

    subject: str
    scores: Mapping[str, np.ndarray]
    expected_scores: Mapping[str, np.ndarray]
    null_distributions: Mapping[str, np.ndarray]
    ranks: Mapping[str, np.ndarray]
    stimuli: np.ndarray
    target_indices: np.ndarray
    subjects: np.ndarray

    def mean(self, table: np.ndarray) -> np.ndarray:
        """(M,): the mean of people's means of (B, M)."""
        return subject_means(table, self.subjects).mean(0)


FORMAT = 3


@dataclass(frozen=True)
class EvaluationResult:
    """`rows` (subject x condition x metric), `texts` (likewise, the field's text scores), `protocols`, what was said
    (`predictions`, one per trial), and how it was measured (`meta`)."""

    rows: list[dict[str, Any]]
    text_scores: list[dict[str, Any]]
    protocols: list[dict[str, Any]]
    predictions: list[dict[str, Any]]
    meta: dict[str, Any]
    log_likelihoods: dict[str, Any]  # arrays: per subject (B, C), and `no_brain` (C,)
    figures: dict[str, bytes] = field(default_factory=dict)

    def value(
        self, metric: str, condition: str = "fmri", subject: str = ALL_SUBJECTS
    ) -> float | None:
        """One value of the table; None where the condition was not measured."""
        keys = (metric, condition, subject)
        return next(
            (r["value"] for r in self.rows if (r["metric"], r["condition"], r["subject"]) == keys),
            None,
        )

    @property
    def content(self) -> dict[str, Any]:
        """What report.json holds."""
        return {
            "format": FORMAT, "verdict": self.meta["verdict"], "rows": self.rows, "texts": self.text_scores,
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
        with atomic_write(out / "predictions.jsonl") as path:
            lines = (json.dumps(p, ensure_ascii=False) + "\n" for p in self.predictions)
            path.write_text("".join(lines), encoding="utf-8")
        with atomic_write(out / "likelihoods.npz") as path:
            np.savez_compressed(
                path, candidates=np.array(self.meta["candidates"]), **self.log_likelihoods
            )
        for name, picture in self.figures.items():
            kind, whose, theme = name.split("|")
            if theme == "light":
                with atomic_write(out / "pictures" / f"{kind}-{whose}.png") as path:
                    path.write_bytes(picture)
        with atomic_write(out / "report.md") as path:
            path.write_text(
                as_markdown(self.content, self.predictions, self.figures), encoding="utf-8"
            )
        with atomic_write(out / "report.html") as path:
            path.write_text(as_html(self.content, self.predictions, self.figures), encoding="utf-8")
        write_json(out / "report.json", self.content)
