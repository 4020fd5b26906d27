"""Decode fMRI into text, and say honestly how much of the text came from the brain."""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["InputError", "MindLLM", "Store", "VoxelSpace", "captions", "load", "normalize", "write"]

if TYPE_CHECKING:
    from mindllm.data.store import Store
    from mindllm.data.store_writer import captions, write
    from mindllm.fmri.masker import VoxelSpace
    from mindllm.fmri.scaling import normalize
    from mindllm.model.checkpoint import load
    from mindllm.model.modeling import MindLLM
    from mindllm.utils.errors import InputError

HOMES = {
    "load": "model.checkpoint",
    "Store": "data.store",
    "write": "data.store_writer",
    "captions": "data.store_writer",
    "InputError": "utils.errors",
    "MindLLM": "model.modeling",
    "VoxelSpace": "fmri.masker",
    "normalize": "fmri.scaling",
}


def __getattr__(name: str) -> Any:
    """The public names, imported when first used: `import mindllm` itself loads nothing heavy."""
    from importlib import import_module

    if name not in HOMES:
        raise AttributeError(f"module 'mindllm' has no attribute {name!r}")
    return getattr(import_module(f"mindllm.{HOMES[name]}"), name)
