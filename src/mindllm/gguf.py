"""GGUF files: converted once to a folder of safetensors in the cache."""

import hashlib
import logging
import os
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from mindllm.errors import InputError
from mindllm.files import whole_folder

logger = logging.getLogger(__name__)


def from_gguf(file: Path) -> Path:
    """Convert a GGUF file to a folder of safetensors in the cache, once, and return the folder."""
    if not file.is_file():
        raise InputError(f"language model: there is no file {file}.")
    state = file.stat()
    key = hashlib.sha256(f"{file.resolve()}:{state.st_size}:{state.st_mtime_ns}".encode()).hexdigest()[:12]
    folder = cache() / "llm" / f"{file.stem}-{key}"
    if not folder.exists():
        logger.info("converting %s to safetensors in %s (once)", file.name, folder)
        try:
            tokenizer = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
            quantized = AutoModelForCausalLM.from_pretrained(str(file.parent), gguf_file=file.name, dtype=torch.float32)
        except Exception as error:  # the gguf reader has no error class of its own
            raise InputError(
                f"language model: {file} cannot be read as GGUF ({type(error).__name__}: {error}). Fetch the file again, or convert the model to a folder."
            ) from error
        # The loaded model still counts as quantized and refuses to be saved; a plain one takes over its numbers.
        quantized.config.__dict__.pop("quantization_config", None)
        model = AutoModelForCausalLM.from_config(quantized.config, dtype=torch.float32)
        model.load_state_dict(quantized.state_dict())
        with whole_folder(folder) as temporary:
            model.save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
    return folder


def cache() -> Path:
    """The folder for converted models: $MINDLLM_CACHE, or mindllm in the user's cache folder."""
    return Path(
        os.environ.get("MINDLLM_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mindllm"
    )
