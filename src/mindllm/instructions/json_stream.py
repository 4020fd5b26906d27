"""JSON files larger than one wants in memory, read record by record."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import ijson
from ijson.common import ObjectBuilder

from mindllm.utils.errors import InputError
from mindllm.utils.progress import Advance

NESTED = "data"  # the one object whose lists are told apart (VisDial keeps dialogs, questions and answers in it)
BOM = b"\xef\xbb\xbf"


class Counted:
    """A file whose reading moves a bar, in MiB."""

    def __init__(self, file: IO[bytes], advance: Advance) -> None:
        self.file, self.advance, self.told = file, advance, 0

    def read(self, size: int = -1) -> bytes:
        piece = self.file.read(size)
        now = mebibytes(self.file.tell())
        self.advance(now - self.told)
        self.told = now
        return piece


def mebibytes(size: int) -> int:
    """A size in MiB, rounded up, so that a bar of a small file ends as well."""
    return -(-size // 2**20)


@contextmanager
def opened(path: Path, advance: Advance | None = None) -> Iterator[Any]:
    """The file, past a byte order mark; what is wrong with its JSON is an InputError."""
    with path.open("rb") as file:
        if file.read(len(BOM)) != BOM:
            file.seek(0)
        try:
            yield Counted(file, advance) if advance else file
        except (ijson.JSONError, UnicodeDecodeError) as error:
            raise InputError(
                f"{path} is damaged or truncated ({str(error).splitlines()[0].strip()}). Fetch it again."
            ) from error


def elements(path: Path, at: str, advance: Advance | None = None) -> Iterator[tuple[str, Any]]:
    """(place, value) of every record: those of the list at a key, such as `annotations` or `data.dialogs`.

    at: "" for the outermost list, or one record a line; "*" for the outermost object, whose keys are then the places.
    """
    with opened(path, advance) as file:
        if at == "*":
            yield from ijson.kvitems(file, "", use_float=True)
        elif at or not in_lines(path):
            prefix = f"{at}.item" if at else "item"
            yield from ((at, value) for value in ijson.items(file, prefix, use_float=True))
        else:
            yield from (
                ("", value) for value in ijson.items(file, "", use_float=True, multiple_values=True)
            )


def in_lines(path: Path) -> bool:
    """Whether the outermost value is no list, so that there is one record a line."""
    with opened(path) as file:
        return next(ijson.basic_parse(file), ("",))[0] != "start_array"


def beginnings(path: Path) -> Iterator[tuple[str, Any]]:
    """(place, first value there), in the order of the file: of lists the first element, of the outermost object each member.

    The place of the elements of an outermost list, and of the first of several records in lines, is "".
    """
    with opened(path) as file:
        seen: set[str] = set()
        place, depth, builder = "", 0, ObjectBuilder()
        for prefix, event, value in ijson.parse(file, use_float=True, multiple_values=True):
            if depth == 0:
                if event in ("map_key", "end_map", "end_array") or (
                    event == "start_map" and prefix in ("", NESTED)
                ):
                    continue
                if event == "start_array" and not prefix.endswith("item"):
                    continue
                place, builder = (
                    "" if prefix == "item" else prefix.removesuffix(".item"),
                    ObjectBuilder(),
                )
            if place not in seen:
                builder.event(event, value)
            depth += {"start_map": 1, "start_array": 1, "end_map": -1, "end_array": -1}.get(
                event, 0
            )
            if depth == 0 and place not in seen:
                seen.add(place)
                yield place, builder.value
