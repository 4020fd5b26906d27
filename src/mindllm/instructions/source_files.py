"""The files that were given: each told by its content, and read record by record."""

import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError
from rich.progress import Progress

from mindllm.instructions import file_formats
from mindllm.instructions.file_formats import FILE_FORMATS, FileFormat
from mindllm.instructions.json_stream import beginnings, elements, mebibytes
from mindllm.instructions.schemas import Record
from mindllm.utils.errors import InputError
from mindllm.utils.progress import progress_bar

SUFFIXES = (".json", ".jsonl", ".txt", ".tsv", ".csv")
MANY = 1000  # top-level keys, after which a file is none that is known
R = TypeVar("R", bound=Record)
logger = logging.getLogger(__name__)


class SourceFiles:
    """The files of one source by kind, whatever their names and order.

    needs: the kinds, each of which must be there.  url: where they are. A file of another kind is refused; found in a folder it is passed over,
    with a warning. Raises InputError for a kind that is missing.
    """

    def __init__(
        self,
        source: str,
        paths: Sequence[str | Path],
        needs: Sequence[FileFormat[Any]],
        url: str,
        progress: Progress | None,
    ) -> None:
        self.progress = progress
        self.files: dict[FileFormat[Any], list[Path]] = {form: [] for form in needs}
        expected = "; ".join(f"{form.name} ({form.title})" for form in needs)
        passed = []
        for path, named in expand_paths(paths):
            kinds = detect_file_formats(path)
            wanted = [form for form in needs if form in kinds]
            for form in wanted:
                self.files[form].append(path)
            if not wanted:
                what = kinds[0].title if kinds else "nothing that is known here"
                if named:
                    raise InputError(f"{path} holds {what}; {source} needs {expected}.")
                passed.append(f"{path} ({what})")
        if missing := [form for form in needs if not self.files[form]]:
            there = ", ".join(str(p) for some in self.files.values() for p in some)
            others = f" Passed over: {', '.join(passed)}." if passed else ""
            raise InputError(
                f"{source} needs {'; '.join(f'{form.name} ({form.title})' for form in missing)} {f'too; found {there}' if there else 'and found none of its files'}.{others}{f' They are at {url}.' if url else ''}"
            )
        if passed:
            logger.warning("%s does not need, and passes over: %s", source, ", ".join(passed))

    def records(self, form: FileFormat[R]) -> Iterator[tuple[Path, str, R]]:
        """(file, name, record) of every record in the files of a kind; its name is its key, or the file's and a number."""
        for path in self.files[form]:
            number, file = 0, path.stem
            for place, value in self.values(path, form.at):
                if form.holds(place):
                    number += 1
                    name = place if form.at == "*" else f"{file}-{number}"
                    yield (
                        path,
                        name,
                        checked(
                            form, value, f"{path}, {f'{place}, ' if place else ''}record {number}"
                        ),
                    )

    def values(self, path: Path, at: str) -> Iterator[tuple[str, Any]]:
        """What stands at a place of a JSON file (see `elements`), with a line of progress."""
        with progress_bar(
            self.progress, f"reading {path.name} (MiB)", mebibytes(path.stat().st_size)
        ) as advance:
            yield from elements(path, at, advance)


def expand_paths(paths: Sequence[str | Path]) -> Iterator[tuple[Path, bool]]:
    """(file, whether it was named itself); of a folder, all files of text in it and below, each once."""
    if not paths:
        raise InputError("no files were given.")
    seen = set()
    for path in map(Path, paths):
        if path.is_dir():
            files = sorted(
                p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file()
            )
            if not files:
                raise InputError(
                    f"{path} has no files {', '.join(f'*{s}' for s in SUFFIXES)} in it. Unpack the archives first."
                )
        elif path.is_file():
            files = [path]
        else:
            raise InputError(f"there is no file {path}.")
        for file in files:
            if (real := file.resolve()) not in seen:
                seen.add(real)
                yield file, path.is_file()


def detect_file_formats(path: Path) -> list[FileFormat[Any]]:
    """The kinds that a file is of, the most special one first, by its first records; no more of it is read than it takes."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            lines = [line.strip() for line in file.read(2**16).splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no text ({error}). Unpack the archives first.") from error
    if not lines:
        raise InputError(f"{path} is empty. Fetch it again.")
    if lines[0][0] not in "[{":
        return [detect_text_format(lines[:200], path.suffix)]
    head: dict[str, Any] = {}
    for place, value in first_record(lines, path) or beginnings(path):
        if kinds := [form for form in FILE_FORMATS if form.fits(place, value, head)]:
            return kinds
        head[place] = value
        if len(head) > MANY:
            break
    return []


def first_record(lines: Sequence[str], path: Path) -> list[tuple[str, Any]]:
    """The first record of a file that has one a line; nothing of any other."""
    if len(lines) < 2 and path.suffix != ".jsonl":
        return []
    try:
        value = json.loads(lines[0])
    except ValueError:
        return []  # a value that goes on in the next line
    return [("", value)] if isinstance(value, dict) else []


def detect_text_format(lines: Sequence[str], suffix: str) -> FileFormat[Any]:
    """Which plain text begins so: a table with our columns or others, or one of COCO-QA's files."""
    if {"stimulus", "caption"} <= set(columns(lines[0])):
        return file_formats.TABLE
    if suffix in (".tsv", ".csv"):
        return FileFormat(f"a table with the columns {', '.join(columns(lines[0]))}", "", Record)
    if all(line in ("0", "1", "2", "3") for line in lines):
        return file_formats.LINES_TYPES
    if all(line.isdecimal() for line in lines):
        return file_formats.LINES_IMAGES
    return (
        file_formats.LINES_ANSWERS
        if all(len(line.split()) == 1 for line in lines)
        else file_formats.LINES_QUESTIONS
    )


def columns(line: str) -> list[str]:
    """The names in the first line of a table."""
    return [name.lstrip().strip('"') for name in line.split("\t" if "\t" in line else ",")]


def checked(form: FileFormat[R], value: Any, where: str) -> R:
    """A record as its model says it; InputError with the place otherwise."""
    try:
        return form.model.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "the record"
        raise InputError(
            f"{where}: {field}: {first['msg'][:1].lower()}{first['msg'][1:]}, found {str(first['input'])[:80]!r}. {form.title} were expected as in {form.name}; fetch the file again."
        ) from error
