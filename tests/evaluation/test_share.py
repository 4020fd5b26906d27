"""An evaluation by several processes gives the result of one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mindllm.data.store import Store
from mindllm.evaluation.evaluator import check_controls, evaluate, evaluate_in_processes
from mindllm.evaluation.predict import PredictOptions
from mindllm.evaluation.results import EvaluationResult
from mindllm.evaluation.share import select_share
from mindllm.model.modeling import MindLLM
from mindllm.training.trainer import train
from mindllm.utils.errors import InputError
from tests.training.test_trainer import options

NEW_SUBJECTS = ["sub-02", "sub-03"]


@pytest.fixture(scope="module")
def model_folder(
    tmp_path_factory: pytest.TempPathFactory, tiny_store: Store, tiny_llm_folder: Path
) -> Path:
    out = tmp_path_factory.mktemp("share") / "model"
    config = options(tiny_llm_folder, 2, 2, encoding_model=None)
    train(tiny_store, out, config, subjects=["sub-01"])
    return out


def check_same(one: EvaluationResult, two: EvaluationResult) -> None:
    assert one.scores == two.scores
    assert one.predictions == two.predictions
    for subject, values in one.log_likelihoods.items():
        np.testing.assert_array_equal(two.log_likelihoods[subject], values)


def test_subjects_that_processes_share_are_scored_as_by_one(
    tmp_path: Path,
    tiny_store: Store,
    model_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A third process has nothing to do."""
    num_processes = 3
    model = MindLLM.from_pretrained(model_folder)
    arguments = (model, tiny_store, NEW_SUBJECTS, None)
    expected = evaluate(*arguments, progress=False, max_new_tokens=4)
    choices = PredictOptions(tmp_path, "default", 16, 0, {"max_new_tokens": 4})
    monkeypatch.setenv("WORLD_SIZE", str(num_processes))
    results = []
    for rank in reversed(range(num_processes)):  # the first one waits for the others
        monkeypatch.setenv("RANK", str(rank))
        if rank == 0:
            saved = {file.parent.name for file in tmp_path.glob("partial/*/fmri.npz")}
            assert saved == {"sub-03"}  # by the second process; the third has nothing to do
        results.append(evaluate_in_processes(*arguments, choices))
    assert results[:-1] == [None, None]
    check_same(expected, results[-1])
    parts = [{file.stem for file in (tmp_path / "partial" / s).iterdir()} for s in NEW_SUBJECTS]
    assert parts[0] >= parts[1] >= {"fmri", "zero", "noise", "log_likelihood_ratio"}


def test_a_control_that_is_trained_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_controls("all") == "all"
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="trains a model, which one process of an evaluation"):
        check_controls("all")


def test_every_subject_is_of_one_process() -> None:
    subjects = [f"sub-{i}" for i in range(7)]
    for count in (1, 2, 4, 9):
        parts = [select_share(subjects, index, count) for index in range(count)]
        assert sorted(subject for part in parts for subject in part) == subjects


@pytest.mark.slow
def test_the_command_under_a_launcher(
    tmp_path: Path, tiny_store: Store, model_folder: Path
) -> None:
    arguments = ["evaluate", str(model_folder), str(tiny_store.path), "--max-new-tokens", "4"]
    arguments += ["--subjects", ",".join(NEW_SUBJECTS), "--out"]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    results = []
    for name, prefix in (("one", []), ("two", launcher)):
        command = [sys.executable, *prefix, "-m", "mindllm.cli", *arguments, str(tmp_path / name)]
        env = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env=env, timeout=300
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("report.html") == 1
        assert not (tmp_path / name / "partial").exists()
        results.append(json.loads((tmp_path / name / "result.json").read_text()))
    assert results[0]["scores"] == results[1]["scores"]
    texts = [(tmp_path / name / "predictions.jsonl").read_text() for name in ("one", "two")]
    assert texts[0] == texts[1]
