"""Two processes train as one does: the same step, the same losses, one writer."""

import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from mindllm.data.store import Store
from mindllm.training import parallel
from mindllm.training.configuration import Stage, StageConfig, TrainConfig, check_processes
from mindllm.training.loggers import read_rows
from mindllm.training.parallel import select_share
from mindllm.training.trainer import Trainer, train
from mindllm.utils.errors import InputError
from tests.training.test_trainer import SIZES, weights

STAGES: list[Stage] = ["alignment", "instruction_tuning"]
# The same is added to all keys, which the softmax ignores: its gradient is rounding alone, of which
# Adam makes steps.
KEY_BIAS = "encoder.coord_proj.0.bias"
LAUNCHERS = {
    "torchrun": ["torch.distributed.run", "--standalone", "--nproc-per-node=2"],
    "accelerate": ["accelerate.commands.launch", "--multi_gpu", "--num_processes=2"],
    "fsdp": ["accelerate.commands.launch", "--use_fsdp", "--fsdp_version=2", "--num_processes=2"],
}
NUM_STEPS = 16  # of both stages
PROGRAM = """
import json, sys
from mindllm.data.store import Store
from mindllm.training.configuration import TrainConfig
from mindllm.training.trainer import Trainer

store, config = Store(sys.argv[1]), TrainConfig.model_validate_json(open(sys.argv[2]).read())
trainer = Trainer(store, store.subjects, config)

def local(tensor):
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor

for stage in ("alignment", "instruction_tuning"):
    module, optimizer = trainer.prepare_stage(stage)
    trainer.take_step(stage, module, optimizer)
    parameters = [(n, p) for n, p in module.named_parameters() if p.ndim]
    tensors = {
        "language_model": [p for n, p in parameters if "language_model" in n],
        "encoder": [p for n, p in parameters if "encoder" in n],
        "moments": [s["exp_avg"] for s in trainer.optimizer.state.values() if s["exp_avg"].ndim],
    }
    print(json.dumps({
        "rank": trainer.accelerator.process_index,
        "stage": stage,
        "whole": {name: sum(t.numel() for t in part) for name, part in tensors.items()},
        "held": {name: sum(local(t).numel() for t in part) for name, part in tensors.items()},
    }), flush=True)
"""


def options(llm: Path, num_parts: int = 2) -> TrainConfig:
    """All noise and dropout on: draws depend on the seed, the step and the micro batch alone."""
    align, tune = (
        StageConfig(
            max_steps=NUM_STEPS // 2, batch_size=size, gradient_accumulation_steps=num_parts
        )
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


@dataclass(frozen=True)
class Trainings:
    """What the tests of launched trainings share: a store, options, and a training by one process.

    Parameters
    ----------
    folder : Path
    store : Store
    config : TrainConfig
    """

    folder: Path
    store: Store
    config: TrainConfig

    def launch(self, launcher: str, name: str, *, kill_at: int = -1, resume: bool = False) -> str:
        """Run `mindllm train` in two processes; kill -9 all of them once so many steps are logged.

        Returns what it printed.
        """
        command = [sys.executable, "-m", *LAUNCHERS[launcher], "-m", "mindllm.cli", "train"]
        command += [str(self.store.path), "--config", str(self.folder / "options.json")]
        command += ["--out", str(self.folder / name)] + ["--resume"] * resume
        env = os.environ | {"OMP_NUM_THREADS": "1"}
        output = self.folder / f"{name}.txt"
        with output.open("w") as file:
            process = psutil.Popen(command, stdout=file, stderr=file, env=env)
        csv, started = self.folder / name / "training.csv", time.time()
        deadline = time.monotonic() + 300
        while process.poll() is None:
            assert time.monotonic() < deadline, output.read_text()
            is_written = csv.exists() and csv.stat().st_mtime > started  # by this launch
            if is_written and 0 <= kill_at < csv.read_text().count("\n"):
                for part in [*process.children(recursive=True), process]:
                    with suppress(psutil.NoSuchProcess):
                        part.kill()
            time.sleep(0.002)
        assert (process.wait() == 0) == (kill_at < 0), output.read_text()
        return output.read_text()

    def resume_alone(self, name: str) -> None:
        """Go on with a training in this process, which is the only one."""
        train(self.store, self.folder / name, self.config, resume=True)

    def checkpoint_step(self, name: str) -> int:
        """Steps of the checkpoint of an interrupted training, which is not finished."""
        assert not (self.folder / name / "config.json").exists()
        with safe_open(self.folder / name / "training" / "state.safetensors", "pt") as file:
            return int(json.loads(file.metadata()["trainer_state"])["step"])

    def check_same(self, one: str, two: str, tolerance: float) -> None:
        """Check that two trainings have the same losses and ended with the same weights."""
        folders = [self.folder / name for name in (one, two)]
        tables = [read_rows(folder / "training.csv") for folder in folders]
        assert [row["step"] for row in tables[1]] == [str(i + 1) for i in range(NUM_STEPS)]
        for one_row, two_row in zip(*tables, strict=True):
            assert bool(one_row["val_loss"]) == bool(two_row["val_loss"])
            for name in ("loss", "val_loss"):
                if one_row[name]:
                    expected = pytest.approx(float(two_row[name]), abs=tolerance)
                    assert float(one_row[name]) == expected
        tensors = [
            weights(folder) | load_file(folder / "adapter" / "adapter_model.safetensors")
            for folder in folders
        ]
        assert tensors[0].keys() == tensors[1].keys()
        for name, tensor in tensors[0].items():
            if name != KEY_BIAS:
                torch.testing.assert_close(tensors[1][name], tensor, atol=tolerance, rtol=0)
        steps = [
            [entry["step"] for entry in json.loads(text)["history"]]
            for text in ((folder / "training.json").read_text() for folder in folders)
        ]
        assert steps[0] == steps[1] == [5, 8, 10, 15, 16]


@pytest.fixture(scope="module")
def trainings(
    tmp_path_factory: pytest.TempPathFactory, tiny_store: Store, tiny_llm_folder: Path
) -> Trainings:
    config = options(tiny_llm_folder)
    folder = tmp_path_factory.mktemp("trainings")
    (folder / "options.json").write_text(config.model_dump_json())
    train(tiny_store, folder / "one", config)
    return Trainings(folder, tiny_store, config)


@pytest.fixture(scope="module")
def trained_by_two(trainings: Trainings) -> Trainings:
    printed = trainings.launch("torchrun", "two")
    assert printed.count("training.png") == 1  # one process writes
    return trainings


@pytest.mark.slow
def test_two_processes_train_as_one(trained_by_two: Trainings) -> None:
    trained_by_two.check_same("one", "two", tolerance=1e-5)


@pytest.mark.slow
def test_accelerate_launches_the_same_training(trained_by_two: Trainings) -> None:
    trained_by_two.launch("accelerate", "launched")
    trained_by_two.check_same("two", "launched", tolerance=0)


@pytest.mark.slow
def test_two_processes_killed_at_three_steps_go_on_to_the_same_weights(
    trained_by_two: Trainings,
) -> None:
    """To the bit with two processes throughout; to rounding alone, or sharded."""
    trainings = trained_by_two
    kills = sorted(np.random.default_rng(5).choice(np.arange(4, NUM_STEPS - 1), 3, replace=False))
    steps = []
    for number, kill_at in enumerate(kills):
        launcher = ("torchrun", "accelerate")[number % 2]
        trainings.launch(launcher, "killed", kill_at=int(kill_at), resume=number > 0)
        steps.append(trainings.checkpoint_step("killed"))
        shutil.copytree(trainings.folder / "killed", trainings.folder / f"killed-{number}")
    assert steps == sorted(steps)
    assert steps[-1] > 0
    trainings.launch("accelerate", "killed", resume=True)
    trainings.check_same("two", "killed", tolerance=0)
    for number in range(2):
        trainings.resume_alone(f"killed-{number}")
    trainings.launch("fsdp", "killed-2", resume=True)
    for number in range(3):
        trainings.check_same("one", f"killed-{number}", tolerance=1e-5)


@pytest.mark.slow
def test_sharded_processes_train_as_one(trainings: Trainings) -> None:
    """FSDP2; its checkpoints are complete: one process goes on from them, too."""
    trainings.launch("fsdp", "sharded", kill_at=10)
    assert trainings.checkpoint_step("sharded") >= 9
    shutil.copytree(trainings.folder / "sharded", trainings.folder / "from-sharded")
    printed = trainings.launch("fsdp", "sharded", resume=True)
    assert printed.count("training.png") == 1
    trainings.check_same("one", "sharded", tolerance=1e-5)
    trainings.resume_alone("from-sharded")
    trainings.check_same("one", "from-sharded", tolerance=1e-5)


@pytest.mark.slow
def test_each_process_holds_half_of_what_is_sharded(trainings: Trainings) -> None:
    """Moments and weights, language model included, in both stages, and the same gradients."""
    script = trainings.folder / "program.py"
    script.write_text(PROGRAM)
    arguments = [str(trainings.store.path), str(trainings.folder / "options.json")]
    command = [sys.executable, "-m", *LAUNCHERS["fsdp"], str(script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert {(line["rank"], line["stage"]) for line in lines} == {
        (rank, stage) for rank in range(2) for stage in STAGES
    }
    for stage in STAGES:
        parts = [line for line in lines if line["stage"] == stage]
        for name in ("language_model", "encoder", "moments"):
            whole = parts[0]["whole"][name]
            assert whole > 0
            assert sum(part["held"][name] for part in parts) == whole
            assert max(part["held"][name] for part in parts) < 0.6 * whole


@pytest.mark.parametrize("stage", STAGES)
def test_no_trial_is_read_twice_or_left_out_over_the_processes(
    tiny_store: Store, tiny_llm_folder: Path, stage: Stage
) -> None:
    """Without mixing, each trial of a step is in one sample: counted for 1 to 4 processes."""
    config = options(tiny_llm_folder, 12)
    config.num_validation_subjects = 0
    trainer = Trainer(tiny_store, tiny_store.subjects, config)
    config.mixup_prob = config.repetition_noise_scale = 0.0
    size = min(12 * config.stage(stage).batch_size, len(trainer.data.training))
    for trainer.state.step in range(3):
        parts = trainer.draw_batch(stage)
        for num_processes in (1, 2, 3, 4):
            shares = [select_share(parts, rank, num_processes) for rank in range(num_processes)]
            assert [len(share) for share in shares] == [12 // num_processes] * num_processes
            assert sum(part.weight for share in shares for part in share) == pytest.approx(1)
            trials = [
                (group.subject, int(row))
                for share in shares
                for part in share
                for group in part.trials.subjects
                for row in group.trial_indices
            ]
            assert len(trials) == len(set(trials)) == size
            samples = [key for share in shares for p in share for key in p.trials.source_trials]
            assert sorted(samples) == sorted(trials)


def test_processes_that_cannot_share_a_step_alike(tiny_llm_folder: Path) -> None:
    check_processes(options(tiny_llm_folder, 4), 2)
    with pytest.raises(InputError, match=r"3 processes share .*_accumulation_steps 4. Choose a m"):
        check_processes(options(tiny_llm_folder, 4), 3)
    with pytest.raises(InputError, match="5 micro batches, which 2 processes cannot share alike"):
        select_share(range(5), 0, 2)


def test_processes_that_would_train_alone(
    tiny_store: Store, tiny_llm_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")  # without a process to meet
    monkeypatch.setattr(parallel, "default_device", lambda: "cuda")
    with pytest.raises(InputError, match="2 processes were launched, but Accelerate connects 1"):
        Trainer(tiny_store, tiny_store.subjects, options(tiny_llm_folder))


def test_fsdp_of_version_1_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert parallel.sharding_plugin() is None  # one process holds all
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="parameters are sharded by version 2"):
        parallel.sharding_plugin()
    monkeypatch.setenv("FSDP_VERSION", "2")
    assert parallel.sharding_plugin().fsdp_version == 2
