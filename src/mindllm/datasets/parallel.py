"""Sessions are read side by side, each into a file of its own, then joined subject by subject.

joblib runs the readers on this machine's cores, or through its dask backend on a cluster whose
workers see the same files. A session's file is complete or absent; a session that an earlier call
has read is not read again.
"""

import hashlib
import json
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from multiprocessing import current_process
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
from mindllm.utils.files import atomic_write
from mindllm.utils.folders import remove_folder
from mindllm.utils.progress import progress_bar

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SessionReader:
    """Reader of the betas of one session, or of another part of a subject's trials.

    Attributes
    ----------
    name : str
        Name of the session, for progress and messages.
    rows : np.ndarray
        Rows of its trials in the subject's trials table.
    read : callable
        Returns the betas (n_trials, n_voxels); it is pickled and called in another process.
    files : tuple of Path
        Files that it reads. What was read is kept for the next call while their sizes and times
        of change stay the same.
    """

    name: str
    rows: np.ndarray
    read: Callable[[], np.ndarray]
    files: tuple[Path, ...] = ()

    def fingerprint(self, voxels: VoxelMasker, dtype: str) -> str:
        """Tell what the betas of these voxels are made of.

        Parameters
        ----------
        voxels : VoxelMasker
        dtype : str
            How they are stored.

        Returns
        -------
        str
            Hexadecimal digits; others if a file, its size or time of change, a trial or a voxel is
            another.
        """
        present = [file for file in self.files if file.exists()]  # a missing one fails when read
        states = [(str(file.absolute()), file.stat()) for file in present]
        files = [(name, state.st_size, state.st_mtime_ns) for name, state in states]
        content = json.dumps([self.name, self.rows.tolist(), dtype, files])
        return hashlib.sha256(content.encode() + voxels.coords_mm.tobytes()).hexdigest()[:24]


@dataclass(frozen=True)
class SubjectRecording:
    """One subject's part of a data set.

    Attributes
    ----------
    masker : VoxelMasker
        The subject's voxels.
    trials : pd.DataFrame
        One row per trial.
    sessions : sequence of SessionReader
        Readers of the betas; together they read every trial once.
    ncsnr : np.ndarray, optional
        (n_voxels,) published noise ceiling signal-to-noise ratios, NaN where unknown.
    """

    masker: VoxelMasker
    trials: pd.DataFrame
    sessions: Sequence[SessionReader]
    ncsnr: np.ndarray | None = field(default=None)

    @property
    def subject(self) -> str:
        """Label of the subject."""
        return self.masker.subject


@dataclass(frozen=True)
class ReadTask:
    """A session to read, and the file to keep its betas in.

    Attributes
    ----------
    session : SessionReader
        What reads the betas.
    file : Path
        File of the array.
    n_voxels : int
        Voxels of the subject.
    dtype : str
        How the betas are stored.
    subject : str
        Label of the subject.
    """

    session: SessionReader
    file: Path
    n_voxels: int
    dtype: str
    subject: str

    def run(self) -> Self:
        """Read the session and write it, completely or not at all."""
        end_with_parent()
        name, rows = self.session.name, self.session.rows
        betas = cast_betas(self.session.read(), self.n_voxels, self.dtype, name)
        if len(betas) != len(rows):
            raise InputError(f"{name} has {len(betas)} trials; its table promises {len(rows)}.")
        with atomic_write(self.file) as path, path.open("wb") as array:
            write_array_header(array, betas.dtype, betas.shape)
            # numpy's own writer gives no error if the last bytes did not fit on the disk.
            array.write(np.ascontiguousarray(betas).data)
        return self


def write_recordings(
    writer: StoreWriter,
    recordings: Sequence[SubjectRecording],
    dtype: str,
    *,
    n_jobs: int = 1,
    dask_scheduler: str | None = None,
    progress: Progress | None = None,
) -> None:
    """Read the sessions that are not there yet; write a subject as soon as its sessions are read.

    Parameters
    ----------
    writer : StoreWriter
        The store to write to.
    recordings : sequence of SubjectRecording
        The subjects.
    dtype : {"float16", "float32"}
        How betas are stored.
    n_jobs : int
        Processes that read at once.
    dask_scheduler : str, optional
        Address of a dask scheduler, on whose workers sessions are read instead.
    progress : rich.progress.Progress, optional
        Where progress is shown.

    Raises
    ------
    InputError
        For a damaged file, a full disk, or a worker that was killed. The same call again goes on.
    """
    check_dtype(dtype)
    folder = writer.parts
    tasks = {r.subject: list_tasks(r, folder, dtype) for r in recordings}
    unwritten = {
        r.subject: r
        for r in recordings
        if not writer.has_subject(r.subject, subject_fingerprint(r, tasks[r.subject]))
    }
    tasks = {subject: tasks[subject] for subject in unwritten}
    unread = [task for part in tasks.values() for task in part if not task.file.exists()]
    remove_outdated(folder, tasks)
    n_unread, n_tasks = Counter(task.subject for task in unread), sum(map(len, tasks.values()))
    with progress_bar(progress, "reading sessions", n_tasks, n_tasks - len(unread)) as advance:
        for subject in unwritten:
            if not n_unread[subject]:
                write_subject(writer, unwritten[subject], tasks[subject], dtype)
        for task in run_tasks(unread, n_jobs, dask_scheduler):
            subject = task.subject
            n_unread[subject] -= 1
            advance(1, f"reading sessions ({task.session.name} is done)")
            if not n_unread[subject]:
                write_subject(writer, unwritten[subject], tasks[subject], dtype)


def subject_fingerprint(recording: SubjectRecording, tasks: Sequence[ReadTask]) -> str:
    """Tell what a subject is made of: its sessions, trials, voxels and parcels."""
    digest = hashlib.sha256(recording.trials.to_csv().encode())
    for task in tasks:
        digest.update(task.file.name.encode())
    for atlas, labels in sorted(recording.masker.parcel_labels.items()):
        digest.update(atlas.encode() + labels.tobytes())
    if recording.ncsnr is not None:
        digest.update(recording.ncsnr.tobytes())
    return digest.hexdigest()[:24]


def remove_outdated(folder: Path, tasks: Mapping[str, Sequence[ReadTask]]) -> None:
    """Remove sessions that were read from files which have changed since, and say so."""
    for subject, part in tasks.items():
        valid = {task.file.name for task in part}
        outdated = [f for f in sorted((folder / subject).glob("*.npy")) if f.name not in valid]
        if outdated:
            logger.warning(
                "%d sessions of %s were read from files that have changed since; reading anew",
                len(outdated),
                subject,
            )
        for file in outdated:
            file.unlink()


def write_subject(
    writer: StoreWriter, recording: SubjectRecording, tasks: Sequence[ReadTask], dtype: str
) -> None:
    """Join the sessions of a subject, all of which are read, and remove their files."""
    writer.write_subject(
        recording.masker,
        recording.trials,
        iter_chunks(tasks),
        dtype,
        ncsnr=recording.ncsnr,
        fingerprint=subject_fingerprint(recording, tasks),
    )
    remove_folder(writer.parts / recording.subject, within=writer.parts)


def list_tasks(recording: SubjectRecording, folder: Path, dtype: str) -> list[ReadTask]:
    """List the tasks of a subject, whose sessions are kept below `folder` by what they are of."""
    subject, masker = recording.subject, recording.masker
    return [
        ReadTask(
            session=session,
            file=folder / subject / f"{session.fingerprint(masker, dtype)}.npy",
            n_voxels=len(masker),
            dtype=dtype,
            subject=subject,
        )
        for session in recording.sessions
    ]


def run_tasks(
    tasks: Sequence[ReadTask], n_jobs: int, dask_scheduler: str | None
) -> Iterator[ReadTask]:
    """Run the tasks, several at once but no more than there are; yield each as it is done."""
    with joblib_backend(dask_scheduler):
        pool = joblib.Parallel(
            n_jobs=-1 if dask_scheduler else min(n_jobs, max(len(tasks), 1)),
            return_as="generator_unordered",
            max_nbytes=None,
        )
        try:
            yield from pool(joblib.delayed(task.run)() for task in tasks)
        except (TerminatedWorkerError, MemoryError) as error:
            raise InputError(
                "a worker was killed, most likely because memory ran out. Take fewer workers "
                "(--n-jobs) and run the same command again: it goes on where it stopped."
            ) from error


@cache
def end_with_parent() -> None:
    """End a process that joblib has started on this machine when the one that started it ends."""
    if not current_process().name.startswith("LokyProcess"):
        return
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def iter_chunks(
    tasks: Sequence[ReadTask], size: int = 64
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Iterate over the betas that were read, a few trials at a time: (rows, betas (b, V))."""
    for task in tasks:
        betas = np.load(task.file, mmap_mode="r")
        for start in range(0, len(betas), size):
            yield task.session.rows[start : start + size], np.asarray(betas[start : start + size])


@contextmanager
def joblib_backend(dask_scheduler: str | None) -> Iterator[None]:
    """Run joblib in this block here, or on the workers of a dask scheduler."""
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
            f"there is no dask scheduler at {dask_scheduler} ({error}). "
            "Start one, or leave --dask-scheduler out."
        ) from error
    with client, joblib.parallel_config(backend="dask"):
        yield
