"""Arrays of numbers in MATLAB 5 files (saved with -v6 or -v7)."""

import math
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from mindllm.utils.errors import InputError
from mindllm.utils.files import describe_read_errors
from mindllm.utils.text_files import read_bytes

HEADER = 128  # bytes
MATRIX, COMPRESSED = 14, 15  # types of elements
STORED_TYPES = {
    1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8",
}  # fmt: skip
ARRAY_TYPES = {
    6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8",
}  # fmt: skip
COMPLEX = 0x800


def load_mat(file: Path, names: Sequence[str], remedy: str) -> dict[str, np.ndarray]:
    """Read variables that are arrays of real numbers.

    Parameters
    ----------
    file : Path
        The file.
    names : sequence of str
        Names of the variables.
    remedy : str
        What to do about a damaged file, for the message.

    Returns
    -------
    dict of str to ndarray
        The variables by name.

    Raises
    ------
    InputError
        If the file is missing, is damaged, which the checksums of its compressed parts tell, or has
        a variable not, or as something else.

    References
    ----------
    The MathWorks, "MAT-File Format", level 5.
    """
    content = read_bytes(file, "a MATLAB file")
    arrays: dict[str, np.ndarray] = {}
    with describe_read_errors(file, remedy):
        for element in iter_elements(content):
            parts = iter_parts(element, byte_order(content))
            flags, dimensions, name = (next(parts) for _ in range(3))
            if (label := name.tobytes().decode("latin1")) in names:
                arrays[label] = build_array(label, flags, dimensions, next(parts))
    if missing := [name for name in names if name not in arrays]:
        raise InputError(f"{file} lacks {', '.join(missing)}. {remedy}")
    for label, array in arrays.items():
        if not np.isfinite(array).all():
            raise InputError(f"{file}: {label} holds NaN or infinite values. {remedy}")
    return arrays


def byte_order(content: bytes) -> str:
    """Return the order of bytes, as struct and numpy have it."""
    return "<" if content[126:128] == b"IM" else ">"


def iter_elements(content: bytes) -> Iterator[bytes]:
    """Iterate over the contents of the outermost elements, each against its checksum."""
    position = HEADER
    while position < len(content):
        kind, size = struct.unpack(f"{byte_order(content)}II", content[position : position + 8])
        part = content[position + 8 : position + 8 + size]
        if len(part) != size or kind not in (MATRIX, COMPRESSED):
            raise ValueError(f"an element of type {kind} at byte {position} is no variable")
        position += 8 + size
        yield zlib.decompress(part)[8:] if kind == COMPRESSED else part


def iter_parts(element: bytes, order: str) -> Iterator[np.ndarray]:
    """Iterate over the parts of a variable: flags, dimensions, name and numbers."""
    position = 0
    while True:
        (tag,) = struct.unpack(f"{order}I", element[position : position + 4])
        if tag >> 16:  # at most four bytes stand in the tag itself
            kind, size, start, position = tag & 0xFFFF, tag >> 16, position + 4, position + 8
        else:
            kind, (size,) = tag, struct.unpack(f"{order}I", element[position + 4 : position + 8])
            start, position = position + 8, position + 8 + -(-size // 8) * 8
        if kind not in STORED_TYPES or start + size > len(element):
            raise ValueError(f"a part of type {kind} and {size} bytes is no array of numbers")
        yield np.frombuffer(element[start : start + size], f"{order}{STORED_TYPES[kind]}")


def build_array(
    name: str, flags: np.ndarray, dimensions: np.ndarray, numbers: np.ndarray
) -> np.ndarray:
    """Build an array from its parts; ValueError if they do not belong together."""
    array_type, shape = ARRAY_TYPES.get(int(flags[0]) & 0xFF), tuple(map(int, dimensions))
    if array_type is None or int(flags[0]) & COMPLEX:
        raise ValueError(f"{name} is no array of real numbers")
    if min(shape, default=-1) < 0 or math.prod(shape) != len(numbers):
        raise ValueError(f"{name} announces the shape {shape} and has {len(numbers)} numbers")
    return numbers.astype(array_type).reshape(shape, order="F")
