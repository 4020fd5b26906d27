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

from mindllm.fmri.masker_io import load_masker, save_masker
from mindllm.model.configuration import MindLLMConfig
from mindllm.model.language_model import load_language_model
from mindllm.model.modeling import MindLLM
from mindllm.utils.errors import InputError
from mindllm.utils.files import atomic_write, read_json, write_json
from mindllm.utils.validation import check_format
from mindllm.utils.versions import package_version

FORMAT = 2
WHAT = "a model (made by `mindllm train` or `mindllm convert`)"
logger = logging.getLogger(__name__)


def save(model: MindLLM, folder: str | Path) -> None:
    """Write a model folder. config.json comes last: without it the folder is no model."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(folder / "model.safetensors") as temporary:
        save_file(
            {
                name: tensor.detach().cpu().contiguous()
                for name, tensor in model.state_dict().items()
            },
            temporary,
        )
    write_json(folder / "regions.json", model.encoder.parcel_names)
    names = enumerate_parcels(model.encoder.parcel_names)
    for space in model.maskers.values():
        (folder / "spaces" / space.subject).mkdir(parents=True, exist_ok=True)
        own = {p: space.encode_parcels(p, list(names[p].values())).astype(np.int32) for p in names}
        save_masker(
            replace(space, parcel_labels=own, parcel_names=names), folder / "spaces" / space.subject
        )
    if getattr(model.language_model.model, "peft_config", None):
        model.language_model.model.save_pretrained(folder / "adapter")
    llm = {
        "name": model.language_model.name,
        "fingerprint": model.language_model.fingerprint,
        "chat_template": model.chat_template,
    }
    write_json(
        folder / "config.json",
        {
            "format": FORMAT,
            "version": package_version("mindllm"),
            "encoder": model.encoder.config.model_dump(),
            "language_model": llm,
            "card": model.model_card,
        },
    )


def load(
    folder: str | Path,
    *,
    language_model: str | None = None,
    device: str | torch.device | None = None,
    dtype: str = "auto",
) -> MindLLM:
    """Load a model folder, ready to decode. `llm`: where its language model stands on this machine, if not under its name.
    dtype: what the language model computes in, see `load_llm`.

    Raises InputError for a folder that is no model, is damaged or newer, or whose language model is not the one it was trained with.
    """
    folder = Path(folder)
    content: dict[str, Any] = read_json(folder / "config.json", WHAT)
    check_format(folder, "model", content.get("format"), FORMAT, "Train or convert it again.")
    try:
        config = MindLLMConfig(**content["encoder"])
    except (ValidationError, KeyError) as error:
        raise InputError(
            f"{folder / 'config.json'} does not describe an encoder: {error}"
        ) from error
    if not {"name", "fingerprint", "chat_template"} <= set(content.get("language_model") or {}):
        raise InputError(
            f"{folder / 'config.json'} does not name a language model; found {content.get('language_model')!r}. Train or fetch the model again."
        )
    language = load_language_model(
        language_model or content["language_model"]["name"], device or default_device(), dtype
    )
    if language.fingerprint != content["language_model"]["fingerprint"]:
        logger.warning(
            "the language model %s differs from the one %s was trained with (fingerprint %s, expected %s): expect other text",
            language.name,
            folder,
            language.fingerprint,
            content["language_model"]["fingerprint"],
        )
    if (folder / "adapter").is_dir():
        language.model.load_adapter(str(folder / "adapter"))
        language.model.requires_grad_(False)
    model = MindLLM(
        config,
        read_json(folder / "regions.json", WHAT),
        language,
        content["language_model"]["chat_template"],
    )
    try:
        tensors = load_file(folder / "model.safetensors")
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{folder / 'model.safetensors'} is missing or damaged ({error}). Train or fetch the model again."
        ) from error
    expected = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    found = {name: tuple(t.shape) for name, t in tensors.items()}
    if found != expected:
        odd = sorted(
            name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)
        )
        raise InputError(
            f"{folder / 'model.safetensors'} does not fit config.json: {', '.join(f'{n}: expected {expected.get(n)}, found {found.get(n)}' for n in odd[:5])}."
        )
    model.load_state_dict(tensors)
    model.model_card = content.get("card", {})
    names = enumerate_parcels(model.encoder.parcel_names)
    model.maskers = {
        p.name: load_masker(p, names, "Fetch or convert the model again.")
        for p in sorted((folder / "spaces").glob("*"))
    }
    return model.eval()


def enumerate_parcels(regions: Mapping[str, Sequence[str]]) -> dict[str, dict[int, str]]:
    """Parcellation -> number -> region name, in the model's own order, from 1."""
    return {p: dict(enumerate(names, 1)) for p, names in regions.items()}


def default_device() -> str:
    """The GPU where there is one."""
    return (
        "cuda"
        if torch.cuda.is_available()
        else "mps"
        if torch.backends.mps.is_available()
        else "cpu"
    )
