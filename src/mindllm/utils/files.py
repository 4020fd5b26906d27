"""Files and folders that are whole or absent: written beside their place, renamed when complete."""

import errno
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from mindllm.utils.errors import InputError

PARTIAL = ".partial"
NAME = re.compile(
    r"[^\W_](?:[\w.+@ -]*[\w+@-])?"
)  # a letter or digit first: neither hidden, nor a folder above, nor a path
LONGEST_NAME = 150  # bytes; file systems allow 255 with prefix and suffix


def check_name(name: object, what: str, where: str = "") -> str:
    """Return `name` if it can safely be part of a path.

    Parameters
    ----------
    name : object
        A name that comes from data or from a caller, such as a subject's label.
    what : str
        What it names, for the message ("subject", "split").
    where : str
        Where it was found, such as a file and row, for the message.

    Raises
    ------
    InputError
        If it is no text, is empty, holds a separator or a control character, begins with other than a letter or digit,
        ends in a blank or a dot, looks like an unfinished output, or is too long.
    """
    if (
        isinstance(name, str)
        and NAME.fullmatch(name)
        and not name.endswith(PARTIAL)
        and len(name.encode()) <= LONGEST_NAME
    ):
        return name
    raise InputError(
        f"{where + ': ' if where else ''}{name!r} cannot name a {what}, because the name becomes part of a path. "
        f"Expected letters, digits and '-', '_', '.', '+', '@' or blanks inside, beginning with a letter or digit, "
        f"at most {LONGEST_NAME} bytes, e.g. 'sub-01'. Rename it there."
    )


def remove_folder(path: Path, within: Path) -> None:
    """Delete the folder `path` if it exists; it must lie below `within`, so that nothing outside an output is ever removed."""
    assert path.resolve().is_relative_to(within.resolve()), f"{path} is not below {within}"
    assert path.resolve() != within.resolve(), f"{path} is {within} itself"
    shutil.rmtree(path, ignore_errors=True)


def partial_path(path: Path) -> Path:
    """Where `path` is written until it is whole."""
    return path.with_name(path.name + PARTIAL)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a full disk or a forbidden folder into a message; what stood at `path` is untouched."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        told = re.search(
            r"os error (\d+)", str(error)
        )  # safetensors gives the number in its text alone
        number = getattr(error, "errno", None) or (int(told[1]) if told else None)
        if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            place = next(parent for parent in path.absolute().parents if parent.exists())
            free = shutil.disk_usage(place).free / 2**20
            raise InputError(
                f"no room to write {path}: {free:.0f} MiB are free there ({os.strerror(number)}). "
                "Free some space or choose another folder and run the same command again; nothing half-written was kept in its place."
            ) from error
        if number in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR):
            raise InputError(
                f"cannot write {path}: {os.strerror(number)}. Choose a folder you may write to."
            ) from error
        raise


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` when the block ends without error."""
    # Compression and format follow the suffix, so the temporary name keeps it.
    temporary = path.with_name(f".{os.getpid()}{PARTIAL}.{path.name}")
    try:
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.touch()
            mode = temporary.stat().st_mode  # some libraries write files that nobody else may read
            temporary.unlink()
            yield temporary
            temporary.chmod(mode)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Yield an empty temporary folder beside `path`; rename it to `path` when the block ends without error.

    Raises InputError if `path` already holds something: nothing is ever overwritten.
    """
    check_not_exists(path)
    temporary = partial_path(path)
    shutil.rmtree(temporary, ignore_errors=True)
    with disk_errors(path):
        temporary.mkdir(parents=True)
        try:
            yield temporary
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        commit(temporary, path)


def commit(temporary: Path, path: Path) -> None:
    """Rename a finished folder to its place (atomic on one file system)."""
    check_not_exists(path)
    if path.exists():
        path.rmdir()
    temporary.replace(path)


def check_not_exists(path: Path) -> None:
    """Raise InputError if `path` is a file or a folder with something in it."""
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        raise InputError(
            f"{path} already exists. Choose another name, or remove it first if it is no longer needed."
        )


def write_json(path: Path, content: Any) -> None:
    """Write `content` as indented JSON, whole or not at all."""
    with atomic_write(path) as temporary:
        temporary.write_text(
            json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )


def read_json(path: Path, what: str) -> Any:
    """Read the JSON file `path`, which is `what`; a missing or broken one is an InputError that says so."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(f"{path.parent} is not {what}: it has no {path.name}.") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path} is damaged and cannot be read as JSON ({error}). Make {what} anew."
        ) from error


@contextmanager
def describe_read_errors(path: Path, remedy: str = "Prepare the store anew.") -> Iterator[Path]:
    """Turn what goes wrong in reading a file into a message that names it and says what to do."""
    try:
        yield path
    except (
        Exception
    ) as error:  # pyarrow, zipfile, numpy and nibabel each have their own error for a damaged file
        raise InputError(
            f"{path} is missing, damaged or truncated ({type(error).__name__}: {error}). {remedy}"
        ) from error
