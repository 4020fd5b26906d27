"""Faults, by which the tests are tested: each happens at the third mutation."""

import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial as bind
from pathlib import Path

import numpy as np

from mindllm.utils.errors import InputError
from tests.fuzz.engine import MEBIBYTES, Case
from tests.fuzz.mutations import flip_bits


def write(folder: Path) -> Path:
    (folder / "zeros.txt").write_text("0" * 100)
    return folder / "zeros.txt"


def fail(do: Callable[[Path], object], folder: Path) -> object:
    calls = folder / "calls"
    with calls.open("a") as file:
        file.write("x")
    return do(calls) if calls.stat().st_size == 4 else None  # the valid file is the first


def refuse(message: str, file: Path) -> None:
    raise InputError(message.format(file))


FAULTS: Mapping[str, Callable[[Path], object]] = {
    "raises": lambda file: {}["missing"],
    "dies": lambda file: os.kill(os.getpid(), signal.SIGSEGV),
    "exits": lambda file: sys.exit(77),
    "hangs": lambda file: time.sleep(60),
    "grows": lambda file: b"x" * (MEBIBYTES + 200) * 2**20,
    "needs too much": lambda file: np.ones(2**36),
    "tells no file": bind(refuse, "something is wrong."),
    "tells in lines": bind(refuse, "{} is\nwrong."),
}
CASES = {name: Case(name, write, bind(fail, do), (flip_bits,)) for name, do in FAULTS.items()}
