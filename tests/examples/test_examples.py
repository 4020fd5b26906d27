"""Every example runs on the outputs of a demo, here a small one."""

import runpy
import sys
from pathlib import Path

import pytest

from mindllm.datasets.bids import BIDSReader
from mindllm.simulate.configuration import SimulateConfig
from mindllm.simulate.simulator import simulate
from mindllm.training.configuration import TrainConfig
from mindllm.training.trainer import train

EXAMPLES = sorted((Path(__file__).resolve().parents[2] / "examples").glob("*.py"))
SIZES = {
    "num_queries": 16, "key_dim": 24, "num_frequencies": 3, "hidden_size": 32,
    "num_fmri_tokens": 3, "token_dim": 8, "embedding_dim": 16,
}  # fmt: skip


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory, tiny_llm_folder: Path) -> Path:
    """A folder with runs/demo, as `mindllm demo` leaves it."""
    desk = tmp_path_factory.mktemp("desk")
    out = desk / "runs" / "demo"
    scenes = SimulateConfig(
        n_subjects=3, resolution_mm=8, train_stimuli=16, val_stimuli=4, test_stimuli=4,
        n_repetitions=2,
    )  # fmt: skip
    simulate(out / "bids", scenes)
    store = BIDSReader(out / "bids").prepare(out / "store")
    config = TrainConfig(
        encoder=SIZES,
        language_model=str(tiny_llm_folder),
        dtype="float32",
        alignment={"max_steps": 4, "batch_size": 16},
        instruction_tuning={"max_steps": 2, "batch_size": 4},
    )
    train(store, out / "model", config, subjects=store.subjects[:-1])
    return desk


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs(
    example: Path,
    desk: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(desk)
    monkeypatch.setattr(sys, "argv", [str(example)])
    runpy.run_path(str(example), run_name="__main__")
    assert capsys.readouterr().out.strip()
