"""JSON files larger than one wants in memory, decoded value by value."""

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from mindllm.errors import InputError
from mindllm.progress import Advance

PIECE = 2**20  # characters read at once
NEAR = 2**16  # an error this close to the end of what was read may only mean that the rest is still to come
NESTED = "data"  # the one object whose lists are told apart (VisDial keeps dialogs, questions and answers in it)
LINE = 2**16  # no line is longer
WHITE = re.compile(r"[ \t\n\r]*")
decode = json.JSONDecoder().raw_decode


class Pieces:
    """A JSON file (one value, or one object a line) as a stream; in memory are one value and a piece of the text.

    advance: is told how many more MiB are read.
    """

    def __init__(self, path: Path, advance: Advance | None = None) -> None:
        self.path, self.advance, self.told = path, advance, 0
        self.text, self.at, self.before = "", 0, 0

    def __enter__(self) -> Self:
        self.file = io.TextIOWrapper(self.path.open("rb"), encoding="utf-8-sig")
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def values(self) -> Iterator[tuple[str, Any]]:
        """(place, value) in the order of the file: each element of a list with the key it stands under, any other value whole.

        The place of the elements of an outermost list, or of the lines of JSON Lines, is "". Lists inside `data` are at
        `data.<key>`. Raises InputError, with the place, for a file that is damaged or ends too early.
        """
        opening = self.peek()
        if opening == "[":
            yield from self.elements("")
        elif opening == "{" and not self.in_lines():
            for key in self.members():
                yield from self.member(key)
        else:
            while self.peek():
                yield "", self.value()
        if self.peek():
            raise self.damaged("something follows the end")

    def in_lines(self) -> bool:
        """Whether another object follows the first one: JSON Lines."""
        while len(self.text) < LINE and self.more():
            pass
        try:
            end = decode(self.text, self.at)[1]
        except json.JSONDecodeError:
            return False  # longer than any line
        return self.text[WHITE.match(self.text, end).end() :][:1] == "{" or self.path.suffix == ".jsonl"  # type: ignore[union-attr] # matches always

    def member(self, place: str) -> Iterator[tuple[str, Any]]:
        """What stands under a key."""
        opening = self.peek()
        if opening == "[":
            yield from self.elements(place)
        elif opening == "{" and place == NESTED:
            for key in self.members():
                yield from self.member(f"{place}.{key}")
        else:
            yield place, self.value()

    def elements(self, place: str) -> Iterator[tuple[str, Any]]:
        """The elements of a list."""
        self.take("[")
        while self.peek() != "]":
            yield place, self.value()
            if self.peek() != "]":
                self.take(",")
        self.take("]")

    def members(self) -> Iterator[str]:
        """The keys of an object, each to be followed by reading what stands under it."""
        self.take("{")
        while self.peek() != "}":
            key = self.value()
            self.take(":")
            yield str(key)
            if self.peek() != "}":
                self.take(",")
        self.take("}")

    def value(self) -> Any:
        """The next value, whole."""
        self.peek()
        while True:
            try:
                value, end = decode(self.text, self.at)
            except json.JSONDecodeError as error:
                if error.pos < len(self.text) - NEAR or not self.more():
                    raise self.damaged(error.msg, error.pos) from error
                continue
            if end < len(self.text) or not self.more():  # a number may go on in the next piece
                self.at = end
                return value

    def take(self, mark: str) -> None:
        """Go past a sign that must come next."""
        found = self.peek()
        if found != mark:
            raise self.damaged(f"expected {mark!r}, found {found!r}" if found else "the file ends too early")
        self.at += 1

    def peek(self) -> str:
        """The next sign that is not white space; nothing at the end."""
        while True:
            self.at = WHITE.match(self.text, self.at).end()  # type: ignore[union-attr] # matches always
            if self.at < len(self.text):
                return self.text[self.at]
            if not self.more():
                return ""

    def more(self) -> bool:
        """Read another piece and forget what was used; False at the end of the file."""
        try:
            piece = self.file.read(PIECE)
        except UnicodeDecodeError as error:
            raise self.damaged(str(error)) from error
        self.before += self.at
        self.text, self.at = self.text[self.at :] + piece, 0
        if self.advance:
            read = mebibytes(self.file.buffer.tell())
            self.advance(read - self.told)
            self.told = read
        return bool(piece)

    def damaged(self, why: str, at: int | None = None) -> InputError:
        """The error of a file that is no JSON, with the place."""
        place = self.before + (self.at if at is None else at)
        return InputError(
            f"{self.path} is damaged or truncated at character {place:,} ({why[:1].lower()}{why[1:]}). Fetch it again."
        )


def mebibytes(size: int) -> int:
    """Bytes in MiB, those begun included."""
    return -(-size // 2**20)
