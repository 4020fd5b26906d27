"""Decode fMRI into text, and say honestly how much of the text came from the brain."""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = [
    "InputError",
    "MindLLM",
    "Store",
    "TextDecoder",
    "VoxelMasker",
    "conversations_from_captions",
    "load",
    "standardize_betas",
    "write_store",
]

if TYPE_CHECKING:
    from mindllm.data.store import Store
    from mindllm.data.store_writer import conversations_from_captions, write_store
    from mindllm.estimator.text_decoder import TextDecoder
    from mindllm.fmri.masker import VoxelMasker
    from mindllm.fmri.scaling import standardize_betas
    from mindllm.model.checkpoint import load
    from mindllm.model.modeling import MindLLM
    from mindllm.utils.errors import InputError

_LAZY_IMPORTS = {
    "load": "model.checkpoint",
    "Store": "data.store",
    "TextDecoder": "estimator.text_decoder",
    "write_store": "data.store_writer",
    "conversations_from_captions": "data.store_writer",
    "InputError": "utils.errors",
    "MindLLM": "model.modeling",
    "VoxelMasker": "fmri.masker",
    "standardize_betas": "fmri.scaling",
}


def __getattr__(name: str) -> Any:
    """The public names, imported when first used: `import mindllm` itself loads nothing heavy."""
    from importlib import import_module

    if name not in _LAZY_IMPORTS:
        raise AttributeError(f"module 'mindllm' has no attribute {name!r}")
    return getattr(import_module(f"mindllm.{_LAZY_IMPORTS[name]}"), name)
