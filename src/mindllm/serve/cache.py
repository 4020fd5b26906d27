"""A dictionary of bounded size: what was not used for longest goes first."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class LRUCache(Generic[Key, Value]):
    """The values that were used last.

    Parameters
    ----------
    size : int
        Number of values.

    Examples
    --------
    >>> cache = LRUCache(2)
    >>> for key in ("a", "b", "a", "c"):
    ...     value, is_hit = cache.get(key, lambda: key.upper())
    >>> cache.keys()
    ['a', 'c']
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._values: OrderedDict[Key, Value] = OrderedDict()
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._values)

    def keys(self) -> list[Key]:
        """Keys, that which was not used for longest first."""
        with self._lock:
            return list(self._values)

    def get(self, key: Key, make: Callable[[], Value]) -> tuple[Value, bool]:
        """A value, which is made if it is not there, and whether it was."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key], True
        value = make()
        with self._lock:
            self._values[key] = value
            self._values.move_to_end(key)
            while len(self._values) > self.size:
                self._values.popitem(last=False)
        return value, False

    def remove(self, matches: Callable[[Key], bool]) -> None:
        """Remove the values whose keys match."""
        with self._lock:
            for key in [key for key in self._values if matches(key)]:
                del self._values[key]
