"""A model folder: config.json, regions.json, model.safetensors; voxel spaces and a LoRA adapter where there are any.

The language model is named there, not copied.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from mindllm.fmri.masker_io import load_space, save_space
from mindllm.model.configuration import EncoderConfig
from mindllm.model.language_model import load_llm
from mindllm.model.modeling import MindLLM
from mindllm.utils.errors import InputError
from mindllm.utils.files import read_json, whole_file, write_json
from mindllm.utils.versions import package_version

FORMAT = 1
WHAT = "a model (made by `mindllm train` or `mindllm convert`)"
logger = logging.getLogger(__name__)


def save(model: MindLLM, folder: str | Path) -> None:
    """Write a model folder. config.json comes last: without it the folder is no model."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with whole_file(folder / "model.safetensors") as temporary:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}, temporary)
    write_json(folder / "regions.json", model.encoder.regions)
    names = numbered(model.encoder.regions)
    for space in model.spaces.values():
        (folder / "spaces" / space.name).mkdir(parents=True, exist_ok=True)
        own = {p: space.numbers(p, list(names[p].values())).astype(np.int32) for p in names}
        save_space(replace(space, regions=own, region_names=names), folder / "spaces" / space.name)
    if getattr(model.llm.model, "peft_config", None):
        model.llm.model.save_pretrained(folder / "adapter")
    llm = {"name": model.llm.name, "fingerprint": model.llm.fingerprint, "template": model.template}
    write_json(
        folder / "config.json",
        {
            "format": FORMAT,
            "version": package_version("mindllm"),
            "encoder": model.encoder.config.model_dump(),
            "llm": llm,
            "card": model.card,
        },
    )


def load(
    folder: str | Path, *, llm: str | None = None, device: str | torch.device | None = None, dtype: str = "auto"
) -> MindLLM:
    """Load a model folder, ready to decode. `llm`: where its language model stands on this machine, if not under its name.
    dtype: what the language model computes in, see `load_llm`.

    Raises InputError for a folder that is no model, is damaged or newer, or whose language model is not the one it was trained with.
    """
    folder = Path(folder)
    content: dict[str, Any] = read_json(folder / "config.json", WHAT)
    if content.get("format", 0) > FORMAT:
        raise InputError(
            f"{folder} has model format {content['format']} (mindllm {content.get('version')}); this version, {package_version('mindllm')}, reads up to {FORMAT}. Upgrade mindllm."
        )
    try:
        config = EncoderConfig(**content["encoder"])
    except (ValidationError, KeyError) as error:
        raise InputError(f"{folder / 'config.json'} does not describe an encoder: {error}") from error
    if not {"name", "fingerprint", "template"} <= set(content.get("llm") or {}):
        raise InputError(
            f"{folder / 'config.json'} does not name a language model; found {content.get('llm')!r}. Train or fetch the model again."
        )
    language = load_llm(llm or content["llm"]["name"], device or best_device(), dtype)
    if language.fingerprint != content["llm"]["fingerprint"]:
        logger.warning(
            "the language model %s differs from the one %s was trained with (fingerprint %s, expected %s): expect other text",
            language.name,
            folder,
            language.fingerprint,
            content["llm"]["fingerprint"],
        )
    if (folder / "adapter").is_dir():
        language.model.load_adapter(str(folder / "adapter"))
        language.model.requires_grad_(False)
    model = MindLLM(config, read_json(folder / "regions.json", WHAT), language, content["llm"]["template"])
    try:
        tensors = load_file(folder / "model.safetensors")
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{folder / 'model.safetensors'} is missing or damaged ({error}). Train or fetch the model again."
        ) from error
    expected = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    found = {name: tuple(t.shape) for name, t in tensors.items()}
    if found != expected:
        odd = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        raise InputError(
            f"{folder / 'model.safetensors'} does not fit config.json: {', '.join(f'{n}: expected {expected.get(n)}, found {found.get(n)}' for n in odd[:5])}."
        )
    model.load_state_dict(tensors)
    model.card = content.get("card", {})
    names = numbered(model.encoder.regions)
    model.spaces = {
        p.name: load_space(p, names, "Fetch or convert the model again.") for p in sorted((folder / "spaces").glob("*"))
    }
    return model.eval()


def numbered(regions: Mapping[str, Sequence[str]]) -> dict[str, dict[int, str]]:
    """Parcellation -> number -> region name, in the model's own order, from 1."""
    return {p: dict(enumerate(names, 1)) for p, names in regions.items()}


def best_device() -> str:
    """The GPU where there is one."""
    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
