"""Lists of numbers in words."""

from collections.abc import Sequence


def format_ranges(some: Sequence[int]) -> str:
    """Whole numbers as ranges: 1-3,7."""
    runs: list[list[int]] = []
    for n in some:
        if runs and n == runs[-1][-1] + 1:
            runs[-1].append(n)
        else:
            runs.append([n])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
