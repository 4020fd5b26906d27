"""A cache that holds the objects used last, up to a number of bytes."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class BoundedCache(Generic[T]):
    """Objects by name, of which those used last are kept.

    Parameters
    ----------
    max_bytes : int
        Of all objects together; the one used last is kept however large it is.
    size_of : callable
        Bytes of an object.

    Examples
    --------
    >>> cache = BoundedCache(max_bytes=10, size_of=len)
    >>> [cache.get(name, lambda: b"12345678") for name in ("a", "b")]
    [b'12345678', b'12345678']
    >>> list(cache.content)
    ['b']
    """

    def __init__(self, max_bytes: int, size_of: Callable[[T], int]) -> None:
        self.max_bytes, self.size_of = max_bytes, size_of
        self.content: OrderedDict[str, T] = OrderedDict()
        self.n_bytes = 0

    def get(self, name: str, load: Callable[[], T]) -> T:
        """The object of a name, loaded if it is not held.

        Parameters
        ----------
        name : str
        load : callable
            Makes the object.

        Returns
        -------
        object
        """
        if name not in self.content:
            self.content[name] = load()
            self.n_bytes += self.size_of(self.content[name])
            while self.n_bytes > self.max_bytes and len(self.content) > 1:
                _, dropped = self.content.popitem(last=False)
                self.n_bytes -= self.size_of(dropped)
        self.content.move_to_end(name)
        return self.content[name]
