"""Mutations are read in a child process, so that a death or a hang is an outcome like others."""

import contextlib
import importlib
import json
import logging
import os
import resource
import selectors
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import NamedTuple

from mindllm.utils.errors import InputError
from tests.fuzz.mutations import Mutation

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 10  # of one mutation
MEBIBYTES = 1024  # of one mutation, beyond what the process had before
MESSAGE_LENGTH = 2000
READ, REFUSED, FAULT = "read", "refused", "fault"


@dataclass(frozen=True)
class Case:
    """A format: a small valid file, what reads it, and how it is mutated.

    write: called with an empty folder; it returns the file that is mutated.
    read: called with the folder; the package's own way in.
    names_file: whether a refusal must name the file; some functions are given what was read.
    """

    name: str
    write: Callable[[Path], Path]
    read: Callable[[Path], object]
    mutations: Sequence[Mutation]
    names_file: bool = True


class Outcome(NamedTuple):
    """What became of a mutation."""

    case: str
    number: int
    kind: str
    seconds: float
    mebibytes: float
    detail: str


def mutate(case: Case, data: bytes, seed: int, number: int) -> bytes:
    """Make a mutation; it depends on the seed, the case and its number alone."""
    rng = Random(f"{seed}/{case.name}/{number}")
    mutation = case.mutations[number % len(case.mutations)]
    for _ in range(100):
        mutant = mutation(data, rng)
        if mutant != data:
            break
    return mutant


def peak_mebibytes() -> float:
    """Peak memory of this process; the system's own count begins with that of the parent."""
    with contextlib.suppress(OSError):
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return int(status.split("VmHWM:")[1].split()[0]) / 2**10
    scale = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale


def forget_peak() -> None:
    """Begin a new peak, where the system can do so."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def limit_memory() -> None:
    """Make allocations fail that a machine could not give, where the system can do so."""
    with contextlib.suppress(OSError, ValueError):
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        limit = pages * resource.getpagesize() + 4 * 2**30
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def problem_of(case: Case, message: str, folder: Path) -> str:
    """Say what is wrong with a message to users; nothing if it is in order."""
    if len(message) > MESSAGE_LENGTH:
        return f"the message has {len(message)} characters"
    if "\n" in message and "affine" not in message:  # a matrix has lines
        return "the message has several lines"
    if case.names_file and str(folder) not in message:
        return "the message names no file"
    return ""


def read_mutant(case: Case, folder: Path) -> tuple[str, str]:
    """Read a mutation: kind of the outcome, and the message."""
    try:
        case.read(folder)
    except InputError as error:
        problem = problem_of(case, str(error), folder)
        return (FAULT if problem else REFUSED), f"{problem}: {error}" if problem else str(error)
    except (Exception, SystemExit) as error:
        here = error.__traceback__
        lines = []
        while here is not None:
            name = here.tb_frame.f_code.co_filename
            lines.append(f"{Path(name).name}:{here.tb_lineno}")
            here = here.tb_next
        return FAULT, f"{type(error).__name__}: {str(error)[:300]} [{' '.join(lines[-7:])}]"
    return READ, ""


def read_mutants(case: Case, folder: Path, seed: int, numbers: Sequence[int]) -> None:
    """Read mutations one after the other, and report each on standard output."""
    folder.mkdir(parents=True)
    file = case.write(folder)
    valid = file.read_bytes()
    case.read(folder)  # a valid file must be read
    for number in numbers:
        print(f"start {case.name} {number}", flush=True)
        file.write_bytes(mutate(case, valid, seed, number))
        forget_peak()
        before, began = peak_mebibytes(), time.monotonic()
        kind, detail = read_mutant(case, folder)
        growth = peak_mebibytes() - before
        outcome = Outcome(case.name, number, kind, time.monotonic() - began, growth, detail)
        print(f"done {json.dumps(outcome)}", flush=True)


def main() -> None:
    """Read mutations in this process, which may die of it."""
    module, seed, jobs = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
    folder, cases = Path(sys.argv[4]), importlib.import_module(module).CASES
    warnings.simplefilter("ignore")
    logging.disable()
    limit_memory()
    tempfile.tempdir = str(folder)
    for position, (name, start, stop) in enumerate(jobs):
        read_mutants(cases[name], folder / str(position), seed, range(start, stop))


def run(
    module: str, count: int, seed: int, folder: Path, seconds: float = SECONDS
) -> list[Outcome]:
    """Read `count` mutations of each of a module's CASES.

    A child that dies or hangs is begun anew, behind the mutation that it was at.
    """
    outcomes: list[Outcome] = []
    jobs = [(name, 0, count) for name in importlib.import_module(module).CASES]
    attempt = 0
    while jobs:
        attempt += 1
        done, last, end = run_child(module, jobs, seed, folder / str(attempt), seconds)
        outcomes += done
        if last is None:
            assert end == "0", f"the child failed before a mutation: {end}"
            break
        name, number = last
        outcomes.append(Outcome(name, number, FAULT, 0.0, 0.0, f"the process ended: {end}"))
        position = [job[0] for job in jobs].index(name)
        jobs = [(name, number + 1, jobs[position][2]), *jobs[position + 1 :]]
        jobs = [job for job in jobs if job[1] < job[2]]
    return [
        outcome._replace(kind=FAULT, detail=f"too slow or large; {outcome.detail}")
        if outcome.seconds > seconds or outcome.mebibytes > MEBIBYTES
        else outcome
        for outcome in outcomes
    ]


def run_child(
    module: str, jobs: Sequence[tuple[str, int, int]], seed: int, folder: Path, seconds: float
) -> tuple[list[Outcome], tuple[str, int] | None, str]:
    """Run a child: the outcomes, the mutation in which it ended, and how it ended."""
    folder.mkdir(parents=True)
    command = [sys.executable, "-X", "faulthandler", "-m", "tests.fuzz.engine"]
    with (folder / "stderr.txt").open("wb") as errors:
        child = subprocess.Popen(
            [*command, module, str(seed), json.dumps(jobs), str(folder)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=errors,
            env={
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), *sys.path]),
            },
        )
        outcomes, last, end = watch(child, seconds)
    if end != "0" and last is None:
        end += (folder / "stderr.txt").read_text(encoding="utf-8", errors="replace")[-3000:]
    return outcomes, last, end


def watch(
    child: subprocess.Popen[bytes], seconds: float
) -> tuple[list[Outcome], tuple[str, int] | None, str]:
    """Read a child's reports; one that is silent for too long in a mutation is killed."""
    outcomes: list[Outcome] = []
    last: tuple[str, int] | None = None
    assert child.stdout is not None
    selector = selectors.DefaultSelector()
    selector.register(child.stdout, selectors.EVENT_READ)
    pending, end = b"", ""
    while not end:
        # What comes before a mutation, such as imports, may take longer.
        if not selector.select(120 if last is None else seconds + 1):
            child.kill()
            end = f"silent for more than {seconds} s"
            break
        chunk = os.read(child.stdout.fileno(), 2**16)
        if not chunk:
            break
        *lines, pending = (pending + chunk).split(b"\n")
        for line in lines:
            event, _, content = line.decode().partition(" ")
            if event == "start":
                name, number = content.rsplit(" ", 1)
                last = (name, int(number))
            elif event == "done":
                outcomes.append(Outcome(*json.loads(content)))
                last = None
    status = child.wait()
    child.stdout.close()
    return outcomes, last, end or str(status)


if __name__ == "__main__":
    main()
