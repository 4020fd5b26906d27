"""Large JSON files, read record by record."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import ijson
from ijson.common import ObjectBuilder

from mindllm.utils.errors import InputError, shorten
from mindllm.utils.progress import Advance

# The one object whose lists are told apart: VisDial keeps dialogs, questions and answers in it.
NESTED = "data"
BOM = b"\xef\xbb\xbf"
MAX_OPEN = 10_000  # brackets, those in texts included; official files are less than ten deep
DEPTH_CHANGES = {"start_map": 1, "start_array": 1, "end_map": -1, "end_array": -1}


class JSONFile:
    """A binary file that reports how many MiB were read, and refuses deep nesting.

    Parameters
    ----------
    path : Path
        The file, for the message.
    file : binary file
        The opened file.
    advance : Advance, optional
        Callback of a progress bar that counts MiB.
    """

    def __init__(self, path: Path, file: IO[bytes], advance: Advance | None = None) -> None:
        self.path, self.file, self.advance = path, file, advance
        self.n_reported = self.n_open = 0

    def read(self, size: int = -1) -> bytes:
        """Read as a file does, and report.

        Raises
        ------
        InputError
            If more than MAX_OPEN brackets are open: the parser keeps the path to each of them.
        """
        chunk = self.file.read(size)
        self.n_open += chunk.count(b"[") + chunk.count(b"{")
        self.n_open -= chunk.count(b"]") + chunk.count(b"}")
        if self.n_open > MAX_OPEN:
            raise InputError(
                f"{self.path} is damaged: its JSON is nested more than {MAX_OPEN} deep. "
                "Fetch it again."
            )
        if self.advance:
            position = count_mebibytes(self.file.tell())
            self.advance(position - self.n_reported)
            self.n_reported = position
        return chunk


def count_mebibytes(size: int) -> int:
    """Convert bytes to MiB, rounded up, so that the bar of a small file reaches its end.

    Examples
    --------
    >>> count_mebibytes(1)
    1
    """
    return -(-size // 2**20)


@contextmanager
def open_json(path: Path, advance: Advance | None = None) -> Iterator[Any]:
    """Open a file behind its byte order mark; damaged JSON in the block is an `InputError`."""
    with path.open("rb") as file:
        if file.read(len(BOM)) != BOM:
            file.seek(0)
        try:
            yield JSONFile(path, file, advance)
        except InputError:
            raise
        except (ijson.JSONError, ValueError) as error:  # ValueError: of text, and of endless digits
            message = shorten(str(error).splitlines()[0].strip(), 300)
            raise InputError(
                f"{path} is damaged or truncated ({message}). Fetch it again."
            ) from error


def iter_values(path: Path, key: str, advance: Advance | None = None) -> Iterator[tuple[str, Any]]:
    """Iterate over the elements of a list in a JSON file.

    Parameters
    ----------
    path : Path
        JSON file, or one with a JSON record per line.
    key : str
        Key of the list, such as `annotations` or `data.dialogs`; "": the outermost list, or the
        records in lines; "*": the members of the outermost object.
    advance : Advance, optional
        Callback of a progress bar that counts MiB.

    Yields
    ------
    key : str
        Key of the list, or of the member of the outermost object.
    value : object
        The element.

    Raises
    ------
    InputError
        If the file is damaged or truncated.
    """
    with open_json(path, advance) as file:
        if key == "*":
            yield from ijson.kvitems(file, "", use_float=True)
        elif key or not has_records_in_lines(path):
            prefix = f"{key}.item" if key else "item"
            yield from ((key, value) for value in ijson.items(file, prefix, use_float=True))
        else:
            values = ijson.items(file, "", use_float=True, multiple_values=True)
            yield from (("", value) for value in values)


def has_records_in_lines(path: Path) -> bool:
    """Return whether the outermost value is no list, so that each line holds one record."""
    with open_json(path) as file:
        return next(ijson.basic_parse(file), ("",))[0] != "start_array"


def iter_first_values(path: Path) -> Iterator[tuple[str, Any]]:
    """Iterate over the beginnings of a JSON file, reading no more than is asked for.

    Parameters
    ----------
    path : Path
        JSON file, or one with a JSON record per line.

    Yields
    ------
    key : str
        Key of a list or of a member of the outermost object, in the order of the file; "" for
        the outermost list and for records in lines.
    value : object
        The first element of the list, or the member.

    Raises
    ------
    InputError
        If the file is damaged as far as it was read.
    """
    with open_json(path) as file:
        done: set[str] = set()
        key, depth, builder = "", 0, ObjectBuilder()
        for prefix, event, value in ijson.parse(file, use_float=True, multiple_values=True):
            if depth == 0:
                if event in ("map_key", "end_map", "end_array") or (
                    event == "start_map" and prefix in ("", NESTED)
                ):
                    continue
                if event == "start_array" and not prefix.endswith("item"):
                    continue
                key = "" if prefix == "item" else prefix.removesuffix(".item")
                builder = ObjectBuilder()
            if key not in done:
                builder.event(event, value)
            depth += DEPTH_CHANGES.get(event, 0)
            if depth == 0 and key not in done:
                done.add(key)
                yield key, builder.value
