"""Prompts of similar length are read together, so that little of what is read is padding."""

from collections.abc import Sequence
from typing import Any

import numpy as np

# What a further batch costs beside its tokens, in floating-point operations: starting the kernels
# and, on a CPU, reading the weights again, which is worth some tokens whatever their size.
# Measured on a CPU; on a GPU an estimate (about 60 ms at 200 TFLOP/s).
BATCH_OVERHEAD_CPU = 2e9
BATCH_OVERHEAD_GPU = 1e13
WEIGHTS_OVERHEAD_TOKENS = 16
MAX_TOKENS_WITHOUT_GRADIENT = 16_384  # that are read at once, padding included


def batch_overhead(model: Any) -> float:
    """Number of tokens that a language model could read for the cost of a further batch.

    Parameters
    ----------
    model : transformers.PreTrainedModel

    Returns
    -------
    float
    """
    is_cpu = model.device.type == "cpu"
    num_weights = max(1, sum(parameter.numel() for parameter in model.parameters()))
    operations = BATCH_OVERHEAD_CPU if is_cpu else BATCH_OVERHEAD_GPU
    return WEIGHTS_OVERHEAD_TOKENS + operations / (4 * num_weights)  # forward and backward


def group_by_length(
    lengths: Sequence[int], overhead: float, max_tokens: int | None = None
) -> list[list[int]]:
    """Group rows of similar length so that the least is read, padding included.

    Parameters
    ----------
    lengths : sequence of int
        Tokens of each row.
    overhead : float
        Cost of a group beside its tokens, in tokens.
    max_tokens : int, optional
        Tokens of a group at most, padding included; a row may have more.

    Returns
    -------
    list of list of int
        Row numbers, the shortest rows first; of all such groups the cheapest.

    Examples
    --------
    >>> group_by_length([10, 100, 12, 90], overhead=30)
    [[0, 2], [3, 1]]
    >>> group_by_length([10, 100, 12, 90], overhead=1000)
    [[0, 2, 3, 1]]
    """
    order = np.argsort(lengths, kind="stable")
    sorted_lengths = np.asarray(lengths)[order]
    costs, starts = np.zeros(len(order) + 1), [0]
    for stop in range(1, len(order) + 1):
        tokens = (stop - np.arange(stop)) * sorted_lengths[stop - 1]  # of a group from each start
        totals = costs[:stop] + tokens + overhead
        if max_tokens is not None:
            totals[:-1][tokens[:-1] > max_tokens] = np.inf
        starts.append(int(totals.argmin()))
        costs[stop] = totals.min()
    groups, stop = [], len(order)
    while stop:
        groups.append(order[starts[stop] : stop].tolist())
        stop = starts[stop]
    return groups[::-1]
