"""Of two processes that write one output, one works and the other says who does."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mindllm.utils.errors import InputError
from mindllm.utils.locks import lock_output, lock_path

HOLD = """
import sys, time
from mindllm.utils.locks import lock_output
with lock_output(sys.argv[1]):
    print("locked", flush=True)
    time.sleep(60)
"""


def hold(path: Path) -> subprocess.Popen[str]:
    """Start a process that holds the lock of an output, and wait until it does."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "locked\n"
    return process


def test_the_second_process_names_the_first_and_takes_over_when_it_was_killed(
    tmp_path: Path,
) -> None:
    out = tmp_path / "store"
    holder = hold(out)
    try:
        with pytest.raises(InputError) as error, lock_output(out):
            pass
        assert f"{out} is being written by process {holder.pid} on {os.uname().nodename}" in str(
            error.value
        )
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    assert lock_path(out).exists()  # a stale lock
    with lock_output(out):
        assert lock_path(out).exists()
    assert list(tmp_path.iterdir()) == []


def test_the_same_process_may_lock_again_and_nothing_is_left(tmp_path: Path) -> None:
    out = tmp_path / "new" / "folder" / "store"
    with lock_output(out):
        with lock_output(tmp_path / "new" / ".." / "new" / "folder" / "store"):
            assert lock_path(out).exists()
        assert lock_path(out).exists()
    assert list(tmp_path.iterdir()) == []


def test_a_lock_is_released_when_the_block_fails(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), lock_output(tmp_path / "store"):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
