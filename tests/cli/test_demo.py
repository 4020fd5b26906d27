"""The demo from end to end, small: what it writes, what it prints, and that it goes on."""

from pathlib import Path

import pytest
from rich.console import Console

from mindllm.cli import demo as module
from mindllm.cli.demo_tables import QUESTIONS
from mindllm.evaluation.results import EvaluationResult
from mindllm.simulate.configuration import SimulateConfig
from mindllm.training.configuration import TrainConfig
from mindllm.utils.progress import make_progress

SIZES = {
    "num_queries": 16, "key_dim": 24, "num_frequencies": 3, "hidden_size": 32,
    "num_fmri_tokens": 3, "token_dim": 8, "embedding_dim": 16,
}  # fmt: skip


def test_the_demo_runs_to_its_report(
    tmp_path: Path, tiny_llm_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenes = SimulateConfig(
        resolution_mm=8, train_stimuli=16, val_stimuli=4, test_stimuli=4, n_repetitions=2
    )
    training = TrainConfig(
        encoder=SIZES,
        dtype="float32",
        alignment={"max_steps": 4, "batch_size": 16},
        instruction_tuning={"max_steps": 2, "batch_size": 4},
    )
    monkeypatch.setattr(module, "SCENES", scenes)
    monkeypatch.setattr(module, "TRAINING", training)
    monkeypatch.setattr(module, "N_CAPTIONS", 200)
    console = Console(record=True, width=120)
    quiet = Console(quiet=True)
    for _ in range(2):  # the second time, finished steps are taken as they are
        result = module.demo(
            tmp_path / "demo", console, lambda: make_progress(quiet), 3, llm=str(tiny_llm_folder)
        )
    assert result.value("identification_top1") is not None
    by_evidence = "identification_evidence_top1"
    for condition in ("fmri", "shuffled_trials", "zero", "noise", "ridge", "nearest_neighbor"):
        assert result.value(by_evidence, condition) is not None
    assert result.row(by_evidence, "null_tokens").value is None  # has no scan to speak of
    assert result.calibration.evidence is not None
    assert EvaluationResult.load(tmp_path / "demo" / "report").evidence.keys() == {"sub-03"}
    assert [s.subject for s in result.run_info.subjects] == ["sub-03"]
    printed = console.export_text()
    assert "new answers: 1 left-out subject; 8 trials, each identified among 4 answers" in printed
    assert "chosen by evidence among" in printed
    for part in ("precision", "recall", "generated", "action", "place"):
        assert part in printed
    for question in QUESTIONS:
        assert question in printed
    assert "the best linear observer" in printed
    assert [p.name for p in result.protocols] == ["single trials"]
    assert "Left out to be short: means of repetitions" in " ".join(printed.split())
    assert "shuffled trials" in printed
    report = tmp_path / "demo" / "report"
    for name in ("result.json", "report.html", "report.md", "predictions.jsonl"):
        assert (report / name).is_file()
    assert list((report / "figures").glob("*.png"))
