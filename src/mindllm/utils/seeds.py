"""Seeds of one's own."""

import zlib


def subject_seed(seed: int, subject: str) -> list[int]:
    """A subject's own random numbers: the same whoever is evaluated beside them."""
    return [seed, zlib.crc32(subject.encode())]
