"""Tables in Parquet files."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from mindllm.utils.files import describe_read_errors


def read_arrow(file: Path, remedy: str) -> pa.Table:
    """Read a table as Arrow has it.

    Parameters
    ----------
    file : Path
        The file.
    remedy : str
        What to do about a damaged one, for the message.

    Returns
    -------
    pyarrow.Table
        All of its columns.

    Raises
    ------
    InputError
        If the file is missing or damaged, which the checksums of its pages tell if it has any.
    """
    with describe_read_errors(file, remedy):
        # One thread: an error in another one might end the process.
        with pq.ParquetFile(file, page_checksum_verification=True, memory_map=False) as content:
            table = content.read(use_threads=False)
        table.validate(full=True)
    return table
