"""Decode fMRI into text, and say honestly how much of the text came from the brain."""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = [
    "InputError",
    "MindLLM",
    "MindLLMConfig",
    "Store",
    "TextDecoder",
    "TrialDataset",
    "VoxelMasker",
    "conversations_from_captions",
    "evaluate",
    "standardize_betas",
    "write_store",
]

if TYPE_CHECKING:
    from mindllm.data.dataset import TrialDataset
    from mindllm.data.store import Store
    from mindllm.data.store_writer import conversations_from_captions, write_store
    from mindllm.estimator.text_decoder import TextDecoder
    from mindllm.evaluation.evaluator import evaluate
    from mindllm.fmri.masker import VoxelMasker
    from mindllm.fmri.scaling import standardize_betas
    from mindllm.model.configuration import MindLLMConfig
    from mindllm.model.modeling import MindLLM
    from mindllm.utils.errors import InputError

_LAZY_IMPORTS = {
    "Store": "data.store",
    "TextDecoder": "estimator.text_decoder",
    "write_store": "data.store_writer",
    "conversations_from_captions": "data.store_writer",
    "InputError": "utils.errors",
    "MindLLM": "model.modeling",
    "MindLLMConfig": "model.configuration",
    "TrialDataset": "data.dataset",
    "evaluate": "evaluation.evaluator",
    "VoxelMasker": "fmri.masker",
    "standardize_betas": "fmri.scaling",
}


def __getattr__(name: str) -> Any:
    """The public names, imported when first used: `import mindllm` itself loads nothing heavy."""
    from importlib import import_module

    if name not in _LAZY_IMPORTS:
        raise AttributeError(f"module 'mindllm' has no attribute {name!r}")
    return getattr(import_module(f"mindllm.{_LAZY_IMPORTS[name]}"), name)
