"""A frozen language model from the hub, a folder or a GGUF file."""

import logging
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from mindllm.language.hub import (
    DEFAULT_LANGUAGE_MODEL,
    load_local_first,
    model_not_found_message,
    quiet_transformers,
)
from mindllm.model.checkpoint import fingerprint
from mindllm.model.generation import find_end_token_ids
from mindllm.model.shortcuts import Shortcuts, find_shortcuts
from mindllm.utils.errors import InputError

POSITIONS = ("max_position_embeddings", "max_seq_len")  # names of their number
logger = logging.getLogger(__name__)


class FrozenLanguageModel(nn.Module):
    """A causal language model whose weights are not trained unless asked for, and its tokenizer.

    Parameters
    ----------
    name : str
        Hub id, folder or file that loads it again.
    model : transformers.PreTrainedModel
        The causal model; its parameters are set not to require gradients.
    tokenizer : transformers.PreTrainedTokenizerBase
        Its tokenizer.

    Attributes
    ----------
    end_token_ids : list of int
        Tokens with which its configuration ends a text.
    shortcuts : Shortcuts
        Ways to read several texts at once that give the logits of its own forward.
    is_modified : bool
        Whether its weights are no longer those that `name` loads, so that a checkpoint keeps them.

    Raises
    ------
    InputError
        If the model is not causal, cannot read embeddings, or has weights that are not finite.
    """

    shortcuts: Shortcuts

    def __init__(self, name: str, model: Any, tokenizer: Any) -> None:
        super().__init__()
        self.name, self.tokenizer = name, tokenizer
        self.end_token_ids = find_end_token_ids(model)
        # Greedy unless a caller says otherwise, whatever options come with the weights.
        model.generation_config = GenerationConfig()
        self.shortcuts = find_shortcuts(model, tokenizer, name)
        self.fingerprint = fingerprint(model)
        self.is_modified = False
        self.model = model.requires_grad_(False)

    @property
    def hidden_size(self) -> int:
        """Size of a token embedding."""
        return int(self.model.get_input_embeddings().embedding_dim)

    @property
    def num_embeddings(self) -> int:
        """Number of token ids that have an embedding."""
        return int(self.model.get_input_embeddings().num_embeddings)

    @property
    def max_length(self) -> int | None:
        """Number of positions, or None where the configuration does not state one."""
        config = self.model.config.get_text_config(decoder=True)
        lengths = (getattr(config, name, None) for name in POSITIONS)
        return next((length for length in lengths if length and length > 0), None)

    @property
    def pad_id(self) -> int:
        """A token id to pad with; padding is masked, so any with an embedding will do."""
        ids = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, 0)
        return next(i for i in ids if i is not None and i < self.num_embeddings)


def load_language_model(
    name: str | Path | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = "auto",
    *,
    device_map: Any = None,
    quantization_config: Any = None,
    attn_implementation: str | None = None,
    **kwargs: Any,
) -> FrozenLanguageModel:
    """Load a frozen causal language model.

    Parameters
    ----------
    name : str or Path, optional
        Hub id, folder or .gguf file; by default SmolLM2-135M-Instruct.
    device : str or torch.device, optional
        Where to put it, if `device_map` does not say; by default the CPU.
    dtype : str or torch.dtype, optional
        "auto" or None: float32 on a CPU, bfloat16 elsewhere.
    device_map : str or dict, optional
        As in transformers (needs accelerate); a single device is the same as `device`.
    quantization_config : transformers.utils.quantization_config.QuantizationConfigMixin, optional
        For instance ``BitsAndBytesConfig(load_in_4bit=True)`` (needs bitsandbytes and a GPU).
    attn_implementation : str, optional
        "eager", "sdpa", "flash_attention_2", ...
    **kwargs
        Further arguments of ``AutoModelForCausalLM.from_pretrained``.

    Returns
    -------
    FrozenLanguageModel
        In evaluation mode.

    Raises
    ------
    InputError
        If it cannot be found or read, or a library that it needs is missing.
    """
    name = str(name or DEFAULT_LANGUAGE_MODEL)
    if isinstance(device_map, str) and device_map not in ("auto", "balanced", "sequential"):
        device, device_map = device_map, None
    target = torch.device(device or "cpu")
    if dtype in ("auto", None):
        on_cpu = target.type == "cpu" and device_map is None
        dtype = torch.float32 if on_cpu else torch.bfloat16
    options = {
        "device_map": device_map,
        "quantization_config": quantization_config,
        "attn_implementation": attn_implementation,
    }
    options = {key: value for key, value in options.items() if value is not None} | kwargs

    def load(location: str) -> tuple[Any, Any]:
        tokenizer = AutoTokenizer.from_pretrained(location)
        return tokenizer, AutoModelForCausalLM.from_pretrained(location, dtype=dtype, **options)

    try:
        with quiet_transformers():
            tokenizer, model = load_local_first(name, load)
    except InputError:
        raise
    except ImportError as error:
        raise InputError(
            f"language model {name} needs a library that is not installed ({error}). "
            "Install it, or load the model without that option."
        ) from error
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise InputError(model_not_found_message(name, reason)) from error
    if device_map is None and quantization_config is None:
        model = model.to(target)
    keep_gradients(model)
    return FrozenLanguageModel(name, model.eval(), tokenizer)


def keep_gradients(model: Any) -> None:
    """Have 4-bit layers on a CPU compute in a way that gradients pass through, and exactly.

    In evaluation mode bitsandbytes else packs their weights, for good, for a kernel that rounds to
    bfloat16 and has no gradient.
    """
    for layer in model.modules():
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False


def default_device() -> str:
    """The GPU if there is one."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
