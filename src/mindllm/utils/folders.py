"""Folders that are written as a whole: beside their place, locked, and renamed when complete."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mindllm.utils.files import check_not_exists, disk_errors, partial_path
from mindllm.utils.locks import lock_output
from mindllm.utils.manifest import MANIFEST, Manifest

PREVIOUS = ".previous"


def remove_folder(path: Path, within: Path) -> None:
    """Delete a folder, if it exists, and never anything outside an output.

    Parameters
    ----------
    path : Path
        Folder to delete.
    within : Path
        Folder of the output; `path` must lie below it.
    """
    assert path.resolve().is_relative_to(within.resolve()), f"{path} is not below {within}"
    assert path.resolve() != within.resolve(), f"{path} is {within} itself"
    shutil.rmtree(path, ignore_errors=True)


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Write a folder completely or not at all.

    Parameters
    ----------
    path : Path
        The new folder; it appears when the block ends without error.

    Yields
    ------
    Path
        Empty temporary folder beside `path` to write to.

    Raises
    ------
    InputError
        If `path` already holds something (nothing is ever overwritten), another process writes
        it, the disk is full, or the folder is not writable.
    """
    with lock_output(path), disk_errors(path):
        check_not_exists(path)
        with temporary_directory(path) as temporary:
            yield temporary
        commit(temporary, path)


@contextmanager
def temporary_directory(path: Path) -> Iterator[Path]:
    """Make an empty folder beside `path` to write to; an error in the block removes it."""
    temporary = partial_path(path)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def commit(temporary: Path, path: Path) -> None:
    """Rename a finished folder to its final name (atomic on one file system).

    Parameters
    ----------
    temporary : Path
        The finished folder.
    path : Path
        Its final name.

    Raises
    ------
    InputError
        If `path` already holds something.
    """
    check_not_exists(path)
    if path.exists():
        path.rmdir()
    temporary.replace(path)


@contextmanager
def replace_directory(path: Path) -> Iterator[Path]:
    """Replace a set of files as one: a folder and its manifest, completely or not at all.

    What is in the folder and not in its manifest, such as another output below it, stays there.

    Parameters
    ----------
    path : Path
        The folder. An earlier one is replaced when the block ends without error.

    Yields
    ------
    Path
        Empty temporary folder beside `path` to write to.

    Raises
    ------
    InputError
        If another process writes it, the disk is full, or the folder is not writable.
    """
    with lock_output(path), disk_errors(path):
        finish_replacement(path)
        with temporary_directory(path) as temporary:
            yield temporary
            Manifest.create(temporary)
        if path.exists():
            path.replace(previous_path(path))
        temporary.replace(path)
        finish_replacement(path)


def recover_directory(path: Path) -> None:
    """Go on with a replacement of a folder that was interrupted, before the folder is read.

    Parameters
    ----------
    path : Path

    Raises
    ------
    InputError
        If another process is replacing it.
    """
    if previous_path(path).exists():
        with lock_output(path):
            finish_replacement(path)


def previous_path(path: Path) -> Path:
    """Return the name of a folder while another takes its place."""
    return path.with_name(f".{path.name}{PREVIOUS}")


def finish_replacement(path: Path) -> None:
    """Go on with a replacement that was interrupted, if there was one.

    Parameters
    ----------
    path : Path
        The folder: its earlier content is put back if the new one had not taken its place yet,
        else what its manifest does not list is moved to the new one and the rest removed.
    """
    previous = previous_path(path)
    if not previous.exists():
        return
    if not path.exists():
        previous.replace(path)
        return
    listed = {MANIFEST}
    if (previous / MANIFEST).exists():
        manifest = Manifest.read(previous, "a folder with a manifest", "Make it anew.")
        listed |= {Path(name).parts[0] for name in manifest.content.files}
    for entry in previous.iterdir():
        if entry.name not in listed and not (path / entry.name).exists():
            entry.replace(path / entry.name)
    shutil.rmtree(previous)
