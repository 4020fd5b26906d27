"""A language model from the hub, a folder or a GGUF file: any causal model that transformers can read."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer

from mindllm.language.hub import DEFAULT, model_not_found_message, resolve_model_id
from mindllm.utils.errors import InputError


@dataclass
class FrozenLanguageModel:
    """A causal model and its tokenizer. `name` is what loads it again; `fingerprint` tells its weights from others'."""

    name: str
    model: Any
    tokenizer: Any
    fingerprint: str

    @property
    def hidden_size(self) -> int:
        """Numbers per token embedding."""
        return int(self.model.get_input_embeddings().embedding_dim)

    @property
    def max_length(self) -> int | None:
        """Tokens the model reads at most, where its configuration says so."""
        return getattr(self.model.config, "max_position_embeddings", None)

    @property
    def pad_id(self) -> int:
        """A token id to pad with; padding is masked, so any that the model has a row for will do."""
        rows = self.model.get_input_embeddings().num_embeddings
        ids = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, 0)
        return next(i for i in ids if i is not None and i < rows)


def load_language_model(
    name: str | Path | None = None, device: str | torch.device = "cpu", dtype: str = "auto"
) -> FrozenLanguageModel:
    """Load a frozen causal language model: a hub id, a folder, a .gguf file, or (None) the small default.

    dtype: "auto" computes in float32 on a CPU and in bfloat16 elsewhere; or the name of a type.
    Raises InputError, saying how to get it, for a model that is not to be had.
    """
    name = str(name or DEFAULT)
    if dtype == "auto":
        dtype = "float32" if torch.device(device).type == "cpu" else "bfloat16"
    place = resolve_model_id(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(place)
        model = AutoModelForCausalLM.from_pretrained(place, dtype=dtype)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise InputError(
            model_not_found_message(name, f"{type(error).__name__}: {error}")
        ) from error
    model = model.to(device).eval().requires_grad_(False)
    return FrozenLanguageModel(name, model, tokenizer, fingerprint(model))


def fingerprint(model: Any) -> str:
    """Twelve hexadecimal digits that differ between models: from the shapes, and a sample of the input embeddings."""
    weights = model.get_input_embeddings().weight
    sample = weights[:: max(1, len(weights) // 64), :16].float().half().cpu().numpy()
    shapes = repr([tuple(p.shape) for p in model.parameters()])
    return hashlib.sha256(shapes.encode() + sample.tobytes()).hexdigest()[:12]
