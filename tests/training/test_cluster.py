"""A training as a job: what Slurm is asked for, and a job that is interrupted and goes on."""

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from mindllm.cli import app
from mindllm.data.store import Store
from mindllm.training.cluster import JobResources, TrainingJob, parse_slurm_options, submit
from mindllm.training.configuration import TrainConfig
from mindllm.training.loggers import read_rows
from mindllm.training.trainer import train
from mindllm.utils.errors import InputError
from tests.training.test_processes import options
from tests.training.test_trainer import same, weights

SBATCH = """#!/bin/sh
for file; do cp "$file" {copy}; done
echo Submitted batch job 4242
"""


def make_job(tmp_path: Path, store: Store, config: TrainConfig) -> TrainingJob:
    return TrainingJob(store.path, tmp_path / "model", None, config, None)


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Programs of the names of Slurm's; the file is what sbatch was given."""
    programs, copy = tmp_path / "bin", tmp_path / "submission.sh"
    programs.mkdir()
    for name in ("srun", "squeue", "sacct", "scontrol"):
        (programs / name).write_text("#!/bin/sh\n")
    (programs / "sbatch").write_text(SBATCH.format(copy=copy))
    for program in programs.iterdir():
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    return copy


def test_what_slurm_is_asked_for(
    tmp_path: Path, tiny_store: Store, tiny_llm_folder: Path, slurm: Path
) -> None:
    resources = JobResources(
        partition="gpu",
        time_minutes=240,
        nodes=2,
        gpus_per_node=4,
        cpus_per_task=3,
        slurm_options=parse_slurm_options(["account=lab"]),
    )
    job = make_job(tmp_path, tiny_store, options(tiny_llm_folder))
    submitted = submit(job, "slurm", resources, tmp_path / "logs")
    assert submitted.job_id == "4242"
    assert submitted.stderr == tmp_path / "logs" / "4242_0_log.err"
    lines = [line for line in slurm.read_text().splitlines() if line.startswith("#SBATCH")]
    asked = dict(line.removeprefix("#SBATCH --").split("=", 1) for line in lines if "=" in line)
    expected = {
        "partition": "gpu",
        "time": "240",
        "nodes": "2",
        "gpus-per-node": "4",
        "ntasks-per-node": "4",
        "cpus-per-task": "3",
        "account": "lab",
        "job-name": "mindllm-model",
        "signal": "USR2@90",
    }
    assert expected.items() <= asked.items()
    assert resources.num_processes == 8


def test_the_command_says_where_the_log_is(
    tmp_path: Path,
    tiny_store: Store,
    tiny_llm_folder: Path,
    slurm: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "options.json").write_text(options(tiny_llm_folder).model_dump_json())
    command = ["train", str(tiny_store.path), "--config", str(tmp_path / "options.json")]
    command += ["--out", str(tmp_path / "model"), "--cluster", "slurm"]
    app([*command, "--gpus-per-node", "2"], standalone_mode=False)
    log = tmp_path / "model-jobs" / "4242_0_log.err"
    assert capsys.readouterr().out.split("\n")[:2] == ["job 4242 submitted", f"log: {log}"]
    assert "#SBATCH --gpus-per-node=2" in slurm.read_text()
    with pytest.raises(InputError, match="3 processes share the micro batches"):
        app([*command, "--gpus-per-node", "3"], standalone_mode=False)
    checkpoint = tmp_path / "model" / "training" / "state.safetensors"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.touch()
    with pytest.raises(InputError, match=r"holds an unfinished training\. Add --resume"):
        app([*command, "--gpus-per-node", "2"], standalone_mode=False)
    app([*command, "--gpus-per-node", "2", "--resume"], standalone_mode=False)


@pytest.mark.parametrize(
    "resources", [{"partition": "gpu"}, {"nodes": 2}, {"slurm_options": {"account": "lab"}}]
)
def test_this_machine_has_no_partitions(
    tmp_path: Path, tiny_store: Store, tiny_llm_folder: Path, resources: dict[str, Any]
) -> None:
    job = make_job(tmp_path, tiny_store, options(tiny_llm_folder))
    with pytest.raises(InputError, match="--cluster local is this machine alone"):
        submit(job, "local", JobResources(**resources), tmp_path / "logs")


def test_jobs_that_cannot_be_submitted(
    tmp_path: Path, tiny_store: Store, tiny_llm_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(tmp_path, tiny_store, options(tiny_llm_folder))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="slurm did not take the job"):
        submit(job, "slurm", JobResources(), tmp_path / "logs")
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(InputError, match=r"needs the package submitit: pip install 'mindllm\[sl"):
        submit(job, "slurm", JobResources(), tmp_path / "logs")


@pytest.mark.parametrize("option", ["account", "=lab", "account="])
def test_options_of_slurm_that_are_none(option: str) -> None:
    with pytest.raises(InputError, match=r"has no name or value; expected e\.g\. account=lab"):
        parse_slurm_options([option])


@pytest.mark.slow
def test_an_interrupted_job_is_queued_again_and_goes_on(
    tmp_path: Path, tiny_store: Store, tiny_llm_folder: Path
) -> None:
    """By submitit's local executor, with two processes, to the weights of no interruption."""
    config = options(tiny_llm_folder)
    config.alignment.max_steps = 120
    train(tiny_store, tmp_path / "one", config)
    job = make_job(tmp_path, tiny_store, config)
    submitted = submit(job, "local", JobResources(tasks_per_node=2), tmp_path / "logs")
    controller, deadline = psutil.Process(int(submitted.job_id)), time.monotonic() + 300
    table, is_interrupted = tmp_path / "model" / "training.csv", False
    while controller.is_running() and controller.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, submitted.stderr.read_text()
        if not is_interrupted and table.exists() and len(table.read_text().splitlines()) > 20:
            assert not (tmp_path / "model" / "config.json").exists()
            for process in controller.children():
                process.send_signal(signal.SIGUSR2)  # as Slurm does before it takes a machine
            is_interrupted = True
        time.sleep(0.01)
    log = submitted.stderr.read_text()
    assert "Exiting gracefully" in log or "Requeued job" in log, log
    assert "going on after step" in log
    assert "Job completed successfully" in log
    assert same(weights(tmp_path / "one"), weights(tmp_path / "model"))
    assert len(read_rows(table)) == 120 + config.instruction_tuning.max_steps
