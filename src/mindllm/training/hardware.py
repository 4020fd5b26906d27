"""GPUs as their makers describe them, and this machine's processor as it is measured."""

import time
from dataclasses import dataclass
from typing import Literal

import psutil
import torch

from mindllm.utils.errors import InputError

GIB = 2**30
Precision = Literal["float32", "bfloat16"]
MATRIX_SIZE = 1024  # of the matrices that a processor is timed with
MEASURE_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Hardware:
    """What a training runs on.

    Parameters
    ----------
    name : str
    memory_bytes : int
        Of one device.
    bandwidth : float
        Bytes per second between its memory and its processors.
    flops : dict of str to float
        Dense floating-point operations per second by data type, at best.
    efficiency : float
        Fraction of `flops` that a training step reaches.
    source : str
        Where the numbers come from.

    Examples
    --------
    >>> HARDWARE["rtx-4090"].memory_bytes / 2**30
    24.0
    """

    name: str
    memory_bytes: int
    bandwidth: float
    flops: dict[Precision, float]
    efficiency: float
    source: str


# A published training of a 7B model in bfloat16 reaches 0.58 of an H200 with 4,096 tokens a
# sample (Kempner Institute, KempnerForge benchmarks); samples here have about 200 tokens.
GPU_EFFICIENCY = 0.4
DATA_SHEET = "the maker's data sheet, dense rates; efficiency 0.4 is an assumption"


def gpu(name: str, gib: float, gb_per_s: float, bfloat16: float, float32: float) -> Hardware:
    """A GPU by its data sheet: GiB, GB/s and TFLOP/s."""
    flops: dict[Precision, float] = {"bfloat16": bfloat16 * 1e12, "float32": float32 * 1e12}
    return Hardware(name, int(gib * GIB), gb_per_s * 1e9, flops, GPU_EFFICIENCY, DATA_SHEET)


HARDWARE: dict[str, Hardware] = {
    hardware.name: hardware
    for hardware in (
        gpu("a10", 24, 600, 125, 31.2),
        gpu("l4", 24, 300, 121, 30.3),
        gpu("rtx-3090", 24, 936, 71, 35.6),
        gpu("rtx-4090", 24, 1008, 165.2, 82.6),
        gpu("rtx-5090", 32, 1792, 209.5, 104.8),
        gpu("a40", 48, 696, 149.7, 37.4),
        gpu("rtx-a6000", 48, 768, 154.8, 38.7),
        gpu("l40s", 48, 864, 362, 91.6),
        gpu("a100-40gb", 40, 1555, 312, 19.5),
        gpu("a100-80gb", 80, 2039, 312, 19.5),
        gpu("h100", 80, 3350, 989.4, 66.9),
        gpu("h200", 141, 4800, 989.4, 66.9),
    )
}


def find_hardware(name: str) -> Hardware:
    """A GPU of the table, or this machine's processor.

    Parameters
    ----------
    name : str
        A name of `HARDWARE`, or "cpu", which is measured.

    Returns
    -------
    Hardware

    Raises
    ------
    InputError
        If it is unknown.
    """
    if name == "cpu":
        return measure_processor()
    if name not in HARDWARE:
        raise InputError(
            f"unknown hardware {name!r}; known: {', '.join(HARDWARE)} and cpu (this machine). "
            "Take the nearest one, with --memory-gib and --tflops of yours."
        )
    return HARDWARE[name]


def measure_processor() -> Hardware:
    """Measure in two seconds how fast the processor of this machine multiplies and copies.

    Returns
    -------
    Hardware
    """
    flops: dict[Precision, float] = {}
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        matrix = torch.ones(MATRIX_SIZE, MATRIX_SIZE, dtype=dtype)
        calls = calls_per_second(lambda matrix=matrix: matrix @ matrix)
        flops["float32" if name == "float32" else "bfloat16"] = calls * 2 * MATRIX_SIZE**3
    source, target = torch.ones(2, 2**24)
    bandwidth = calls_per_second(lambda: target.copy_(source)) * 2 * source.nbytes
    return Hardware(
        f"cpu, {torch.get_num_threads()} threads",
        psutil.virtual_memory().total,
        bandwidth,
        flops,
        CPU_EFFICIENCY,
        "matrix products and copies measured now",
    )


# Rate of a training step over that of float32 matrix products of 1,024: an assumption.
CPU_EFFICIENCY = 0.6


def calls_per_second(function: object) -> float:
    """Rate of a call, over half a second after one to warm up."""
    assert callable(function)
    function()
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < MEASURE_SECONDS:
        function()
        count += 1
    return count / (time.perf_counter() - start)
