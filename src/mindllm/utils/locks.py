"""Locks of outputs: of two processes that write one output, one works and the other says so."""

import errno
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from filelock import SoftFileLock, Timeout

from mindllm.utils.errors import InputError
from mindllm.utils.files import disk_errors


def lock_path(path: Path) -> Path:
    """Return the lock file of an output, beside it."""
    return path.with_name(f".{path.name}.lock")


@contextmanager
def lock_output(path: str | Path, timeout: float = 0) -> Iterator[None]:
    """Keep other processes from writing an output until the block ends.

    The lock file `.<name>.lock` beside the output names process and host. That of a process of
    this host which no longer runs is taken over. The process that holds a lock may take it again.

    Parameters
    ----------
    path : str or Path
        The file or folder that is written.
    timeout : float
        How long to wait for another process, in seconds.

    Raises
    ------
    InputError
        If another process holds the lock, or the folder of the output is not writable.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder, lock_output(Path(folder, "store")):
    ...     [file.name for file in Path(folder).iterdir()]
    ['.store.lock']
    """
    path = Path(path)
    file = lock_path(path.resolve())
    lock = SoftFileLock(file, thread_local=False, is_singleton=True)
    with ExitStack() as stack:
        stack.callback(remove_empty_folders, [p for p in file.parents if not p.exists()])
        with disk_errors(path):
            if file.parent.is_file():
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
            file.parent.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire(timeout=timeout)
            except Timeout as error:
                raise InputError(
                    f"{path} is being written by {describe_holder(file)}; it is left to that one. "
                    "Wait until it ends, or choose another folder. If it no longer runs, "
                    f"remove {file} and run the same command again."
                ) from error
        stack.callback(lock.release)
        yield


def remove_empty_folders(folders: list[Path]) -> None:
    """Remove those of the folders, innermost first, that exist and hold nothing."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


def describe_holder(file: Path) -> str:
    """Return which process on which host has written a lock file."""
    with suppress(OSError, ValueError, IndexError):
        process, host = file.read_text(encoding="utf-8").split("\n")[:2]
        return f"process {int(process)} on {host}"
    return "another process"
