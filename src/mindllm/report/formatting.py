"""Numbers and lists as text."""

from collections.abc import Sequence

from mindllm.evaluation.results import MetricRow

UNDEFINED = "–"


def format_percent(fraction: float | None) -> str:
    """Return a fraction as percent.

    Parameters
    ----------
    fraction : float or None
        In [0, 1]; None: unknown.

    Returns
    -------
    str
        With one decimal.

    Examples
    --------
    >>> format_percent(0.425)
    '42.5 %'
    """
    return "unknown" if fraction is None else f"{100 * fraction:.1f} %"


def format_interval(row: MetricRow, factor: float = 100) -> str:
    """Return both ends of the interval of a score.

    Parameters
    ----------
    row : MetricRow
        The score, in [0, 1].
    factor : float
        What the ends are multiplied with.

    Returns
    -------
    str
        Empty where the score is not defined.
    """
    if row.ci_low is None or row.ci_high is None:
        return ""
    return f"{factor * row.ci_low:.1f} – {factor * row.ci_high:.1f}"


def format_p(p_value: float, n_permutations: int) -> str:
    """Return a p-value as text; the smallest that the permutations can show is a bound.

    Parameters
    ----------
    p_value : float
        Of a permutation test.
    n_permutations : int
        Its number of permutations.

    Returns
    -------
    str
        Such as "p = 0.02".

    Examples
    --------
    >>> format_p(0.021, 2000), format_p(1 / 2001, 2000)
    ('p = 0.021', 'p < 0.0005')
    """
    if p_value <= 1.5 / (n_permutations + 1):
        return f"p < {1.001 / n_permutations:.1g}"
    return f"p = {p_value:.2g}"


def join_words(words: Sequence[str]) -> str:
    """Return words as a list in a sentence.

    With commas between them, and "and" before the last one.

    Parameters
    ----------
    words : sequence of str
        At least one.

    Returns
    -------
    str
        For a sentence.

    Examples
    --------
    >>> join_words(["zeros", "noise", "ridge"])
    'zeros, noise and ridge'
    """
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
