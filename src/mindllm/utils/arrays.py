"""Arrays in .npy and .npz files of any origin: no code is run, no more is read than is there."""

import math
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mindllm.utils.errors import InputError
from mindllm.utils.files import describe_read_errors


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
