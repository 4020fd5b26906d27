"""The order of labels with numbers in them."""

import re
from collections.abc import Iterable


def natural_key(label: str) -> tuple[tuple[str, int], ...]:
    """Return what a label is sorted by: texts as they are, numbers by their value.

    Parameters
    ----------
    label : str
        A label or the path of a file.

    Returns
    -------
    tuple of (str, int)
        Each text in the label with the number behind it; at last the label itself, so that
        labels such as 1 and 01 have an order too.
    """
    parts = re.findall(r"([^0-9]*)([0-9]{0,18})", label)
    return (*((text, int(digits) if digits else -1) for text, digits in parts), (label, 0))


def natural_sorted(labels: Iterable[str]) -> list[str]:
    """Sort labels, numbers in them by their value.

    Parameters
    ----------
    labels : iterable of str
        Labels, such as those of subjects, sessions or runs.

    Returns
    -------
    list of str
        The labels in their order.

    Examples
    --------
    >>> natural_sorted(["sub-10", "sub-2", "sub-1"])
    ['sub-1', 'sub-2', 'sub-10']
    """
    return sorted(labels, key=natural_key)
