"""Parts of an explanation that are kept on disk, so that an interruption loses none.

What takes long is kept: lesions and the words of answers, each trial by itself, beside a key that
says what it depends on. A part whose key differs is computed anew.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from mindllm.utils.arrays import load_arrays
from mindllm.utils.files import atomic_write

Arrays = Mapping[str, np.ndarray]
KEY = "key"
REMEDY = "Delete it, and explain anew."


class KeptParts:
    """Arrays by name in a folder; without a folder nothing is kept.

    Parameters
    ----------
    folder : Path or None

    Examples
    --------
    >>> KeptParts(None).get("part", "", lambda: {"x": np.ones(2)})["x"]
    array([1., 1.])
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def get(self, name: str, key: str, compute: Callable[[], Arrays]) -> Arrays:
        """The arrays of a name, read if they are kept under this key.

        Parameters
        ----------
        name : str
            Of the file, without its suffix.
        key : str
            What the arrays depend on; see `hash_parts`.
        compute : callable
            Makes the arrays.

        Returns
        -------
        mapping of str to ndarray

        Raises
        ------
        InputError
            If the file is damaged.
        """
        if self.folder is None:
            return compute()
        path = self.folder / f"{name}.npz"
        if path.exists():
            arrays = load_arrays(path, remedy=REMEDY)
            if arrays.pop(KEY, np.array("")).tobytes() == encode(key).tobytes():
                return arrays
        arrays = dict(compute())
        with atomic_write(path) as temporary:
            np.savez_compressed(temporary, **arrays, key=encode(key))  # type: ignore[arg-type]
        return arrays


def encode(text: str) -> np.ndarray:
    """A text as bytes."""
    return np.frombuffer(text.encode(), np.uint8)


def hash_parts(*parts: str | bytes | np.ndarray) -> str:
    """Beginning of the SHA-256 of texts and arrays.

    Examples
    --------
    >>> hash_parts("a", np.ones(2)) == hash_parts("a", np.ones(2)) != hash_parts("b", np.ones(2))
    True
    """
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            content = str((part.shape, part.dtype)).encode() + np.ascontiguousarray(part).tobytes()
        else:
            content = part.encode() if isinstance(part, str) else part
        digest.update(len(content).to_bytes(8, "little") + content)
    return digest.hexdigest()[:16]
