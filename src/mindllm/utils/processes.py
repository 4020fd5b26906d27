"""Which of the processes that a launcher has started this one is."""

import os


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
    return int(os.environ.get("RANK", "0")) == 0
