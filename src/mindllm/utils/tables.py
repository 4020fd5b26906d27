"""Tables on disk: tab-separated as BIDS says, or comma-separated."""

import csv
import io
import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd

from mindllm.utils.errors import InputError
from mindllm.utils.text_files import read_text

# Identifiers such as stimulus numbers stay text.
TEXT_COLUMNS = frozenset({
    "subject", "stimulus", "label", "session", "run", "file", "mask", "split", "caption", "name",
    "image_name", "source",
})  # fmt: skip
WHOLE_COLUMNS = frozenset({
    "volume", "beta_index", "index", "repetition", "coco_id", "nsdId", "cocoId", "caption_idx",
})  # fmt: skip
LINE_BREAK = re.compile(r"\r\n|\r|\n")
QUOTED = re.compile(r'"(?:[^"]|"")*"')
MISSING = ("", "n/a")  # BIDS knows no other; None, null and NA are words
logger = logging.getLogger(__name__)


def read_table(
    file: Path, what: str, columns: Sequence[str] = (), text_columns: Sequence[str] = ()
) -> pd.DataFrame:
    """Read a table: identifiers as text, numbers as numbers.

    Cells are separated by tabs where the header has one, and then have no quoting, as BIDS says;
    else by commas. They are stripped of blanks; an empty one and `n/a` are missing. Columns of
    counts and indices are whole numbers.

    Parameters
    ----------
    file : Path
        The table, in UTF-8.
    what : str
        What the table is, for the message ("the design table").
    columns : sequence of str
        Columns that it must have.
    text_columns : sequence of str
        Columns of identifiers beside TEXT_COLUMNS.

    Returns
    -------
    pandas.DataFrame
        One row per line after the header; the index is the number of the line in the file.

    Raises
    ------
    InputError
        If the file is missing or damaged, lacks one of the columns or has one twice, a line has
        more or fewer cells than the header, or a count is no whole number.

    References
    ----------
    Brain Imaging Data Structure 1.10, "Tabular files".
    """
    rows = iter_rows(file, what)
    header = [name or f"Unnamed: {n}" for n, name in enumerate(next(rows, (0, []))[1])]
    if not set(columns) <= set(header) or not header:
        expected = " and ".join(f"`{name}`" for name in columns) or "a header"
        raise InputError(f"{file} has the columns {header}; expected {expected} in {what}.")
    if repeated := sorted({name for name in header if header.count(name) > 1}):
        raise InputError(f"{file} has the column {repeated[0]!r} twice; rename one of them.")
    lines, cells = [], []
    for line, row in rows:
        if len(row) != len(header):
            raise InputError(
                f"{file}, line {line} has {len(row)} cells; the header has {len(header)}. "
                "A cell may hold no tab in a table with tabs, which has no quoting; one that holds "
                "a comma in a table with commas stands in quotation marks."
            )
        lines.append(line)
        cells.append([None if cell in MISSING else cell for cell in row])
    table = pd.DataFrame(cells, columns=header, index=lines, dtype=object)
    return table.apply(
        lambda column: column if column.name in text_columns else convert_column(column, file)
    )


def iter_rows(file: Path, what: str) -> Iterator[tuple[int, list[str]]]:
    """Iterate over the number and the stripped cells of every line that is not empty."""
    text = read_text(file, what)
    if "\0" in text:
        raise InputError(f"{file} holds the character NUL: it is no text. Save {what} as UTF-8.")
    lines = LINE_BREAK.split(text)  # not splitlines: a caption may hold other line separators
    if "\t" in lines[0]:
        rows = [[cell.strip() for cell in line.split("\t")] for line in lines]
        if n_quoted := sum(any(map(QUOTED.fullmatch, row)) for row in rows):
            logger.warning(
                "%s: %d lines have cells in quotation marks, which are kept, since a table with "
                "tabs has no quoting. If they are none of the text's, save the table with commas",
                file,
                n_quoted,
            )
        yield from ((number, row) for number, row in enumerate(rows, 1) if any(row))
        return
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, skipinitialspace=True)
    try:
        for row in reader:
            if any(row):
                yield reader.line_num, [cell.strip() for cell in row]
    except csv.Error as error:
        raise InputError(
            f"{file}, line {reader.line_num} is no line of a comma-separated table ({error}). "
            "A quotation mark may lack its partner."
        ) from error


def convert_column(column: pd.Series, file: Path) -> pd.Series:
    """Convert the texts of a column: to whole numbers, to numbers where all are, or not at all."""
    if column.name in TEXT_COLUMNS:
        return column
    if column.name in WHOLE_COLUMNS:
        return to_whole_numbers(column, file)
    try:
        return pd.to_numeric(column)
    except (ValueError, TypeError):
        return column


def to_whole_numbers(column: pd.Series, file: Path) -> pd.Series:
    """Convert texts to whole numbers; 3.0 is 3.

    Parameters
    ----------
    column : pandas.Series
        Texts, None where missing; its index is the numbers of the lines.
    file : Path
        The table, for the message.

    Returns
    -------
    pandas.Series
        int64, or Int64 where a number is missing.

    Raises
    ------
    InputError
        If a text is no whole number; the message names the line.
    """
    numbers = pd.to_numeric(column, errors="coerce").astype("Float64")
    is_whole = ((numbers % 1 == 0) & (numbers.abs() < 2**53)).fillna(False)
    if (invalid := column.notna() & ~is_whole.astype(bool)).any():
        line = column.index[invalid][0]
        raise InputError(
            f"{file}, line {line}: the {column.name} {column[line]!r} is no whole number; "
            "expected one such as 0 or 3."
        )
    return numbers.astype("Int64" if column.isna().any() else "int64")


def require_values(table: pd.DataFrame, columns: Sequence[str], file: Path) -> None:
    """Check that no value is missing in some columns of a table, as far as it has them.

    Parameters
    ----------
    table : pandas.DataFrame
        A table of `read_table`.
    columns : sequence of str
        The columns.
    file : Path
        The table, for the message.

    Raises
    ------
    InputError
        If a value is missing; the message names column and line.
    """
    for column in columns:
        if column in table and (missing := table[column].isna()).any():
            raise InputError(
                f"{file}, line {table.index[missing][0]} has no {column}: it is empty or n/a in "
                f"{missing.sum()} of {len(table)} lines; expected a value in every line."
            )
