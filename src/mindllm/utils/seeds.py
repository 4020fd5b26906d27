"""Seeds of random number generators."""

import zlib

from mindllm.utils.errors import InputError

MAX_SEED = 2**32 - 1  # of scikit-learn and the older generators of numpy


def check_seed(seed: int) -> int:
    """Check that a seed is one for every random number generator.

    Parameters
    ----------
    seed : int

    Returns
    -------
    int
        The seed.

    Raises
    ------
    InputError
        If it is no whole number from 0 to 2**32 - 1.

    Examples
    --------
    >>> check_seed(3)
    3
    """
    if isinstance(seed, int) and 0 <= seed <= MAX_SEED:
        return seed
    raise InputError(f"seed={seed!r}: expected a whole number from 0 to {MAX_SEED}.")


def subject_seed(seed: int, subject: str) -> list[int]:
    """Derive a subject's seed, which does not depend on the other subjects of an evaluation.

    Parameters
    ----------
    seed : int
        Seed of the evaluation.
    subject : str
        Subject label.

    Returns
    -------
    list of int
        Seed for `numpy.random.default_rng`: the evaluation's seed and a CRC-32 of the label.

    Examples
    --------
    >>> subject_seed(0, "sub-01") == subject_seed(0, "sub-02")
    False
    """
    return [seed, zlib.crc32(subject.encode())]
