"""Arrays and text in pickled .npy files of any origin, of which nothing is run.

Not even numpy's own constructors are called, which a damaged pickle can make read beyond their
memory: objects of this module take the place of arrays, and are checked before they become ones.
"""

import math
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from mindllm.utils.errors import InputError, describe_error
from mindllm.utils.files import describe_read_errors

TYPE = re.compile(r"[biuf][1248]|f16|[US]\d{1,6}")


class PickledType:
    """Takes the place of a numpy.dtype."""

    def __init__(self, code: str, *flags: object) -> None:
        self.code, self.order = code, "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] not in ("<", ">", "|", "="):
            raise pickle.UnpicklingError(f"there is no byte order {state[1]!r}")
        self.order = state[1]

    def to_dtype(self) -> np.dtype[Any]:
        """Return the type of numbers or text; ValueError for any other."""
        if not isinstance(self.code, str) or not TYPE.fullmatch(self.code):
            raise ValueError(f"{self.code!r} is no type of numbers or text")
        return np.dtype(f"{self.order}{self.code}")


class PickledArray:
    """Takes the place of a numpy.ndarray."""

    state: tuple[Any, ...] = ()

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.state = state

    @property
    def objects(self) -> list[Any]:
        """Elements of an array of objects."""
        elements = self.state[4] if len(self.state) == 5 else None
        if not isinstance(elements, list):
            raise ValueError("it holds an array, and not a dictionary")
        return elements

    def to_array(self) -> np.ndarray:
        """Return the array; ValueError if its parts do not belong together."""
        _, shape, dtype, is_fortran, content = self.state
        array_type = dtype.to_dtype()
        count = math.prod(shape)
        if min(shape, default=0) < 0 or count * array_type.itemsize != len(content):
            raise ValueError(f"an array of shape {shape} has {len(content)} bytes")
        array = np.frombuffer(content, array_type) if count else np.empty(0, array_type)
        return array.reshape(shape, order="F" if is_fortran else "C")


def make_array(*arguments: object) -> PickledArray:
    """Take the place of numpy's _reconstruct: the state follows."""
    return PickledArray()


def make_array_of_buffer(
    content: bytes, dtype: PickledType, shape: tuple[int, ...], order: str
) -> PickledArray:
    """Take the place of numpy's _frombuffer."""
    array = PickledArray()
    array.state = (1, shape, dtype, order == "F", content)
    return array


def make_scalar(dtype: PickledType, content: bytes = b"") -> Any:
    """Take the place of numpy's scalar."""
    return np.frombuffer(content, dtype.to_dtype(), 1)[0].item()


def encode_latin(text: str, encoding: str) -> bytes:
    """Take the place of _codecs.encode, with which Python 2's protocol keeps bytes."""
    return text.encode("latin1")


STAND_INS = {
    ("numpy", "ndarray"): PickledArray,
    ("numpy", "dtype"): PickledType,
    ("numpy._core.multiarray", "_reconstruct"): make_array,
    ("numpy._core.multiarray", "scalar"): make_scalar,
    ("numpy._core.numeric", "_frombuffer"): make_array_of_buffer,
    ("_codecs", "encode"): encode_latin,
}


class BoundedFile:
    """A file of which no more is read at a time than there is."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self.file, self.size = file, size

    def read(self, size: int) -> bytes:
        """Read as a file does."""
        return self.file.read(max(0, min(size, self.size)))

    def readline(self) -> bytes:
        """Read as a file does."""
        return self.file.readline()


class SafeUnpickler(pickle._Unpickler):  # type: ignore[misc,name-defined,unused-ignore]
    """Unpickler of numbers and text; anything else is refused, so that no code can be run.

    It is the one that is written in Python: that in C makes room for as many objects as a damaged
    pickle announces.
    """

    def find_class(self, module: str, name: str) -> Any:
        """Return what takes the place of a class or function."""
        known = module.replace("numpy.core", "numpy._core")  # as numpy 1 called it
        if (known, name) not in STAND_INS:
            raise pickle.UnpicklingError(
                f"it names {module}.{name}, which is neither a number nor text"
            )
        return STAND_INS[known, name]


def load_pickled_array(file: Path, name: str, what: str, remedy: str) -> np.ndarray:
    """Read an array of numbers from the dictionary in a .npy file, which is a pickle.

    Parameters
    ----------
    file : Path
        The file.
    name : str
        Key of the array.
    what : str
        What the file should be, for the message ("output of GLMsingle").
    remedy : str
        What to do about a damaged file, for the message.

    Returns
    -------
    ndarray
        The array; a list of numbers is one too.

    Raises
    ------
    InputError
        If the file is missing, damaged, holds other than numbers and text, or no such array.
    """
    content = load_pickled_dict(file, what, remedy)
    if name not in content:
        raise InputError(f"{file} has no {name}; it holds {', '.join(map(str, content))}. {remedy}")
    value = content[name]
    with describe_read_errors(file, remedy):
        # a list of unequal lists is no array
        array = value.to_array() if isinstance(value, PickledArray) else np.asarray(value)
    if array.dtype.kind not in "biuf":
        raise InputError(
            f"{file}: {name} holds values of type {array.dtype}; expected real numbers. {remedy}"
        )
    return array


def load_pickled_dict(file: Path, what: str, remedy: str) -> Mapping[str, Any]:
    """Read a dictionary, in which `PickledArray` takes the place of arrays."""
    try:
        with file.open("rb") as content:
            version = np.lib.format.read_magic(content)
            read_header = (
                np.lib.format.read_array_header_1_0
                if version == (1, 0)
                else np.lib.format.read_array_header_2_0
            )
            if not read_header(content)[2].hasobject:
                raise ValueError("it holds an array, and not a dictionary")
            outermost = SafeUnpickler(BoundedFile(content, file.stat().st_size)).load()
            (dictionary,) = outermost.objects
            return dict(dictionary)
    except Exception as error:  # a damaged pickle may end in any error
        raise InputError(
            f"{file} is damaged or no {what} ({describe_error(error)}). {remedy}"
        ) from error
