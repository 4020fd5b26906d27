"""A cache that holds the objects used last, up to a number of them or of bytes."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


def count_one(value: object) -> int:
    """Size of an object where objects are counted."""
    return 1


class BoundedCache(Generic[Key, Value]):
    """Objects by key, of which those used last are kept; several threads may use it.

    Parameters
    ----------
    limit : int
        Of the sizes of all objects together; the one used last is kept however large it is.
    size_of : callable
        Size of an object, such as its bytes; by default 1, so that objects are counted.

    Examples
    --------
    >>> cache = BoundedCache(2)
    >>> [cache.get(key, lambda: key.upper()) for key in ("a", "b", "a", "c")]
    ['A', 'B', 'A', 'C']
    >>> cache.keys()
    ['a', 'c']
    >>> cache = BoundedCache(10, size_of=len)
    >>> [cache.get(key, lambda: b"12345678") for key in ("a", "b")]
    [b'12345678', b'12345678']
    >>> cache.keys(), cache.size
    (['b'], 8)
    """

    def __init__(self, limit: int, size_of: Callable[[Value], int] = count_one) -> None:
        self.limit, self.size_of = limit, size_of
        self._values: OrderedDict[Key, Value] = OrderedDict()
        self._size = 0
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._values)

    @property
    def size(self) -> int:
        """Sizes of all objects together."""
        return self._size

    def keys(self) -> list[Key]:
        """Keys, that which was not used for longest first."""
        with self._lock:
            return list(self._values)

    def get(self, key: Key, make: Callable[[], Value]) -> Value:
        """The object of a key, made if it is not held.

        Parameters
        ----------
        key : hashable
        make : callable
            Makes the object; called without the lock, so it may use the cache.

        Returns
        -------
        object
        """
        return self.look_up(key, make)[0]

    def look_up(self, key: Key, make: Callable[[], Value]) -> tuple[Value, bool]:
        """The object of a key as `get` returns it, and whether it was held."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key], True
        value = make()
        with self._lock:
            self._drop(key)
            self._values[key] = value
            self._size += self.size_of(value)
            while self._size > self.limit and len(self._values) > 1:
                self._drop(next(iter(self._values)))
        return value, False

    def remove(self, matches: Callable[[Key], bool]) -> None:
        """Remove the objects whose keys match."""
        with self._lock:
            for key in [key for key in self._values if matches(key)]:
                self._drop(key)

    def _drop(self, key: Key) -> None:
        """Remove an object that may be there; called with the lock."""
        if key in self._values:
            self._size -= self.size_of(self._values.pop(key))
