"""The result as dictionaries, until the report is made of typed results."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Group

from mindllm.evaluation.conditions import ALL_SUBJECTS
from mindllm.evaluation.results import FORMAT
from mindllm.utils.files import atomic_write, write_json


@dataclass(frozen=True)
class DictResult:
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
