"""Which of the processes that a launcher has started this one is."""

import os


def process_index() -> int:
    """Number of this process among those that torchrun or accelerate started, from 0.

    Returns
    -------
    int

    Examples
    --------
    >>> process_index()
    0
    """
    return int(os.environ.get("RANK", "0"))


def num_launched_processes() -> int:
    """Number of processes that torchrun or accelerate started; 1 without a launcher.

    Returns
    -------
    int

    Examples
    --------
    >>> num_launched_processes()
    1
    """
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main_process() -> bool:
    """Whether this process is alone, or the first of those that torchrun or accelerate started.

    Returns
    -------
    bool

    Examples
    --------
    >>> is_main_process()
    True
    """
    return process_index() == 0
