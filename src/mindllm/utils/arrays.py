"""Arrays in .npy and .npz files of any origin: no code is run, no more is read than is there."""

import math
import sys
import zipfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from mindllm.utils.errors import InputError
from mindllm.utils.files import describe_read_errors

Shape = tuple[int | None, ...]  # None: any length


@dataclass(frozen=True, slots=True)
class ArrayHeader:
    """What the header of an array announces.

    Parameters
    ----------
    shape : tuple of int
    dtype : numpy.dtype
    is_fortran : bool
        Whether the first index changes fastest.
    n_stored_bytes : int
        Bytes after the header, which may be more or fewer than it announces.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    is_fortran: bool
    n_stored_bytes: int

    @property
    def n_bytes(self) -> int:
        """Announced bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_header(file: IO[bytes], size: int) -> ArrayHeader:
    """Read the header of a .npy file of `size` bytes; ValueError if it is none."""
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    version = np.lib.format.read_magic(file)
    if version not in readers:
        raise ValueError(f"version {version} of the format .npy")
    shape, is_fortran, dtype = readers[version](file)
    return ArrayHeader(shape, dtype, is_fortran, size - file.tell())


def read_array_header(path: Path, remedy: str) -> ArrayHeader:
    """Read the header of a .npy file.

    Parameters
    ----------
    path : Path
    remedy : str
        What to do about a damaged file, for the message.

    Returns
    -------
    ArrayHeader

    Raises
    ------
    InputError
        If the file is missing or no array.
    """
    with describe_read_errors(path, remedy), path.open("rb") as file:
        return read_header(file, path.stat().st_size)


def check_header(
    header: ArrayHeader, where: str, shape: Shape, dtypes: Collection[str], remedy: str
) -> None:
    """Check what an array's header announces.

    Parameters
    ----------
    header : ArrayHeader
    where : str
        The file, and the array in it if it holds several, for the message.
    shape : tuple of int or None
        The shape that it must have; None: any length.
    dtypes : collection of str
        Types that it may have, such as "float32", or kinds of type: "text", "number".
    remedy : str
        What to do, for the message.

    Raises
    ------
    InputError
        If type or shape differ, or fewer or more numbers are stored than announced.
    """
    kind = {"U": "text", "f": "float"}.get(header.dtype.kind, "")
    if header.dtype.str[0] == ">" or not {str(header.dtype), kind} & set(dtypes):
        raise InputError(
            f"{where} holds the type {header.dtype}; expected {' or '.join(dtypes)}. {remedy}"
        )
    fits = len(header.shape) == len(shape) and all(
        expected in (None, length) for expected, length in zip(shape, header.shape, strict=True)
    )
    if not fits:
        shown = str(shape).replace("None", "any")
        raise InputError(f"{where} has shape {header.shape}; expected {shown}. {remedy}")
    if header.is_fortran and len(header.shape) > 1:
        raise InputError(f"{where} is in Fortran order; expected C order. {remedy}")
    if header.n_bytes != header.n_stored_bytes:
        raise InputError(
            f"{where} announces {header.n_bytes} bytes of numbers, {header.n_stored_bytes} are "
            f"stored. {remedy}"
        )


def load_array(file: Path, remedy: str = "Fetch it again.") -> np.ndarray:
    """Open an array of numbers; it stays on disk until it is used.

    Parameters
    ----------
    file : Path
        A .npy file.
    remedy : str
        What to do about a damaged file, for the message.

    Returns
    -------
    ndarray
        Memory-mapped.

    Raises
    ------
    InputError
        If the file is missing, damaged, shorter than it says, or holds other than real numbers.
    """
    with describe_read_errors(file, remedy):
        array = np.load(file, mmap_mode="r", allow_pickle=False)
        if not isinstance(array, np.ndarray):
            raise ValueError("it is an archive of arrays")
    if array.dtype.kind not in "biuf":
        raise InputError(
            f"{file} holds values of type {array.dtype}; expected real numbers. {remedy}"
        )
    return array


def load_arrays(
    file: Path, names: Sequence[str] | None = None, remedy: str = "Fetch it again."
) -> dict[str, np.ndarray]:
    """Read arrays of numbers or text from an archive, each against its checksum.

    Parameters
    ----------
    file : Path
        A .npz file.
    names : sequence of str, optional
        Names of the arrays that it must have. Default: all that it has are read.
    remedy : str
        What to do about a damaged file, for the message.

    Returns
    -------
    dict of str to ndarray
        The arrays by name.

    Raises
    ------
    InputError
        If the file is missing or damaged, lacks an array, or one announces more than it holds.
    """
    with describe_read_errors(file, remedy), zipfile.ZipFile(file) as archive:
        present = [entry.removesuffix(".npy") for entry in archive.namelist()]
        if missing := sorted(set(names or []) - set(present)):
            raise InputError(
                f"{file} lacks the arrays {', '.join(missing)}; it holds {present}. {remedy}"
            )
        selected = [
            entry
            for entry in archive.infolist()
            if names is None or entry.filename.removesuffix(".npy") in names
        ]
        return {
            entry.filename.removesuffix(".npy"): read_member(archive, entry) for entry in selected
        }


def read_member(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> np.ndarray:
    """Read an array of an archive to its end, where its checksum is compared."""
    with archive.open(entry) as member:
        version = np.lib.format.read_magic(member)
        read_header = (
            np.lib.format.read_array_header_1_0
            if version == (1, 0)
            else np.lib.format.read_array_header_2_0
        )
        shape, is_fortran, dtype = read_header(member)
        announced = math.prod(shape) * dtype.itemsize
        if dtype.kind not in "biufU" or min(shape, default=0) < 0:
            raise ValueError(f"{entry.filename} holds no numbers or text")
        if announced != entry.file_size - member.tell():
            raise ValueError(f"{entry.filename} announces {announced} bytes and holds others")
        content = bytearray()
        while chunk := member.read(2**20):
            content += chunk
            if len(content) > announced:
                break
    array = np.frombuffer(content, dtype, math.prod(shape))
    if (
        dtype.kind == "U"
        and array.size
        and array.view(f"{dtype.byteorder}u4").max() > sys.maxunicode
    ):
        raise ValueError(f"{entry.filename} holds characters that do not exist")
    return array.reshape(shape, order="F" if is_fortran else "C")


def read_checked_arrays(
    path: Path, expected: Mapping[str, tuple[Shape, Collection[str]]], remedy: str
) -> dict[str, np.ndarray]:
    """Read a .npz file whose arrays are known by name, shape and type.

    Parameters
    ----------
    path : Path
    expected : mapping from str to (shape, collection of str)
        Shape and types of each array, as `check_header` takes them.
    remedy : str
        What to do about a file that differs, for the message.

    Returns
    -------
    dict of str to ndarray

    Raises
    ------
    InputError
        If the file is damaged, an array is missing, left over or another than expected, or
        numbers are NaN or infinite.
    """
    arrays = load_arrays(path, remedy=remedy)
    if missing := sorted(set(expected) - set(arrays)):
        raise InputError(
            f"{path} lacks the arrays {', '.join(missing)}; it holds {sorted(arrays)}. {remedy}"
        )
    if extra := sorted(set(arrays) - set(expected)):
        raise InputError(
            f"{path} holds {', '.join(extra)}; expected {', '.join(expected)} alone. {remedy}"
        )
    for name, (shape, dtypes) in expected.items():
        values = arrays[name]
        header = ArrayHeader(values.shape, values.dtype, False, values.nbytes)
        check_header(header, f"{path}, {name}", shape, dtypes, remedy)
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise InputError(
                f"{path}, {name} holds NaN or infinite values; expected finite ones. {remedy}"
            )
    return arrays
