"""Tables on disk: tab-separated, or comma-separated (.csv)."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from mindllm.utils.errors import InputError

# Identifiers such as stimulus numbers stay text.
TEXT = dict.fromkeys(
    ("subject", "stimulus", "label", "session", "run", "file", "mask", "split", "caption"), str
)


def read_table(file: Path, what: str, columns: Sequence[str] = ()) -> pd.DataFrame:
    """A table, which is `what`. Raises InputError where it is missing or damaged, or lacks some of these columns."""
    try:
        table = pd.read_csv(file, sep="," if file.suffix == ".csv" else "\t", dtype=TEXT)
    except FileNotFoundError as error:
        raise InputError(f"there is no file {file}: expected {what}.") from error
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        kind = "comma" if file.suffix == ".csv" else "tab"
        raise InputError(f"{file} cannot be read as a {kind}-separated table ({error}).") from error
    if not set(columns) <= set(table.columns):
        raise InputError(
            f"{file} has the columns {list(table.columns)}; expected {' and '.join(f'`{name}`' for name in columns)}."
        )
    return table
