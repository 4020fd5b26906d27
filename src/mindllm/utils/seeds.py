"""Seeds of random number generators."""

import zlib


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
