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


def local_device() -> str | None:
    """The GPU of this process, if a launcher has started it and there are GPUs; else None.

    Returns
    -------
    str or None
        Such as "cuda:1", by the number of the process on its machine.
    """
    import torch

    if "LOCAL_RANK" not in os.environ or not torch.cuda.is_available():
        return None
    return f"cuda:{int(os.environ['LOCAL_RANK']) % torch.cuda.device_count()}"


def wait_for_start() -> None:
    """Wait until all processes that a launcher has started are here; called once in a process."""
    if num_launched_processes() == 1:
        return
    from torch import distributed

    distributed.init_process_group("gloo")
    distributed.barrier()
    distributed.destroy_process_group()
