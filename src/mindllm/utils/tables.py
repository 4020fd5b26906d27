"""Tables on disk: tab-separated, or comma-separated (.csv)."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from mindllm.utils.errors import InputError

# Identifiers such as stimulus numbers stay text.
TEXT_COLUMNS = dict.fromkeys(
    ("subject", "stimulus", "label", "session", "run", "file", "mask", "split", "caption"), str
)


def read_table(file: Path, what: str, columns: Sequence[str] = ()) -> pd.DataFrame:
    """Read a table, its identifiers as text.

    Parameters
    ----------
    file : Path
        A .csv is comma-separated, any other tab-separated.
    what : str
        What the table is, for the message ("the design table").
    columns : sequence of str
        Columns that it must have.

    Returns
    -------
    pandas.DataFrame
        One row per line after the header.

    Raises
    ------
    InputError
        If the file is missing or damaged, or lacks one of the columns.
    """
    is_csv = file.suffix == ".csv"
    try:
        table = pd.read_csv(file, sep="," if is_csv else "\t", dtype=TEXT_COLUMNS)
    except FileNotFoundError as error:
        raise InputError(f"there is no file {file}: expected {what}.") from error
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        kind = "comma" if is_csv else "tab"
        raise InputError(f"{file} cannot be read as a {kind}-separated table ({error}).") from error
    if not set(columns) <= set(table.columns):
        raise InputError(
            f"{file} has the columns {list(table.columns)}; "
            f"expected {' and '.join(f'`{name}`' for name in columns)}."
        )
    return table
