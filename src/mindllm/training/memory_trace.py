"""Memory and operations of a computation on tensors without content.

Every tensor that an operation makes is counted from then on until nothing refers to it, and the
sum at its highest is the peak. With `FakeTensorMode` a step of a model of any size is followed so
within seconds, on any machine, and nothing is allocated.
"""

import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

ACTIVATIONS = "activations"


@dataclass
class MemoryTrace:
    """What `trace_memory` has counted.

    Attributes
    ----------
    current : Counter of str
        Bytes of each part now.
    peak : Counter of str
        Bytes of each part when their sum was highest.
    flops : int
        Floating-point operations of matrix products.
    part : str
        Part that new tensors belong to.
    """

    current: Counter[str] = field(default_factory=Counter)
    peak: Counter[str] = field(default_factory=Counter)
    flops: int = 0
    part: str = ACTIVATIONS

    @property
    def peak_bytes(self) -> int:
        """Bytes of all parts at the peak."""
        return sum(self.peak.values())


class StorageTracker(TorchDispatchMode):
    """Counts the storages of all tensors that operations make, while they live.

    Parameters
    ----------
    trace : MemoryTrace
        Changed as operations run.
    name_part : callable
        From a tensor to the part that its storage belongs to, or None for the current one.
    """

    def __init__(self, trace: MemoryTrace, name_part: Callable[[Tensor], str | None]) -> None:
        super().__init__()
        self.trace, self.name_part = trace, name_part
        self.references: dict[int, weakref.ref[Any]] = {}
        self.parts: dict[int, str] = {}

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if count_flops := flop_registry.get(func.overloadpacket):
            self.trace.flops += count_flops(*args, **kwargs, out_val=result)
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self.add(tensor, self.name_part(tensor) or self.trace.part)
        return result

    def add(self, tensor: Tensor, part: str) -> None:
        """Count the storage of a tensor from now on, unless it is counted already."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.references:
            return
        size = storage.nbytes()
        self.references[key] = weakref.ref(storage, partial(self._remove, key, size))
        self.parts[key] = part
        self.trace.current[part] += size
        if sum(self.trace.current.values()) > self.trace.peak_bytes:
            self.trace.peak = Counter(self.trace.current)

    def rename(self, tensor: Tensor, part: str) -> None:
        """Move the storage of a tensor to another part."""
        key, size = tensor.untyped_storage()._cdata, tensor.untyped_storage().nbytes()
        if key in self.parts:
            self.trace.current[self.parts[key]] -= size
            self.trace.current[part] += size
            self.parts[key] = part

    def _remove(self, key: int, size: int, reference: object) -> None:
        del self.references[key]
        self.trace.current[self.parts.pop(key)] -= size

    def reset_peak(self) -> None:
        """Forget the peak so far."""
        self.trace.peak = Counter(self.trace.current)


@contextmanager
def trace_memory(
    resident: Mapping[str, Sequence[Tensor]],
    name_part: Callable[[Tensor], str | None] = lambda tensor: None,
) -> Iterator[tuple[MemoryTrace, StorageTracker]]:
    """Follow the operations within the context.

    Parameters
    ----------
    resident : mapping from str to sequence of Tensor
        Tensors that exist before, by part, such as the weights of a model.
    name_part : callable
        From a tensor that an operation makes to its part, or None for the current one.

    Yields
    ------
    trace : MemoryTrace
    tracker : StorageTracker

    Examples
    --------
    >>> import torch
    >>> with trace_memory({}) as (trace, _):
    ...     total = (torch.ones(256) + torch.ones(256)).sum()
    >>> trace.peak_bytes, trace.current[ACTIVATIONS]
    (3072, 4)
    """
    trace = MemoryTrace()
    tracker = StorageTracker(trace, name_part)
    for part, tensors in resident.items():
        for tensor in tensors:
            tracker.add(tensor, part)
    with tracker:
        yield trace, tracker
