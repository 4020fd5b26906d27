"""Atomic files, JSON, and checks of outputs: written under a temporary name, then renamed."""

import errno
import json
import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from safetensors import SafetensorError

from mindllm.utils.errors import InputError, describe_error
from mindllm.utils.text_files import parse_json, read_text

PARTIAL = ".partial"
# A letter or digit first: neither hidden, nor a parent folder, nor a path.
NAME = re.compile(r"[^\W_](?:[\w.+@ -]*[\w+@-])?")
MAX_NAME_BYTES = 150  # file systems allow 255 with prefix and suffix
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR)


def check_name(name: object, what: str, where: str = "") -> str:
    """Check that `name` can safely be part of a path.

    Parameters
    ----------
    name : object
        A name that comes from data or from a caller, such as a subject's label.
    what : str
        What it names, for the message ("subject", "split").
    where : str
        Where it was found, such as a file and row, for the message.

    Returns
    -------
    str
        The name.

    Raises
    ------
    InputError
        If it is no text, is empty, holds a separator or a control character, begins with other
        than a letter or digit, ends in a blank or a dot, looks like an unfinished output, or is
        too long.

    Examples
    --------
    >>> check_name("sub-01", "subject")
    'sub-01'
    """
    if (
        isinstance(name, str)
        and NAME.fullmatch(name)
        and not name.endswith(PARTIAL)
        and len(name.encode()) <= MAX_NAME_BYTES
    ):
        return name
    raise InputError(
        f"{where + ': ' if where else ''}{name!r} cannot name a {what}, because the name becomes "
        "part of a path. Expected letters, digits and '-', '_', '.', '+', '@' or blanks inside, "
        f"beginning with a letter or digit, at most {MAX_NAME_BYTES} bytes, e.g. 'sub-01'. "
        "Rename it there."
    )


def partial_path(path: Path) -> Path:
    """Return the temporary name under which `path` is written until it is complete."""
    return path.with_name(path.name + PARTIAL)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Describe a full disk or a forbidden folder in an `InputError`.

    Parameters
    ----------
    path : Path
        What the block writes, for the message.

    Raises
    ------
    InputError
        If the disk is full or the folder is not writable.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        # safetensors states the error number in its text alone
        match = re.search(r"os error (\d+)", str(error))
        number = getattr(error, "errno", None) or (int(match[1]) if match else None)
        if number in DISK_FULL:
            existing = next(parent for parent in path.absolute().parents if parent.exists())
            free = shutil.disk_usage(existing).free / 2**20
            raise InputError(
                f"no room to write {path}: {free:.0f} MiB are free there ({os.strerror(number)}). "
                "Free some space or choose another folder and run the same command again; "
                "nothing half-written was kept in its place."
            ) from error
        if number in NOT_WRITABLE:
            raise InputError(
                f"cannot write {path}: {os.strerror(number)}. Choose a folder you may write to."
            ) from error
        raise


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Write a file completely or not at all.

    Parameters
    ----------
    path : Path
        The file; an existing one is replaced when the block ends without error.

    Yields
    ------
    Path
        Temporary file beside `path`, with the same suffix, to write to.

    Raises
    ------
    InputError
        If the disk is full or the folder is not writable.
    """
    # Compression and format follow the suffix, so the temporary name keeps it.
    temporary = path.with_name(f".{os.getpid()}{PARTIAL}.{path.name}")
    try:
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.touch()
            mode = temporary.stat().st_mode  # some libraries write files for their owner alone
            temporary.unlink()
            yield temporary
            temporary.chmod(mode)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def check_not_exists(path: Path) -> None:
    """Check that `path` is neither a file nor a folder with something in it.

    Parameters
    ----------
    path : Path
        Where something is to be written.

    Raises
    ------
    InputError
        If there is something.
    """
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        raise InputError(
            f"{path} already exists. Choose another name, or remove it first if it is no longer "
            "needed."
        )


def check_output(path: Path, inputs: Sequence[Path] = (), resumable: Sequence[str] = ()) -> None:
    """Check that a folder can be written, before anything that takes long.

    Parameters
    ----------
    path : Path
        The folder.
    inputs : sequence of Path
        What is read; the folder must be none of them, and lie in none.
    resumable : sequence of str
        Names in a folder that this command has written before, one of which shows that it may go
        on there. None: the folder must be new or empty.

    Raises
    ------
    InputError
        If it is a file, an input, not writable, or holds other files.
    """
    for source in inputs:
        if source.exists() and path.resolve().is_relative_to(source.resolve()):
            raise InputError(f"{path} lies in {source}, which is read. Choose another folder.")
    if path.is_dir() and any(path.iterdir()):
        if not any((path / name).exists() for name in resumable):
            names = sorted(entry.name for entry in path.iterdir())
            raise InputError(
                f"{path} already exists and holds other files ({', '.join(names[:3])}"
                f"{', ...' if len(names) > 3 else ''}). Choose another name, or an empty folder."
            )
    elif path.exists() and not path.is_dir():
        raise InputError(f"{path} is a file; expected a folder to write. Choose another name.")
    check_writable(path)


def check_writable(directory: Path) -> None:
    """Check that a folder can be created and written; nothing is left there.

    Parameters
    ----------
    directory : Path

    Raises
    ------
    InputError
        If the folder is not writable.
    """
    missing = [folder for folder in (directory, *directory.parents) if not folder.exists()]
    try:
        with disk_errors(directory):
            directory.mkdir(parents=True, exist_ok=True)
            TemporaryFile(dir=directory).close()
    finally:
        for folder in missing:
            with suppress(OSError):
                folder.rmdir()


def write_json(path: Path, content: Any) -> None:
    """Write indented JSON, completely or not at all.

    Parameters
    ----------
    path : Path
        The file.
    content : object
        What `json.dumps` takes.
    """
    with atomic_write(path) as temporary:
        temporary.write_text(to_json(content) + "\n", encoding="utf-8")


def to_json(content: Any) -> str:
    """Format content as indented JSON.

    Parameters
    ----------
    content : object
        What `json.dumps` takes.

    Returns
    -------
    str
        Valid JSON: NaN and infinities, for which it has no number, are null.

    Examples
    --------
    >>> to_json([1.5, float("nan")])
    '[\\n 1.5,\\n null\\n]'
    """
    return json.dumps(without_nan(content), indent=1, ensure_ascii=False, allow_nan=False)


def without_nan(content: Any) -> Any:
    """The same content with None in place of NaN and infinities."""
    if isinstance(content, Mapping):
        return {name: without_nan(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [without_nan(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def read_json(path: Path, what: str, kind: type = dict) -> Any:
    """Read a JSON file.

    Parameters
    ----------
    path : Path
        The file.
    what : str
        What its folder is, for the message ("a store").
    kind : type
        What it must hold: dict for an object, or list.

    Returns
    -------
    object
        Its content.

    Raises
    ------
    InputError
        If the file is missing, no JSON, or holds something else.
    """
    if not path.exists():
        reason = f"it has no {path.name}" if path.parent.exists() else "there is no such folder"
        raise InputError(f"{path.parent} is not {what}: {reason}.")
    remedy = f"Make {what} anew."
    content = parse_json(read_text(path, f"the {path.name} of {what}"), path, remedy)
    if not isinstance(content, kind):
        raise InputError(
            f"{path} is damaged: it holds {type(content).__name__}, expected {kind.__name__}. "
            f"{remedy}"
        )
    return content


@contextmanager
def describe_read_errors(path: Path, remedy: str = "Prepare the store anew.") -> Iterator[Path]:
    """Describe any error of a block that reads a file in an `InputError`.

    Parameters
    ----------
    path : Path
        The file that the block reads.
    remedy : str
        What to do about it, for the message.

    Yields
    ------
    Path
        The file.

    Raises
    ------
    InputError
        If the block fails; the message names the file and the error.
    """
    try:
        yield path
    except InputError:
        raise
    except Exception as error:
        # pyarrow, zipfile, numpy and nibabel each have their own error for a damaged file
        raise InputError(
            f"{path} is missing, damaged or truncated ({describe_error(error)}). {remedy}"
        ) from error
