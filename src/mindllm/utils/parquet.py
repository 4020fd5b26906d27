"""Tables in Parquet files."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from mindllm.utils.errors import InputError
from mindllm.utils.files import describe_read_errors


def read_parquet(file: Path, remedy: str, columns: Sequence[str] = ()) -> pd.DataFrame:
    """Read a table.

    Parameters
    ----------
    file : Path
        The file.
    remedy : str
        What to do about a damaged one, for the message.
    columns : sequence of str
        Columns that it must have.

    Returns
    -------
    pandas.DataFrame
        All of its columns.

    Raises
    ------
    InputError
        If the file is missing or damaged, which the checksums of its pages tell if it has any, or
        lacks a column.
    """
    table = read_arrow(file, remedy, columns)
    with describe_read_errors(file, remedy):  # what pandas wrote about its own types may be damaged
        return table.to_pandas()


def read_arrow(file: Path, remedy: str, columns: Sequence[str] = ()) -> pa.Table:
    """Read a table as Arrow has it; see `read_parquet`."""
    with describe_read_errors(file, remedy):
        # One thread: an error in another one might end the process.
        with pq.ParquetFile(file, page_checksum_verification=True, memory_map=False) as content:
            table = content.read(use_threads=False)
        table.validate(full=True)
    if missing := [name for name in columns if name not in table.column_names]:
        present = ", ".join(table.column_names)
        raise InputError(
            f"{file} lacks the columns {', '.join(missing)}; it has {present}. {remedy}"
        )
    return table
