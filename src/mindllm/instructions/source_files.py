"""Files of a source, their formats detected from their content, read record by record."""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError
from rich.progress import Progress

from mindllm.instructions import file_formats
from mindllm.instructions.file_formats import FILE_FORMATS, FileFormat
from mindllm.instructions.json_stream import count_mebibytes, iter_first_values, iter_values
from mindllm.instructions.schemas import Record
from mindllm.utils.errors import InputError
from mindllm.utils.progress import progress_bar

SUFFIXES = (".json", ".jsonl", ".txt", ".tsv", ".csv")
MAX_KEYS = 1000  # a file with more top-level keys than this before a match is of no known format
HEAD_BYTES = 2**16
R = TypeVar("R", bound=Record)
logger = logging.getLogger(__name__)


class SourceFiles:
    """Files of one source by format, whatever their names and order.

    Parameters
    ----------
    source : str
        Name of the source.
    paths : sequence of str or Path
        Files, or folders of them. A file of another format is refused; in a folder it is passed
        over, with a warning.
    formats : sequence of FileFormat
        Formats that the source needs.
    url : str
        Where the files are, for the message.
    progress : rich.progress.Progress, optional
        Where a bar per file is shown.

    Attributes
    ----------
    paths : dict of FileFormat to list of Path
        Files of each format.

    Raises
    ------
    InputError
        For a file of another format, or if a format has no file.
    """

    def __init__(
        self,
        source: str,
        paths: Sequence[str | Path],
        formats: Sequence[FileFormat[Any]],
        url: str,
        progress: Progress | None = None,
    ) -> None:
        self.progress = progress
        self.paths: dict[FileFormat[Any], list[Path]] = {file_format: [] for file_format in formats}
        unneeded = []
        for path, is_explicit in expand_paths(paths):
            detected = detect_file_formats(path)
            needed = [file_format for file_format in formats if file_format in detected]
            for file_format in needed:
                self.paths[file_format].append(path)
            if not needed:
                content = detected[0].title if detected else "nothing that is known here"
                if is_explicit:
                    raise InputError(
                        f"{path} holds {content}; {source} needs {list_formats(formats)}."
                    )
                unneeded.append(f"{path} ({content})")
        if missing := [file_format for file_format in formats if not self.paths[file_format]]:
            raise InputError(self._missing_message(source, missing, unneeded, url))
        if unneeded:
            logger.warning("%s does not need, and passes over: %s", source, ", ".join(unneeded))

    def _missing_message(
        self,
        source: str,
        missing: Sequence[FileFormat[Any]],
        unneeded: Sequence[str],
        url: str,
    ) -> str:
        """Say which formats are missing, what is there, and where the files are."""
        present = ", ".join(str(path) for paths in self.paths.values() for path in paths)
        parts = [
            f"{source} needs {list_formats(missing)} "
            f"{f'too; found {present}' if present else 'and found none of its files'}."
        ]
        if unneeded:
            parts.append(f"Passed over: {', '.join(unneeded)}.")
        if url:
            parts.append(f"They are at {url}.")
        return " ".join(parts)

    def iter_records(self, file_format: FileFormat[R]) -> Iterator[tuple[Path, str, R]]:
        """Iterate over the records in the files of a format.

        Parameters
        ----------
        file_format : FileFormat
            The format.

        Yields
        ------
        path : Path
            File of the record.
        key : str
            Key of the record in the outermost object, or the file's stem and a number from 1.
        record : Record
            The validated record.

        Raises
        ------
        InputError
            If a file is damaged, or a record is not as the format says.
        """
        for path in self.paths[file_format]:
            number = 0
            for key, value in self.iter_values(path, file_format.records_key):
                if not file_format.has_records_at(key):
                    continue
                number += 1
                where = f"{path}, {f'{key}, ' if key else ''}record {number}"
                name = key if file_format.records_key == "*" else f"{path.stem}-{number}"
                yield path, name, validate_record(file_format, value, where)

    def iter_values(self, path: Path, key: str) -> Iterator[tuple[str, Any]]:
        """Iterate over the elements of a list in a JSON file, with a progress bar.

        Parameters
        ----------
        path : Path
            The file.
        key : str
            Key of the list; see `mindllm.instructions.json_stream.iter_values`.

        Yields
        ------
        (str, object)
            Key and element, as from that function.
        """
        size = count_mebibytes(path.stat().st_size)
        with progress_bar(self.progress, f"reading {path.name} (MiB)", size) as advance:
            yield from iter_values(path, key, advance)


def list_formats(formats: Sequence[FileFormat[Any]]) -> str:
    """List the official names and contents of formats, for messages."""
    return "; ".join(f"{file_format.name} ({file_format.title})" for file_format in formats)


def expand_paths(paths: Sequence[str | Path]) -> Iterator[tuple[Path, bool]]:
    """Iterate over files, each once, in place of the folders that hold them.

    Parameters
    ----------
    paths : sequence of str or Path
        Files and folders; of a folder, the text files in and below it are taken.

    Yields
    ------
    path : Path
        A file.
    is_explicit : bool
        Whether `paths` names the file itself.

    Raises
    ------
    InputError
        If there are no paths, no such file, or no text file in a folder.
    """
    if not paths:
        raise InputError("no files were given.")
    done = set()
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(path.rglob("*"))
            files = [p for p in inside if p.suffix.lower() in SUFFIXES and p.is_file()]
            if not files:
                raise InputError(
                    f"{path} has no files {', '.join(f'*{s}' for s in SUFFIXES)} in it. "
                    "Unpack the archives first."
                )
        elif path.is_file():
            files = [path]
        else:
            raise InputError(f"there is no file {path}.")
        for file in files:
            if (real := file.resolve()) not in done:
                done.add(real)
                yield file, path.is_file()


def detect_file_formats(path: Path) -> list[FileFormat[Any]]:
    """Detect the formats of a file by its first records, reading no more than necessary.

    Parameters
    ----------
    path : Path
        JSON, lines of JSON, or plain text.

    Returns
    -------
    list of FileFormat
        Matching formats, the most special one first; none if no known format matches.

    Raises
    ------
    InputError
        If the file is empty or no text.
    """
    try:
        with path.open(encoding="utf-8-sig") as file:
            text = file.read(HEAD_BYTES)
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no text ({error}). Unpack the archives first.") from error
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    if not lines:
        raise InputError(f"{path} is empty. Fetch it again.")
    if lines[0][0] not in "[{":
        return [detect_text_format(lines[:200], path.suffix)]
    head: dict[str, object] = {}
    for key, value in read_first_line(lines, path) or iter_first_values(path):
        matching = [
            file_format for file_format in FILE_FORMATS if file_format.matches(key, value, head)
        ]
        if matching:
            return matching
        head[key] = value
        if len(head) > MAX_KEYS:
            break
    return []


def read_first_line(lines: Sequence[str], path: Path) -> list[tuple[str, Mapping[str, object]]]:
    """Parse the first record of a file with one per line; return nothing for any other file."""
    if len(lines) < 2 and path.suffix != ".jsonl":
        return []
    try:
        value = json.loads(lines[0])
    except (ValueError, RecursionError):
        return []  # a value that goes on in the next line, or is nested too deeply
    return [("", value)] if isinstance(value, dict) else []


def detect_text_format(lines: Sequence[str], suffix: str) -> FileFormat[Any]:
    """Detect a table, or one of COCO-QA's files, by its first lines."""
    columns = split_header(lines[0])
    if {"stimulus", "caption"} <= set(columns):
        return file_formats.TABLE
    if suffix in (".tsv", ".csv"):
        return FileFormat(f"a table with the columns {', '.join(columns)}", "", Record)
    if all(line in ("0", "1", "2", "3") for line in lines):
        return file_formats.LINES_TYPES
    if all(line.isdecimal() for line in lines):
        return file_formats.LINES_IMAGES
    if all(len(line.split()) == 1 for line in lines):
        return file_formats.LINES_ANSWERS
    return file_formats.LINES_QUESTIONS


def split_header(line: str) -> list[str]:
    """Split the first line of a table into column names.

    Examples
    --------
    >>> split_header('stimulus,"caption"')
    ['stimulus', 'caption']
    """
    return [name.lstrip().strip('"') for name in line.split("\t" if "\t" in line else ",")]


def validate_record(file_format: FileFormat[R], value: object, where: str) -> R:
    """Validate a record.

    Parameters
    ----------
    file_format : FileFormat
        Its format.
    value : object
        The parsed JSON.
    where : str
        File, key and number of the record, for the message.

    Returns
    -------
    Record
        The record, as the format's model describes it.

    Raises
    ------
    InputError
        If the record differs; the message names the field.
    """
    try:
        return file_format.model.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "the record"
        problem = first["msg"][:1].lower() + first["msg"][1:]
        raise InputError(
            f"{where}: {field}: {problem}, found {str(first['input'])[:80]!r}. "
            f"{file_format.title} were expected as in {file_format.name}; fetch the file again."
        ) from error
