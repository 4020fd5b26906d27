"""Memory of the machine: what cannot fit is refused before room is made for it."""

import os
from pathlib import Path

from mindllm.utils.errors import InputError

LIMIT_FILE = Path("/sys/fs/cgroup/memory.max")  # of a container, on Linux


def total_memory() -> int | None:
    """Bytes of memory that this process may have at most; None where the system does not say."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
    try:
        return min(total, int(LIMIT_FILE.read_text(encoding="ascii")))
    except (OSError, ValueError):  # there is no limit
        return total


def check_memory(n_bytes: int, what: str, remedy: str) -> None:
    """Check that something can fit in memory.

    Parameters
    ----------
    n_bytes : int
        Its size.
    what : str
        What it is, for the message.
    remedy : str
        What to do, for the message.

    Raises
    ------
    InputError
        If it is larger than all memory.

    Examples
    --------
    >>> check_memory(1000, "a table", "Take fewer rows.")
    """
    total = total_memory()
    if total is not None and n_bytes > total:
        raise InputError(
            f"{what} needs {n_bytes / 2**30:,.1f} GiB; this machine has {total / 2**30:,.1f} GiB "
            f"of memory. {remedy}"
        )
