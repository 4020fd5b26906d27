"""Sessions read side by side, each into a file of its own that is whole or absent: the workers of a preparation.

joblib runs them, on this machine's cores or, unchanged, on a cluster through its dask backend; the workers must then see
the same files. What an earlier call has finished is not read again.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import joblib
import numpy as np
from rich.progress import Progress

from mindllm.errors import InputError
from mindllm.files import disk_errors, whole_file


@dataclass(frozen=True)
class Session:
    """One session of one person: `read` gives its betas (trials, voxels), which go to `file`; `rows` are its trials' numbers."""

    name: str
    file: Path
    rows: np.ndarray
    read: Callable[[], np.ndarray]


def read_sessions(
    sessions: Sequence[Session], workers: int = 1, dask: str | None = None, progress: Progress | None = None
) -> None:
    """Read what is not there yet. `workers`: processes at once; `dask`: the address of a scheduler, whose workers it then are.

    Raises InputError for a damaged file, a full disk, or a worker that was killed; run the same call again, it goes on.
    """
    left = [session for session in sessions if not session.file.exists()]
    task = (
        progress.add_task("reading sessions", total=len(sessions), completed=len(sessions) - len(left))
        if progress
        else None
    )
    if not left:
        return
    with backend(dask):
        pool = joblib.Parallel(n_jobs=workers, return_as="generator_unordered", max_nbytes=None)
        try:
            for name in pool(joblib.delayed(keep)(session) for session in left):
                if progress and task is not None:
                    progress.update(task, advance=1, description=f"reading sessions ({name} is done)")
        except (joblib.externals.loky.process_executor.TerminatedWorkerError, MemoryError) as error:
            raise InputError(
                "a worker was killed, most likely because memory ran out. Take fewer workers (--workers) and run the same command again: it goes on where it stopped."
            ) from error


def keep(session: Session) -> str:
    """Read one session and write it, whole or not at all."""
    betas = session.read()
    if len(betas) != len(session.rows):
        raise InputError(f"{session.name} has {len(betas)} trials; the design promises {len(session.rows)}.")
    with disk_errors(session.file), whole_file(session.file) as path:
        np.save(path, betas)
    return session.name


def pieces(sessions: Sequence[Session], size: int = 64) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The betas that were read, a few trials at a time: (rows, betas (b, V))."""
    for session in sessions:
        betas = np.load(session.file, mmap_mode="r")
        for start in range(0, len(betas), size):
            yield session.rows[start : start + size], np.asarray(betas[start : start + size])


def backend(dask: str | None) -> AbstractContextManager[Any]:
    """Where joblib runs: here, or on the workers of a dask scheduler."""
    if dask is None:
        return nullcontext()
    try:
        from distributed import Client
    except ImportError as error:
        raise InputError("--dask needs the package distributed: pip install 'mindllm[dask]'.") from error
    try:
        Client(dask, timeout="20s")
    except OSError as error:
        raise InputError(f"there is no dask scheduler at {dask} ({error}). Start one, or leave --dask out.") from error
    return joblib.parallel_config(backend="dask")
