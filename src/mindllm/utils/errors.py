"""The error that users read."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MAX_LENGTH = 1500  # of a message: what it shows of a file may be of any length


class InputError(ValueError):
    """Bad input: the message says what was expected, what was found, where, and what to do.

    A message that shows a very long part of a file is shortened in its middle.

    Examples
    --------
    >>> import mindllm
    >>> mindllm.VoxelMasker.from_mask_img("missing.nii.gz")
    Traceback (most recent call last):
    ...
    mindllm.utils.errors.InputError: mask: there is no file missing.nii.gz.
    """

    def __init__(self, message: str) -> None:
        super().__init__(shorten(message, MAX_LENGTH))


def shorten(text: str, length: int) -> str:
    """Shorten a text in its middle.

    Parameters
    ----------
    text : str
        The text.
    length : int
        Greatest number of characters.

    Returns
    -------
    str
        The text, or its beginning and end.

    Examples
    --------
    >>> shorten("abcdefghijklmnopqrstuvwxyz", 15)
    'abcde ... vwxyz'
    """
    if len(text) <= length:
        return text
    half = (length - len(" ... ")) // 2
    return f"{text[:half]} ... {text[-half:]}"


def describe_error(error: BaseException) -> str:
    """Describe the error of another library in one line, for a message of our own.

    Parameters
    ----------
    error : BaseException
        The error.

    Returns
    -------
    str
        Its type, and what it says if it says anything.

    Examples
    --------
    >>> describe_error(OSError("cut off\\n - is it damaged?"))
    'OSError: cut off - is it damaged?'
    """
    message = shorten(" ".join(str(error).split()), 300)
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


@contextmanager
def name_file(path: Path | str) -> Iterator[None]:
    """Put the name of a file before the message of an `InputError`.

    Parameters
    ----------
    path : Path or str
        The file, or several in words.

    Raises
    ------
    InputError
        As the block does.
    """
    try:
        yield
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
