"""Ctrl-C and SIGTERM end a command within seconds, with one sentence, and leave no process."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

PARALLEL = """
import sys
from pathlib import Path
import numpy as np
from mindllm import cli
from mindllm.datasets.parallel import ReadTask, SessionReader, run_tasks

folder = Path(sys.argv[2])
def read(folder=folder):
    import os, time
    (folder / str(os.getpid())).touch()
    time.sleep(60)

session = SessionReader("1", np.arange(2), read)
tasks = [ReadTask(session, folder / f"{n}.npy", 3, "float32", "sub-01") for n in range(4)]
cli.app = lambda: list(run_tasks(tasks, 2, None))
cli.main()
"""
BUSY = """
import hashlib, sys
from pathlib import Path
from mindllm import cli

def compute():
    (Path(sys.argv[2]) / "1").touch()
    (Path(sys.argv[2]) / "2").touch()
    # A single call, in which Python handles no signal.
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)

cli.app = compute
cli.main()
"""


def begin(code: str, command: str, folder: Path) -> subprocess.Popen[str]:
    """Start a command that computes for long, and wait until it does."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, command, str(folder)], stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 90
    while len(list(folder.iterdir())) < 2:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, "it did not begin"
        time.sleep(0.1)
    return process


def wait_until_gone(processes: list[psutil.Process], seconds: float) -> None:
    _, alive = psutil.wait_procs(processes, timeout=seconds)
    assert not alive


@pytest.mark.parametrize(
    ("number", "name"), [(signal.SIGINT, "Ctrl-C"), (signal.SIGTERM, "SIGTERM")]
)
def test_a_signal_ends_a_command_and_its_workers(
    tmp_path: Path, number: signal.Signals, name: str
) -> None:
    process = begin(PARALLEL, "prepare", tmp_path)
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= 2
    process.send_signal(number)
    _, err = process.communicate(timeout=10)
    assert process.returncode == 128 + number
    assert err.strip() == (
        f"ended by {name}: sessions that were read are kept; run the same command again: "
        "it goes on where it stopped."
    )
    wait_until_gone(children, 5)


def test_workers_end_with_a_process_that_is_killed(tmp_path: Path) -> None:
    process = begin(PARALLEL, "prepare", tmp_path)
    children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.communicate(timeout=20)
    wait_until_gone(children, 10)


def test_a_command_that_does_not_end_itself_is_ended(tmp_path: Path) -> None:
    process = begin(BUSY, "train", tmp_path)
    os.kill(process.pid, signal.SIGTERM)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 143
    assert err.strip().startswith("ended by SIGTERM: the last checkpoint")


def test_a_signal_is_handled_as_before_after_a_command() -> None:
    from mindllm.cli.interruption import interruptible

    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with interruptible():
        assert signal.getsignal(signal.SIGINT) != before[0]
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before
