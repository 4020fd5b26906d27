"""Two processes train as one does: the same step, the same losses, one writer."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mindllm.data.store import Store
from mindllm.training.configuration import Stage, StageConfig, TrainConfig, check_processes
from mindllm.training.loggers import read_rows
from mindllm.training.trainer import Trainer, train
from mindllm.utils.errors import InputError
from tests.training.test_trainer import SIZES, weights

STAGES: list[Stage] = ["alignment", "instruction_tuning"]
# The same is added to all keys, which the softmax ignores: its gradient is rounding alone, of which
# Adam makes steps.
KEY_BIAS = "encoder.coord_proj.0.bias"
PROGRAM = """
import sys
from mindllm.training.trainer import Trainer

stop = int(sys.argv.pop())
take_step = Trainer.take_step

def take_until(self, *arguments):
    if self.state.step == stop:
        sys.exit(7)
    return take_step(self, *arguments)

Trainer.take_step = take_until
from mindllm.cli import main
main()
"""


def options(llm: Path, num_parts: int = 2) -> TrainConfig:
    """All noise and dropout on: draws depend on the seed, the step and the micro batch alone."""
    align, tune = (
        StageConfig(max_steps=4, batch_size=size, gradient_accumulation_steps=num_parts)
        for size in (12, 4)
    )
    return TrainConfig(
        encoder=SIZES,
        language_model=str(llm),
        dtype="float32",
        alignment=align,
        instruction_tuning=tune,
        lora={"r": 2},
        eval_steps=5,
        save_steps=3,
        num_validation_subjects=1,
        encoding_model=None,
    )


def launch(
    folder: Path, arguments: Sequence[str], num_processes: int, stop: int = -1
) -> subprocess.CompletedProcess[str]:
    """Run `mindllm` in several processes that gloo connects; `stop` ends them before a step."""
    script = folder / "program.py"
    script.write_text(PROGRAM)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={num_processes}", str(script), *arguments, str(stop)]
    env = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env=env, timeout=300
    )


def check_same_training(one: Path, two: Path) -> None:
    tables = [read_rows(folder / "training.csv") for folder in (one, two)]
    assert [row["step"] for row in tables[1]] == [str(step) for step in range(1, 9)]
    for one_row, two_row in zip(*tables, strict=True):
        assert bool(one_row["val_loss"]) == bool(two_row["val_loss"])
        for name in ("loss", "val_loss"):
            if one_row[name]:
                assert float(one_row[name]) == pytest.approx(float(two_row[name]), abs=1e-5)
    tensors = [
        weights(folder) | load_file(folder / "adapter" / "adapter_model.safetensors")
        for folder in (one, two)
    ]
    assert tensors[0].keys() == tensors[1].keys()
    for name, tensor in tensors[0].items():
        if name != KEY_BIAS:
            torch.testing.assert_close(tensors[1][name], tensor, atol=1e-5, rtol=0)


@pytest.mark.slow
def test_two_processes_train_as_one(
    tmp_path: Path, tiny_store: Store, tiny_llm_folder: Path
) -> None:
    """Also where one goes on after two were stopped, at step 5, with a checkpoint after 3."""
    config = options(tiny_llm_folder)
    (tmp_path / "options.json").write_text(config.model_dump_json())
    train(tiny_store, tmp_path / "one", config)
    arguments = ["train", str(tiny_store.path), "--config", str(tmp_path / "options.json"), "--out"]
    done = launch(tmp_path, [*arguments, str(tmp_path / "two")], 2)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("training.png") == 1
    check_same_training(tmp_path / "one", tmp_path / "two")
    stopped = launch(tmp_path, [*arguments, str(tmp_path / "both")], 2, stop=5)
    assert stopped.returncode != 0
    assert (tmp_path / "both" / "training" / "state.safetensors").exists(), stopped.stderr
    train(tiny_store, tmp_path / "both", config, resume=True)
    check_same_training(tmp_path / "one", tmp_path / "both")
    history = json.loads((tmp_path / "both" / "training.json").read_text())["history"]
    assert [entry["step"] for entry in history] == [4, 5, 8]


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("num_processes", [1, 2, 3])
def test_no_sample_is_drawn_twice_or_left_out_over_the_processes(
    tiny_store: Store, tiny_llm_folder: Path, stage: Stage, num_processes: int
) -> None:
    trainer = Trainer(tiny_store, tiny_store.subjects, options(tiny_llm_folder, 6))
    trainer.config.num_validation_subjects = 0
    for step in range(3):
        trainer.state.step = step
        parts = trainer.draw_batch(stage)
        shares = [parts[rank::num_processes] for rank in range(num_processes)]
        assert len({len(share) for share in shares}) == 1
        indices = [part.index for share in shares for part in share]
        assert sorted(indices) == list(range(len(parts)))
        assert sum(part.weight for part in parts) == pytest.approx(1)
        size = min(trainer.config.stage(stage).batch_size * 6, len(trainer.data.training))
        assert sum(len(part.trials.stimuli) for part in parts) == size
        trials = [key for part in parts for key in part.trials.source_trials if key]
        assert len(set(trials)) == len(trials)


def test_processes_that_cannot_share_a_step_alike(tiny_llm_folder: Path) -> None:
    check_processes(options(tiny_llm_folder, 4), 2)
    with pytest.raises(InputError, match=r"3 processes share .*_accumulation_steps 4. Choose a m"):
        check_processes(options(tiny_llm_folder, 4), 3)
