"""Reports that were written with bad content: refused in one line, and left as they are."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mindllm.evaluation.cache import PredictionCache, load_predictions, save_predictions
from mindllm.evaluation.results import ConditionPredictions
from mindllm.utils.errors import InputError
from tests.cli.bad_input import REMOVED, Case, Change, arrays, entry, line, put, text

NAN = float("nan")
RUN, FIRST = "run_info", ("rows", 0)
RESULT = [
    Case("list", "", text("[]"), "expected dict"),
    Case("format", "", entry("format", value=[5]), r"report format \[5\]"),
    Case("no rows", "", entry("rows"), "rows: Field required"),
    Case("rows", "", entry("rows", value={}), "rows: .*found {}"),
    Case("row", "", entry(*FIRST, value=3), "rows.0: .*found 3"),
    Case("no value", "", entry(*FIRST, "value"), "rows.0.value: Field required"),
    Case("value", "", entry(*FIRST, "value", value="0.5"), "rows.0.value: .*found '0.5'"),
    Case("above 1", "", entry(*FIRST, "value", value=60.0), "rows.0.value: .*found 60.0"),
    Case("below 0", "", entry(*FIRST, "value", value=-0.5), "rows.0.value: .*found -0.5"),
    Case("NaN", "", entry(*FIRST, "ci_low", value=NAN), "rows.0.ci_low: .*finite"),
    Case("inf", "", entry(*FIRST, "ci_high", value=1e999), "rows.0.ci_high: .*finite"),
    Case("p", "", entry(*FIRST, "p_value", value=1.5), "rows.0.p_value: .*found 1.5"),
    Case("difference", "", entry(*FIRST, "difference", value=2), "rows.0.difference: .*found 2"),
    Case("trials", "", entry(*FIRST, "n_trials", value=-1), "rows.0.n_trials: .*found -1"),
    Case("half", "", entry(*FIRST, "n_trials", value=1.5), "rows.0.n_trials: .*found 1.5"),
    Case("rank", "", entry(*FIRST, "mean_rank", value=0), "rows.0.mean_rank: .*found 0"),
    Case("metric", "", entry(*FIRST, "metric", value=None), "rows.0.metric: .*found None"),
    Case("row key", "", entry(*FIRST, "score", value=1), "rows.0.score: Unexpected"),
    Case("unknown", "", entry("author", value="me"), "author: Unexpected"),
    Case("protocol", "", entry("protocols", 0, "rows", value=None), "protocols.0.rows: "),
    Case("calibration", "", entry("calibration", value=None), "calibration: .*found None"),
    Case("confusion", "", entry("confusion", "counts", value=[1]), "confusion.counts.0: "),
    Case("ceiling", "", entry("noise_ceilings", 0, "ci_low", value="a"), "noise_ceilings.0.ci_low"),
    Case("run", "", entry(RUN, value={}), "run_info.model: Field required"),
    Case("seed", "", entry(RUN, "seed", value="0"), "run_info.seed: .*found '0'"),
    Case("question", "", entry(RUN, "question", value=3), "run_info.question: .*found 3"),
    Case("candidates", "", entry(RUN, "candidates", value="a"), "run_info.candidates: .*'a'"),
    Case("candidate", "", entry(RUN, "candidates", 0, value="scene 1"), "candidates has 9"),
    Case("one", "", entry(RUN, "candidates", value=["scene 1"]), "candidates has 1"),
    Case("other", "", entry(RUN, "candidates", 0, value="scene x"), "other candidates"),
    Case("subject", "", entry(RUN, "subjects", 0, "subject", value="sub-09"), "'sub-09': 6"),
    Case("count", "", entry(RUN, "subjects", 0, "n_trials", value=7), "'sub-01': 7"),
]
RECORDS = [
    Case("no JSON", "", text("{"), "line 1: "),
    Case("list", "", text("[1]\n"), "line 1: "),
    Case("number", "", text("3\n"), "line 1: "),
    Case("empty", "", text(""), "has the trials {}"),
    Case("NaN", "", line(log_likelihood_ratio=NAN), "line 2: log_likelihood_ratio: .*finite"),
    Case("inf", "", line(target_llr=float("inf")), "line 2: target_llr: .*finite"),
    Case("subject", "", line(subject="sub-09"), "'sub-09': 1"),
    Case("subject 2", "", line(subject=2), "line 2: subject: .*found 2"),
    Case("twice", "", line(trial_index=3), "trial 3 of sub-02 comes twice"),
    Case("index", "", line(trial_index=-1), "line 2: trial_index: .*found -1"),
    Case("index text", "", line(trial_index="1"), "line 2: trial_index: .*found '1'"),
    Case("rank", "", line(rank=0), "line 2: rank: .*found 0"),
    Case("rank 11", "", line(rank=11), "rank 11 among 10"),
    Case("llr rank", "", line(llr_rank=99), "rank 99 among 10"),
    Case("target", "", line(target="a dog"), "the target 'a dog'"),
    Case("prediction", "", line(prediction=None), "line 2: prediction: .*found None"),
    Case("references", "", line(references="a dog"), "line 2: references: .*'a dog'"),
    Case("probability", "", line(top_candidate_probability=1.5), "probability: .*found 1.5"),
    Case("match", "", line(exact_match=1), "line 2: exact_match: .*found 1"),
    Case("controls", "", line(control_predictions=[]), r"control_predictions: .*found \[\]"),
    Case("missing", "", line(stimulus=REMOVED), "line 2: stimulus: Field required"),
    Case("unknown", "", line(score=1), "line 2: score: Unexpected"),
]
SCORES = [
    Case("no subject", "", arrays(**{"sub-02": REMOVED}), "lacks the arrays sub-02"),
    Case("other", "", arrays(**{"sub-09": np.zeros((6, 10))}), "holds sub-09"),
    Case("rows", "", arrays(**{"sub-01": lambda v: v[1:]}), r"sub-01 has shape \(5, 10\)"),
    Case("columns", "", arrays(**{"sub-01": lambda v: v[:, 1:]}), r"sub-01 has shape \(6, 9\)"),
    Case("1-D", "", arrays(**{"sub-01": np.ravel}), r"sub-01 has shape \(60,\)"),
    Case("type", "", arrays(**{"sub-01": lambda v: v.astype(int)}), "sub-01 holds the type int64"),
    Case("text", "", arrays(**{"sub-01": lambda v: v.astype("U3")}), "sub-01 holds the type"),
    Case("NaN", "", arrays(**{"sub-01": put((0, 0), NAN)}), "sub-01 holds NaN"),
    Case("order", "", arrays(candidates=lambda names: names[::-1]), "other candidates"),
    Case("names", "", arrays(candidates=np.arange(10)), "candidates holds the type int64"),
    Case("fewer", "", arrays(candidates=lambda names: names[1:]), r"candidates has shape \(9,\)"),
    Case("none", "", arrays(candidates=REMOVED), "lacks the arrays candidates"),
    Case("no archive", "", text("scores"), "damaged"),
]
NULL = [
    Case("no null", "", arrays(null_tokens=REMOVED), "lacks the arrays null_tokens"),
    Case("null", "", arrays(null_tokens=lambda v: v[1:]), r"null_tokens has shape \(9,\)"),
    Case("null inf", "", arrays(null_tokens=put(0, np.inf)), "null_tokens holds NaN or infinite"),
]
FILES = {
    "report/result.json": RESULT,
    "report/predictions.jsonl": RECORDS,
    "report/candidate_log_likelihoods.npz": [*SCORES, *NULL],
    "report/candidate_evidence.npz": SCORES,
}
CASES = [case._replace(file=file) for file, cases in FILES.items() for case in cases]


def label(value: Any) -> str:
    return f"{Path(value.file).name}-{value.name}".replace(" ", "_")


@pytest.mark.parametrize("case", CASES, ids=label)
def test_a_bad_report_is_refused(refuse: Callable[[Case, str], None], case: Case) -> None:
    refuse(case, "compare report report")


PARTS: dict[str, tuple[Change, str]] = {
    "no texts": (arrays(texts=REMOVED), "the texts are None"),
    "texts": (arrays(texts=np.frombuffer(b'"a"', np.uint8)), "the texts are 'a'"),
    "text": (arrays(texts=np.frombuffer(b"[1, 2]", np.uint8)), r"the texts are \[1, 2\]"),
    "fewer": (arrays(texts=np.frombuffer(b'["a"]', np.uint8)), r"log_likelihoods has shape"),
    "rows": (arrays(evidence=np.zeros((3, 4))), r"evidence has shape \(3, 4\)"),
    "columns": (arrays(evidence=np.zeros((2, 3))), r"evidence has shape \(2, 3\)"),
    "null": (arrays(null_log_likelihoods=np.zeros(3)), r"null_log_likelihoods has shape \(3,\)"),
    "type": (arrays(log_likelihoods=np.zeros((2, 4), int)), "log_likelihoods holds the type int64"),
    "groups": (arrays(row_groups=np.zeros(2, int)), "expected both"),
    "unknown": (arrays(other=np.zeros(2)), "other holds the type"),
}


@pytest.mark.parametrize("kind", PARTS)
def test_bad_predictions_of_an_interrupted_evaluation(tmp_path: Path, kind: str) -> None:
    change, message = PARTS[kind]
    path = tmp_path / "fmri.npz"
    scores = np.zeros((2, 4))
    save_predictions(path, ConditionPredictions(scores, ["a", "b"], scores[0], evidence=scores))
    assert load_predictions(path).texts == ["a", "b"]
    change(path)
    with pytest.raises(InputError, match=rf"fmri.npz.*{message}"):
        load_predictions(path)


@pytest.mark.parametrize("content", [{}, ["a", 3], "a"])
def test_bad_texts_of_an_interrupted_evaluation(tmp_path: Path, content: object) -> None:
    cache = PredictionCache(tmp_path, {})
    (tmp_path / "proposals.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"proposals\.json"):
        cache.texts("proposals", list)
