"""Decode fMRI into text, and say honestly how much of the text came from the brain."""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["InputError", "MindLLM", "Store", "VoxelSpace", "captions", "load", "normalize", "write"]

if TYPE_CHECKING:
    from mindllm.checkpoint import load
    from mindllm.data.store import Store
    from mindllm.data.writer import captions, write
    from mindllm.errors import InputError
    from mindllm.model import MindLLM
    from mindllm.normalization import normalize
    from mindllm.voxels import VoxelSpace

HOMES = {
    "load": "checkpoint",
    "Store": "data.store",
    "write": "data.writer",
    "captions": "data.writer",
    "InputError": "errors",
    "MindLLM": "model",
    "VoxelSpace": "voxels",
    "normalize": "normalization",
}


def __getattr__(name: str) -> Any:
    """The public names, imported when first used: `import mindllm` itself loads nothing heavy."""
    from importlib import import_module

    if name not in HOMES:
        raise AttributeError(f"module 'mindllm' has no attribute {name!r}")
    return getattr(import_module(f"mindllm.{HOMES[name]}"), name)
