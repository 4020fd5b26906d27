"""Checks of tables of a store: names of columns, types, gaps and ranges."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from mindllm.utils.errors import InputError
from mindllm.utils.files import describe_read_errors
from mindllm.utils.parquet import read_arrow

KINDS = {
    "text": pd.api.types.is_string_dtype,
    "whole numbers": pd.api.types.is_integer_dtype,
    "numbers": pd.api.types.is_numeric_dtype,
}


def read_checked_table(path: Path, required: Sequence[str], remedy: str) -> pd.DataFrame:
    """Read a Parquet table that has some columns, and each of its columns once.

    Parameters
    ----------
    path : Path
    required : sequence of str
        Columns that it must have.
    remedy : str
        What to do about a file that differs, for the message.

    Returns
    -------
    DataFrame

    Raises
    ------
    InputError
        If the file is missing or damaged, or lacks or repeats a column.
    """
    table = read_arrow(path, remedy)
    check_column_names(table.column_names, required, path, remedy)
    with describe_read_errors(path, remedy):  # what pandas wrote about its own types may be damaged
        return table.to_pandas()


def check_column_names(
    names: Sequence[str], required: Iterable[str], path: Path, remedy: str
) -> None:
    """Check the names of a table's columns.

    Parameters
    ----------
    names : sequence of str
        Columns of the table.
    required : iterable of str
        Columns that it must have.
    path : Path
        The table, for the message.
    remedy : str
        What to do, for the message.

    Raises
    ------
    InputError
        If one is missing, or comes twice.
    """
    if missing := [name for name in required if name not in names]:
        raise InputError(
            f"{path} has no column `{missing[0]}`; its columns are {', '.join(names)}. {remedy}"
        )
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"{path} has the column {repeated[0]!r} twice; expected it once. {remedy}")


def check_column(column: pd.Series, kind: str, where: str, remedy: str) -> None:
    """Check that a column of a table holds one kind of values without gaps.

    Parameters
    ----------
    column : Series
    kind : {"text", "whole numbers", "numbers"}
        Texts must not be empty.
    where : str
        The table, for the message.
    remedy : str
        What to do, for the message.

    Raises
    ------
    InputError
        If the type is another, or a value is missing; the message names the row, from 0.
    """
    if (missing := column.isna().to_numpy()).any():
        check_rows(~missing, column, f"{kind} in every row", where, remedy)
    if not KINDS[kind](column):
        raise InputError(
            f"{where}: the column {column.name} holds {column.dtype}; expected {kind}. {remedy}"
        )
    if kind == "text":
        check_rows((column != "").to_numpy(bool), column, "a text that is not empty", where, remedy)


def check_rows(
    are_valid: np.ndarray, column: pd.Series, expected: str, where: str, remedy: str
) -> None:
    """Check that all values of a column are valid.

    Parameters
    ----------
    are_valid : ndarray of bool, shape (n_rows,)
    column : Series
        Of which the message shows the first invalid value.
    expected : str
        What valid values are, for the message.
    where : str
        The table, for the message.
    remedy : str
        What to do, for the message.

    Raises
    ------
    InputError
        If one is not; the message names its row, from 0.
    """
    if not are_valid.all():
        row = int(np.argmin(are_valid))
        value = column.iloc[row]
        shown = repr(value.item() if isinstance(value, np.generic) else value)
        raise InputError(
            f"{where}, row {row}: {column.name} is {shown}; expected {expected}. {remedy}"
        )
