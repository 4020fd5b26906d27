"""What the examples run on: the outputs of a small demo."""

from pathlib import Path

import pytest

from mindllm.datasets.bids import BIDSReader
from mindllm.simulate.configuration import SimulateConfig
from mindllm.simulate.simulator import simulate
from mindllm.training.configuration import TrainConfig
from mindllm.training.trainer import train

SIZES = {
    "num_queries": 16, "key_dim": 24, "num_frequencies": 3, "hidden_size": 32,
    "num_fmri_tokens": 3, "token_dim": 8, "embedding_dim": 16,
}  # fmt: skip


@pytest.fixture(scope="session")
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
