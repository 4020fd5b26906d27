"""Sessions read side by side, each into a file of its own that is whole or absent, then put together person by person.

joblib runs the readers, on this machine's cores or, unchanged, on a cluster through its dask backend; the workers must then
see the same files. What an earlier call has finished is not read again.
"""

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
from joblib.externals.loky.process_executor import TerminatedWorkerError
from rich.progress import Progress

from mindllm.data.writer import StoreWriter, begin_array, check_dtype, fit
from mindllm.errors import InputError
from mindllm.files import disk_errors, whole_file
from mindllm.progress import counting
from mindllm.voxels import VoxelSpace


@dataclass(frozen=True)
class Session:
    """One session: `read` gives its betas (trials, voxels); `rows` are its trials' numbers in the person's table."""

    name: str
    rows: np.ndarray
    read: Callable[[], np.ndarray]


@dataclass(frozen=True)
class Recording:
    """One person's part of a data set: the voxels, one row per trial, and the sessions that hold the betas.

    ncsnr: (V,) noise ceiling signal-to-noise ratio as published with the data, NaN where unknown; None: not published.
    """

    space: VoxelSpace
    trials: pd.DataFrame
    sessions: Sequence[Session]
    ncsnr: np.ndarray | None = field(default=None)


def write_recordings(
    writer: StoreWriter,
    recordings: Sequence[Recording],
    dtype: str,
    *,
    workers: int = 1,
    dask: str | None = None,
    progress: Progress | None = None,
) -> None:
    """Read what is not there yet, and write each person as soon as all of their sessions are read.

    workers: processes at once; dask: the address of a scheduler, whose workers they then are. Raises InputError for a
    damaged file, a full disk, or a worker that was killed; run the same call again, it goes on.
    """
    check_dtype(dtype)
    left = [recording for recording in recordings if not writer.has(recording.space.name)]
    folder = writer.partial / "sessions"
    jobs, files = [], {}
    for number, recording in enumerate(left):
        place = folder / recording.space.name
        with disk_errors(writer.path):
            place.mkdir(parents=True, exist_ok=True)
        for n, session in enumerate(recording.sessions):
            files[number, n] = place / f"{n:03d}.npy"
            if not files[number, n].exists():
                jobs.append((session, files[number, n], len(recording.space), dtype, number))
    missing = {number: sum(job[-1] == number for job in jobs) for number in range(len(left))}
    with counting(progress, "reading sessions", len(files), len(files) - len(jobs)) as advance:

        def put_together(number: int) -> None:
            recording, parts = left[number], [files[number, n] for n in range(len(left[number].sessions))]
            advance(0, f"putting {recording.space.name} together")
            rows = [session.rows for session in recording.sessions]
            writer.subject(recording.space, recording.trials, pieces(parts, rows), dtype, ncsnr=recording.ncsnr)
            shutil.rmtree(folder / recording.space.name)

        for number in [n for n in missing if not missing[n]]:
            put_together(number)
        for number, name in run(jobs, workers, dask):
            advance(1, f"reading sessions ({name} is done)")
            missing[number] -= 1
            if not missing[number]:
                put_together(number)
    shutil.rmtree(folder, ignore_errors=True)


def run(jobs: Sequence[tuple[Any, ...]], workers: int, dask: str | None) -> Iterator[tuple[int, str]]:
    """Keep all sessions, several at once; yield what `keep` says of each as it is done."""
    with backend(dask):
        pool = joblib.Parallel(n_jobs=-1 if dask else workers, return_as="generator_unordered", max_nbytes=None)
        try:
            yield from pool(joblib.delayed(keep)(*job) for job in jobs)
        except (TerminatedWorkerError, MemoryError) as error:
            raise InputError(
                "a worker was killed, most likely because memory ran out. Take fewer workers (--workers) and run the same command again: it goes on where it stopped."
            ) from error


def keep(session: Session, file: Path, voxels: int, dtype: str, number: int) -> tuple[int, str]:
    """Read one session and write it, whole or not at all."""
    betas = fit(session.read(), voxels, dtype, session.name)
    if len(betas) != len(session.rows):
        raise InputError(f"{session.name} has {len(betas)} trials; its table promises {len(session.rows)}.")
    with whole_file(file) as path, path.open("wb") as array:
        begin_array(array, betas.dtype, betas.shape)
        array.write(
            np.ascontiguousarray(betas).data
        )  # numpy's own writer does not tell that the last bytes found no room
    return number, session.name


def pieces(
    files: Sequence[Path], rows: Sequence[np.ndarray], size: int = 64
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The betas that were read, a few trials at a time: (rows, betas (b, V))."""
    for file, places in zip(files, rows, strict=True):
        betas = np.load(file, mmap_mode="r")
        for start in range(0, len(betas), size):
            yield places[start : start + size], np.asarray(betas[start : start + size])


@contextmanager
def backend(dask: str | None) -> Iterator[None]:
    """Where joblib runs: here, or on the workers of a dask scheduler."""
    if dask is None:
        yield
        return
    try:
        from distributed import Client
    except ImportError as error:
        raise InputError("--dask needs the package distributed: pip install 'mindllm[dask]'.") from error
    try:
        client = Client(dask, timeout="10s")
    except OSError as error:
        raise InputError(f"there is no dask scheduler at {dask} ({error}). Start one, or leave --dask out.") from error
    with client, joblib.parallel_config(backend="dask"):
        yield
