"""Integers as text."""

from collections.abc import Sequence


def format_ranges(numbers: Sequence[int]) -> str:
    """Format ascending integers as ranges.

    Parameters
    ----------
    numbers : sequence of int
        Integers in ascending order.

    Returns
    -------
    str
        Consecutive integers as `first-last`, separated by commas; "" for none.

    Examples
    --------
    >>> format_ranges([1, 2, 3, 7])
    '1-3,7'
    """
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def count_of(number: int, noun: str, plural: str | None = None) -> str:
    """Say how many there are, in the singular for one.

    Examples
    --------
    >>> count_of(1, "subject"), count_of(2, "subject"), count_of(0, "stimulus", "stimuli")
    ('1 subject', '2 subjects', '0 stimuli')
    """
    return f"{number} {noun if number == 1 else plural or noun + 's'}"
