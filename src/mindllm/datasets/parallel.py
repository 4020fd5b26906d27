"""Sessions read side by side, each into a file of its own that is whole or absent, then put together person by person.

joblib runs the readers, on this machine's cores or, unchanged, on a cluster through its dask backend; the workers must then
see the same files. What an earlier call has finished is not read again.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import joblib
import numpy as np
import pandas as pd
from joblib.externals.loky.process_executor import TerminatedWorkerError
from rich.progress import Progress

from mindllm.data.store_writer import StoreWriter, begin_array, check_dtype, fit
from mindllm.fmri.masker import VoxelSpace
from mindllm.utils.errors import InputError
from mindllm.utils.files import remove_folder, whole_file
from mindllm.utils.progress import counting


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
    jobs = [
        Job(session, folder / recording.space.name / f"{n:03d}.npy", len(recording.space), dtype, recording.space.name)
        for recording in left
        for n, session in enumerate(recording.sessions)
    ]
    todo = [job for job in jobs if not job.file.exists()]
    with counting(progress, "reading sessions", len(jobs), len(jobs) - len(todo)) as advance:

        def put_together(recording: Recording) -> None:
            name = recording.space.name
            advance(0, f"putting {name} together")
            parts = pieces([job for job in jobs if job.subject == name])
            writer.subject(recording.space, recording.trials, parts, dtype, ncsnr=recording.ncsnr)
            remove_folder(folder / name, within=folder)

        waiting = Counter(job.subject for job in todo)
        for recording in left:
            if not waiting[recording.space.name]:
                put_together(recording)
        whose = {recording.space.name: recording for recording in left}
        for job in run(todo, workers, dask):
            advance(1, f"reading sessions ({job.session.name} is done)")
            waiting[job.subject] -= 1
            if not waiting[job.subject]:
                put_together(whose[job.subject])
    remove_folder(folder, within=writer.partial)


@dataclass(frozen=True)
class Job:
    """A session to be kept in `file`, as `dtype`, for a subject of so many voxels."""

    session: Session
    file: Path
    voxels: int
    dtype: str
    subject: str

    def keep(self) -> Self:
        """Read the session and write it, whole or not at all."""
        name, rows = self.session.name, self.session.rows
        betas = fit(self.session.read(), self.voxels, self.dtype, name)
        if len(betas) != len(rows):
            raise InputError(f"{name} has {len(betas)} trials; its table promises {len(rows)}.")
        with whole_file(self.file) as path, path.open("wb") as array:
            begin_array(array, betas.dtype, betas.shape)
            array.write(
                np.ascontiguousarray(betas).data
            )  # numpy's own writer does not tell that the last bytes found no room
        return self


def run(jobs: Sequence[Job], workers: int, dask: str | None) -> Iterator[Job]:
    """Keep all sessions, several at once; yield each as it is done."""
    with backend(dask):
        pool = joblib.Parallel(n_jobs=-1 if dask else workers, return_as="generator_unordered", max_nbytes=None)
        try:
            yield from pool(joblib.delayed(job.keep)() for job in jobs)
        except (TerminatedWorkerError, MemoryError) as error:
            raise InputError(
                "a worker was killed, most likely because memory ran out. Take fewer workers (--workers) and run the same command again: it goes on where it stopped."
            ) from error


def pieces(jobs: Sequence[Job], size: int = 64) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The betas that were kept, a few trials at a time: (rows, betas (b, V))."""
    for job in jobs:
        betas = np.load(job.file, mmap_mode="r")
        for start in range(0, len(betas), size):
            yield job.session.rows[start : start + size], np.asarray(betas[start : start + size])


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
    except (OSError, ValueError) as error:
        raise InputError(f"there is no dask scheduler at {dask} ({error}). Start one, or leave --dask out.") from error
    with client, joblib.parallel_config(backend="dask"):
        yield
