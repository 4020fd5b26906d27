"""Published scores: every one has a source, and one of them is what our scores give."""

import json
from pathlib import Path

from mindllm.evaluation.text_scores import TEXT_METRICS
from mindllm.metrics.captions import caption_scores
from mindllm.report.published import load_published_results


def test_every_score_has_a_source() -> None:
    published = load_published_results()
    assert {row.source for row in published.caption + published.grounding} <= set(published.sources)
    assert {"UMBRAE", "BrainCap", "OneLLM", "SDRecon", "MindLLM", "UniBrain", "MindBridge"} <= {
        row.system for row in published.caption
    }
    assert all(set(row.scores) <= {*TEXT_METRICS, "SPICE"} for row in published.caption)


def test_published_scores_are_those_we_compute(shared: Path) -> None:
    references = json.loads((shared / "brainhub" / "references.json").read_text())
    texts = json.loads((shared / "brainhub" / "umbrae_sub01.json").read_text())
    predictions = {k: v if isinstance(v, str) else v[0] for k, v in texts.items()}
    scores, _ = caption_scores(predictions, references)
    (published,) = (
        row.scores
        for row in load_published_results().caption
        if (row.system, row.subject) == ("UMBRAE", "S1")
    )
    assert {m: round(scores[m], 2) for m in TEXT_METRICS} == {m: published[m] for m in TEXT_METRICS}
