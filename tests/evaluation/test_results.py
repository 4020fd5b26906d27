"""Results on disk: written and read again, refused where damaged, and resumed where interrupted."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from mindllm.data.store import Store
from mindllm.evaluation import evaluator
from mindllm.evaluation.cache import (
    PARTIAL_DIR,
    PredictionCache,
    clear_cache,
    load_predictions,
    save_predictions,
)
from mindllm.evaluation.conditions import ALL_SUBJECTS
from mindllm.evaluation.predict import Predictor
from mindllm.evaluation.results import ConditionPredictions, EvaluationResult
from mindllm.fmri.masker import VoxelMasker
from mindllm.model.modeling import MindLLM
from mindllm.utils.errors import InputError
from tests.conftest import update_manifests
from tests.evaluation.test_evaluator import make_store, planted, quick

ROW_FIELDS = [
    "subject", "condition", "metric", "value", "ci_low", "ci_high", "chance_level", "n_trials",
    "n_subjects", "p_value",
]  # fmt: skip


@pytest.fixture
def store(tmp_path: Path, space: VoxelMasker) -> Store:
    return make_store(tmp_path / "store", space, noise=0.5)


def test_a_result_is_the_same_after_a_round_trip(
    tiny_model: MindLLM, store: Store, tmp_path: Path
) -> None:
    model = planted(tiny_model)
    model.wording = "line\u2028separator {}"
    result = quick(model, store)
    result.save(tmp_path / "r")
    loaded = EvaluationResult.load(tmp_path / "r")
    for field in dataclasses.fields(EvaluationResult):
        if "log_likelihoods" not in field.name:
            assert getattr(loaded, field.name) == getattr(result, field.name), field.name
    np.testing.assert_equal(dict(loaded.log_likelihoods), dict(result.log_likelihoods))
    np.testing.assert_equal(loaded.null_log_likelihoods, result.null_log_likelihoods)
    loaded.save(tmp_path / "again")
    for name in ("result.json", "predictions.jsonl"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "r" / name).read_bytes()


def test_rows_hold_values_from_0_to_1(tiny_model: MindLLM, store: Store, tmp_path: Path) -> None:
    result = quick(planted(tiny_model), store)
    result.save(tmp_path / "r")
    content = json.loads((tmp_path / "r" / "result.json").read_text(encoding="utf-8"))
    assert list(content["rows"][0])[: len(ROW_FIELDS)] == ROW_FIELDS
    rows = [*content["rows"], *content["text_rows"]]
    for part in content["protocols"]:
        rows += [*part["rows"], *part["text_rows"]]
    for row in rows:
        for name in ("value", "chance_level", "p_value"):
            assert row[name] is None or -1e-9 <= row[name] <= 1 + 1e-9, row
    if result.run_info.text_scores_skipped is None:
        assert 0.1 < result.value("CIDEr") <= 1, "CIDEr-D is up to 10"
        assert 0.5 < result.value("BLEU-1", "fmri", ALL_SUBJECTS) <= 1


def test_a_damaged_result_is_refused(tiny_model: MindLLM, store: Store, tmp_path: Path) -> None:
    quick(planted(tiny_model), store).save(tmp_path)
    path = tmp_path / "result.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(content | {"format": 2}))
    with pytest.raises(InputError, match="report format 2; this version of mindllm reads 5"):
        EvaluationResult.load(tmp_path)
    del content["rows"][0]["value"]
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"result.json is not the file that was written"):
        EvaluationResult.load(tmp_path)
    update_manifests(tmp_path)
    with pytest.raises(InputError, match=r"result.json: rows.0.value: Field required"):
        EvaluationResult.load(tmp_path)
    (tmp_path / "predictions.jsonl").unlink()
    with pytest.raises(InputError, match=r"predictions\.jsonl is missing"):
        EvaluationResult.load(tmp_path)
    with pytest.raises(InputError, match="is not a report"):
        EvaluationResult.load(tmp_path / "none")


def without_times(path: Path) -> object:
    content = json.loads(path.read_text(encoding="utf-8"))
    del content["run_id"]
    for name in ("started", "seconds"):
        del content["run_info"][name]
    return content


def test_a_failure_in_scoring_loses_no_prediction(
    tiny_model: MindLLM, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, model = tmp_path / "out", planted(tiny_model)
    quick(model, store).save(tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(evaluator, "score_predictions", lambda *a, **k: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            quick(model, store, cache_dir=out)
    assert (out / PARTIAL_DIR / "sub-02" / "fmri.npz").exists()
    with monkeypatch.context() as patch:
        patch.setattr(Predictor, "predict_trials", lambda *a, **k: 1 / 0)
        patch.setattr(Predictor, "log_likelihood_ratio", lambda *a, **k: 1 / 0)
        quick(model, store, cache_dir=out).save(out)
    assert without_times(out / "result.json") == without_times(tmp_path / "whole" / "result.json")
    for name in ("predictions.jsonl", "candidate_log_likelihoods.npz", "candidate_evidence.npz"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_an_interrupted_prediction_goes_on_with_the_next_subject(
    tiny_model: MindLLM, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[str] = []
    model = planted(tiny_model)
    predict = Predictor.predict_trials

    def interrupted(self, store, subject, *args, **options):
        called.append(subject)
        if called == ["sub-01", "sub-02"]:
            raise KeyboardInterrupt
        return predict(self, store, subject, *args, **options)

    monkeypatch.setattr(Predictor, "predict_trials", interrupted)
    with pytest.raises(KeyboardInterrupt):
        quick(model, store, cache_dir=tmp_path)
    quick(model, store, cache_dir=tmp_path)
    averaged = ["sub-01", "sub-02"]
    assert called == ["sub-01", "sub-02", "sub-02", *averaged], "sub-01 was predicted once"


def test_predictions_of_another_evaluation_are_refused(
    tiny_model: MindLLM, store: Store, tmp_path: Path
) -> None:
    model = planted(tiny_model)
    quick(model, store, cache_dir=tmp_path)
    for options, message in (
        ({"seed": 5}, "its seed is '0', that of this one '5'"),
        ({"question": "Why?"}, "(?s)its question is .*, that of this one 'Why\\?'"),
        ({"max_new_tokens": 3}, "its generation options is '{}', that of this one"),
        ({"subjects": ["sub-01"]}, "its split is"),
    ):
        with pytest.raises(InputError, match=message):
            quick(model, store, cache_dir=tmp_path, **options)
    model.encoder.queries.data += 1
    with pytest.raises(InputError, match="its model is"):
        quick(model, store, cache_dir=tmp_path)
    clear_cache(tmp_path)
    quick(model, store, cache_dir=tmp_path, seed=5)


def test_predictions_survive_the_disk_to_the_last_bit(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    texts = ["", "a\0", "two\nlines", "naïve 東京 \ud83d"]
    groups = (np.array(["1", "1", "2", "2"]), np.array(["2", "1"]))
    predictions = ConditionPredictions(rng.normal(size=(4, 3)), texts, rng.normal(size=3), groups)
    save_predictions(tmp_path / "p.npz", predictions)
    loaded = load_predictions(tmp_path / "p.npz")
    assert loaded.texts == texts
    np.testing.assert_equal(loaded.log_likelihoods, predictions.log_likelihoods)
    np.testing.assert_equal(loaded.null_log_likelihoods, predictions.null_log_likelihoods)
    np.testing.assert_equal(loaded.groups, groups)
    bare = ConditionPredictions(None, ["x"])
    save_predictions(tmp_path / "q.npz", bare)
    assert load_predictions(tmp_path / "q.npz") == bare
    (tmp_path / "q.npz").write_bytes(b"PK")
    with pytest.raises(InputError, match="missing, damaged or truncated"):
        load_predictions(tmp_path / "q.npz")


def test_without_a_folder_nothing_is_kept() -> None:
    cache, calls = PredictionCache(None, {}), []

    def predict() -> ConditionPredictions:
        calls.append(1)
        return ConditionPredictions(None, ["x"])

    for _ in range(2):
        assert cache.predictions("sub-01", "fmri", predict).texts == ["x"]
    assert len(calls) == 2
    assert not cache.has("sub-01", "fmri")
