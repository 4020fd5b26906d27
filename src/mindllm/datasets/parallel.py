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

from mindllm.data.store_writer import StoreWriter, cast_betas, check_dtype, write_array_header
from mindllm.fmri.masker import VoxelMasker
from mindllm.utils.errors import InputError
from mindllm.utils.files import atomic_write, remove_folder
from mindllm.utils.progress import progress_bar


@dataclass(frozen=True)
class SessionReader:
    """One session: `read` gives its betas (trials, voxels); `rows` are its trials' numbers in the person's table."""

    name: str
    rows: np.ndarray
    read: Callable[[], np.ndarray]


@dataclass(frozen=True)
class SubjectRecording:
    """One person's part of a data set: the voxels, one row per trial, and the sessions that hold the betas.

    ncsnr: (V,) noise ceiling signal-to-noise ratio as published with the data, NaN where unknown; None: not published.
    """

    masker: VoxelMasker
    trials: pd.DataFrame
    sessions: Sequence[SessionReader]
    ncsnr: np.ndarray | None = field(default=None)


def write_recordings(
    writer: StoreWriter,
    recordings: Sequence[SubjectRecording],
    dtype: str,
    *,
    n_jobs: int = 1,
    dask_scheduler: str | None = None,
    progress: Progress | None = None,
) -> None:
    """Read what is not there yet, and write each person as soon as all of their sessions are read.

    workers: processes at once; dask: the address of a scheduler, whose workers they then are. Raises InputError for a
    damaged file, a full disk, or a worker that was killed; run the same call again, it goes on.
    """
    check_dtype(dtype)
    left = [
        recording for recording in recordings if not writer.has_subject(recording.masker.subject)
    ]
    folder = writer.partial / "sessions"
    jobs = [
        ReadTask(
            session,
            folder / recording.masker.subject / f"{n:03d}.npy",
            len(recording.masker),
            dtype,
            recording.masker.subject,
        )
        for recording in left
        for n, session in enumerate(recording.sessions)
    ]
    todo = [job for job in jobs if not job.file.exists()]
    with progress_bar(progress, "reading sessions", len(jobs), len(jobs) - len(todo)) as advance:

        def put_together(recording: SubjectRecording) -> None:
            name = recording.masker.subject
            advance(0, f"putting {name} together")
            parts = iter_chunks([job for job in jobs if job.subject == name])
            writer.write_subject(
                recording.masker, recording.trials, parts, dtype, ncsnr=recording.ncsnr
            )
            remove_folder(folder / name, within=folder)

        waiting = Counter(job.subject for job in todo)
        for recording in left:
            if not waiting[recording.masker.subject]:
                put_together(recording)
        whose = {recording.masker.subject: recording for recording in left}
        for job in run_tasks(todo, n_jobs, dask_scheduler):
            advance(1, f"reading sessions ({job.session.name} is done)")
            waiting[job.subject] -= 1
            if not waiting[job.subject]:
                put_together(whose[job.subject])
    remove_folder(folder, within=writer.partial)


@dataclass(frozen=True)
class ReadTask:
    """A session to be kept in `file`, as `dtype`, for a subject of so many voxels."""

    session: SessionReader
    file: Path
    voxels: int
    dtype: str
    subject: str

    def run(self) -> Self:
        """Read the session and write it, whole or not at all."""
        name, rows = self.session.name, self.session.rows
        betas = cast_betas(self.session.read(), self.voxels, self.dtype, name)
        if len(betas) != len(rows):
            raise InputError(f"{name} has {len(betas)} trials; its table promises {len(rows)}.")
        with atomic_write(self.file) as path, path.open("wb") as array:
            write_array_header(array, betas.dtype, betas.shape)
            array.write(
                np.ascontiguousarray(betas).data
            )  # numpy's own writer does not tell that the last bytes found no room
        return self


def run_tasks(
    tasks: Sequence[ReadTask], n_jobs: int, dask_scheduler: str | None
) -> Iterator[ReadTask]:
    """Keep all sessions, several at once; yield each as it is done."""
    with joblib_backend(dask_scheduler):
        pool = joblib.Parallel(
            n_jobs=-1 if dask_scheduler else n_jobs,
            return_as="generator_unordered",
            max_nbytes=None,
        )
        try:
            yield from pool(joblib.delayed(job.run)() for job in tasks)
        except (TerminatedWorkerError, MemoryError) as error:
            raise InputError(
                "a worker was killed, most likely because memory ran out. Take fewer workers (--n-jobs) and run the same command again: it goes on where it stopped."
            ) from error


def iter_chunks(
    jobs: Sequence[ReadTask], size: int = 64
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The betas that were kept, a few trials at a time: (rows, betas (b, V))."""
    for job in jobs:
        betas = np.load(job.file, mmap_mode="r")
        for start in range(0, len(betas), size):
            yield job.session.rows[start : start + size], np.asarray(betas[start : start + size])


@contextmanager
def joblib_backend(dask_scheduler: str | None) -> Iterator[None]:
    """Where joblib runs: here, or on the workers of a dask scheduler."""
    if dask_scheduler is None:
        yield
        return
    try:
        from distributed import Client
    except ImportError as error:
        raise InputError(
            "--dask-scheduler needs the package distributed: pip install 'mindllm[dask]'."
        ) from error
    try:
        client = Client(dask_scheduler, timeout="10s")
    except (OSError, ValueError) as error:
        raise InputError(
            f"there is no dask scheduler at {dask_scheduler} ({error}). Start one, or leave --dask-scheduler out."
        ) from error
    with client, joblib.parallel_config(backend="dask"):
        yield
