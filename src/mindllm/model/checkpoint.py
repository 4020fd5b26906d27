"""Parts of a model folder on disk: configuration, weights, maskers, adapter, model card.

config.json, regions.json, model.safetensors, README.md, manifest.json; spaces/<subject>/ and
adapter/ where there are any. The language model is named, not copied, unless its own weights were
trained: then it is in language_model/.
"""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mindllm.fmri.atlases import check_atlas_names
from mindllm.fmri.masker import VoxelMasker
from mindllm.fmri.masker_io import load_masker, save_masker
from mindllm.model.configuration import MindLLMConfig
from mindllm.model.encoder import plan_encoder
from mindllm.model.encoding_model import EncodingModel
from mindllm.model.model_card import ModelCard
from mindllm.model.subject_alignment import SubjectTransform
from mindllm.model.text_reader import TextReaderConfig, make_text_reader
from mindllm.utils.errors import InputError, name_file
from mindllm.utils.files import atomic_write, read_json, write_json
from mindllm.utils.folders import recover_directory
from mindllm.utils.manifest import Manifest
from mindllm.utils.validation import check_format, validate_content
from mindllm.utils.versions import package_version
from mindllm.utils.weights import check_finite_weights

FORMAT = 5
WHAT = "a model (made by `mindllm train` or `mindllm convert`)"
REMEDY = "Fetch or convert the model again."
ADAPTATIONS = "adaptations.safetensors"
LANGUAGE_MODEL_FOLDER = "language_model"
ENCODING_MODEL_PREFIX = "encoding_model."
TEXT_READER_PREFIX = "text_reader."
Name = Annotated[str, Field(min_length=1)]
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LanguageModelRef:
    """The language model that a checkpoint was trained with.

    Parameters
    ----------
    name : str
        Hub id, folder or file.
    fingerprint : str
        Tells its weights from others'.
    chat_template : str or None
        A named format; None: the tokenizer's own.
    """

    name: Name
    fingerprint: str
    chat_template: str | None = None


@dataclass(frozen=True)
class CheckpointParts:
    """Everything that a model folder holds.

    Parameters
    ----------
    config : MindLLMConfig
    parcel_names : mapping from str to sequence of str
        Atlas name to parcel names, in the order of the model's parcel numbers (1, 2, ...).
    language_model : LanguageModelRef
    state_dict : mapping from str to Tensor
    maskers : mapping from str to VoxelMasker
        Maskers of training subjects.
    model_card : ModelCard
        How the model was made.
    adapter : Path, optional
        Folder of a LoRA adapter of the language model.
    trained_language_model : Path, optional
        Folder of the language model, if its own weights were trained.
    sentence_encoder : str, optional
        Hub id or folder of the sentence encoder of the encoding model, if there is one.
    adaptations : mapping from str to SubjectTransform
        Of each subject that the encoding model was adapted to.
    encoding_model : EncodingModel, optional
        Made of tensors of the state dict; not needed to save them.
    text_reader : TextReaderConfig, optional
        Of the text reader, if there is one.
    """

    config: MindLLMConfig
    parcel_names: Mapping[str, Sequence[str]]
    language_model: LanguageModelRef
    state_dict: Mapping[str, Tensor]
    maskers: Mapping[str, VoxelMasker] = field(default_factory=dict)
    model_card: ModelCard = field(default_factory=ModelCard)
    adapter: Path | None = None
    trained_language_model: Path | None = None
    sentence_encoder: str | None = None
    adaptations: Mapping[str, SubjectTransform] = field(default_factory=dict)
    encoding_model: EncodingModel | None = None
    text_reader: TextReaderConfig | None = None


class CheckpointContent(BaseModel):
    """What config.json holds.

    Examples
    --------
    >>> content = CheckpointContent(
    ...     format=3, version="0.1.0", encoder={}, language_model={"name": "a", "fingerprint": ""}
    ... )
    >>> content.encoder == MindLLMConfig()
    True
    """

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    format: int
    version: str
    encoder: MindLLMConfig
    language_model: LanguageModelRef
    sentence_encoder: Name | None = None
    text_reader: TextReaderConfig | None = None
    model_card: ModelCard = Field(default_factory=ModelCard)


CHECKPOINT = TypeAdapter(CheckpointContent)
PARCELS: TypeAdapter[dict[str, list[str]]] = TypeAdapter(dict[Name, list[Name]])


def fingerprint(model: Any) -> str:
    """Twelve hexadecimal digits from the shapes and a sample of the input embeddings.

    The sample is rounded to bfloat16: the same weights have the same digits in any precision.
    """
    weights = model.get_input_embeddings().weight
    rounded = weights[:: max(1, len(weights) // 64), :16].detach().float().bfloat16().cpu()
    sample = rounded.contiguous().view(torch.int16).numpy()
    # Of a quantized weight the shape that it stands for.
    shapes = repr([tuple((getattr(p, "quant_state", None) or p).shape) for p in model.parameters()])
    return hashlib.sha256(shapes.encode() + sample.tobytes()).hexdigest()[:12]


def save_checkpoint(parts: CheckpointParts, folder: Path) -> None:
    """Write the parts into a folder, which `save_pretrained` gives a manifest."""
    check_finite_weights(parts.state_dict.items(), f"the model for {folder}")
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(folder / "model.safetensors") as temporary:
        tensors = {n: t.detach().cpu().contiguous() for n, t in parts.state_dict.items()}
        save_file(tensors, temporary)
    adaptations = {
        f"{subject}/{name}": tensor.contiguous()
        for subject, transform in parts.adaptations.items()
        for name, tensor in transform.to_tensors().items()
    }
    if adaptations:
        save_file(adaptations, folder / ADAPTATIONS)
    write_json(folder / "regions.json", parts.parcel_names)
    names = enumerate_parcels(parts.parcel_names)
    for masker in parts.maskers.values():
        (folder / "spaces" / masker.subject).mkdir(parents=True, exist_ok=True)
        labels = {
            atlas: masker.encode_parcels(atlas, list(parcels.values())).astype(np.int32)
            for atlas, parcels in names.items()
        }
        renumbered = replace(masker, parcel_labels=labels, parcel_names=names)
        save_masker(renumbered, folder / "spaces" / masker.subject)
    content = {
        "format": FORMAT,
        "version": package_version("mindllm"),
        "encoder": parts.config.model_dump(),
        "language_model": vars(parts.language_model),
        "sentence_encoder": parts.sentence_encoder,
        "text_reader": parts.text_reader and parts.text_reader.model_dump(),
        "model_card": parts.model_card.to_dict(),
    }
    write_json(folder / "config.json", content)


def load_checkpoint(folder: Path) -> CheckpointParts:
    """Read a model folder.

    Raises
    ------
    InputError
        If it is no model, is damaged or changed, has weights that are not finite, or another
        format.
    """
    recover_directory(folder)
    saved = read_json(folder / "config.json", WHAT)
    check_format(folder, "model", saved.get("format"), FORMAT, "Train or convert it again.")
    manifest = Manifest.read(folder, WHAT, REMEDY)
    for name in manifest.content.files:
        if name != "README.md":  # which its owner may edit
            manifest.check(name)
    path = folder / "config.json"
    content = validate_content(CHECKPOINT, saved, str(path), REMEDY)
    parcel_names = read_parcel_names(folder / "regions.json")
    names = enumerate_parcels(parcel_names)
    maskers = [load_masker(f, names, REMEDY) for f in sorted((folder / "spaces").glob("*"))]
    weights_file = folder / "model.safetensors"
    state_dict = load_weights(weights_file)
    with name_file(weights_file):
        encoding_model = EncodingModel.from_state_dict(
            state_dict, ENCODING_MODEL_PREFIX, content.encoder.num_queries
        )
    parts = CheckpointParts(
        config=content.encoder,
        parcel_names=parcel_names,
        language_model=content.language_model,
        state_dict=state_dict,
        maskers={masker.subject: masker for masker in maskers},
        model_card=content.model_card,
        sentence_encoder=content.sentence_encoder,
        encoding_model=encoding_model,
        text_reader=content.text_reader,
        adapter=existing_folder(folder / "adapter"),
        trained_language_model=existing_folder(folder / LANGUAGE_MODEL_FOLDER),
        adaptations=load_adaptations(folder / ADAPTATIONS, encoding_model),
    )
    check_state_dict(parts, folder)
    return parts


def existing_folder(path: Path) -> Path | None:
    """The path if it is a folder."""
    return path if path.is_dir() else None


def read_parcel_names(path: Path) -> dict[str, list[str]]:
    """Read and check regions.json: atlas -> parcel names, each once."""
    parcel_names = validate_content(PARCELS, read_json(path, WHAT), str(path), REMEDY)
    with name_file(path):
        check_atlas_names(parcel_names)
    for atlas, names in parcel_names.items():
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise InputError(
                f"{path}: {atlas} has the parcel {repeated[0]!r} twice; expected each once. "
                f"{REMEDY}"
            )
    return parcel_names


def plan_tensors(
    config: MindLLMConfig, parcel_names: Mapping[str, Sequence[str]], hidden_size: int
) -> dict[str, Tensor]:
    """Plan a model's tensors but for its encoding model; no room is made for them."""
    encoder = plan_encoder(config, parcel_names)
    others = {
        "null_tokens": (config.num_fmri_tokens, config.token_dim),
        "projector.weight": (hidden_size, config.token_dim),
        "projector.bias": (hidden_size,),
    }
    planned = {f"encoder.{name}": tensor for name, tensor in encoder.items()}
    return planned | {n: torch.empty(shape, device="meta") for n, shape in others.items()}


def check_state_dict(parts: CheckpointParts, folder: Path) -> None:
    """Check all tensors before room is made for a model, or the language model is loaded.

    The hidden size of the language model, which is known when it is loaded, is taken as stored.
    """
    tensors = parts.state_dict
    sizes = [len(tensors[n]) for n in ("projector.bias", "projector.weight") if n in tensors]
    with name_file(f"{folder / 'config.json'} and regions.json"):
        planned = plan_tensors(parts.config, parts.parcel_names, (sizes or [0])[0])
        shape = (parts.config.num_fmri_tokens, parts.config.token_dim)
        reader = make_text_reader(parts.text_reader, parts.encoding_model, shape, "meta")
        of_reader = reader.state_dict() if reader else {}
        planned |= {TEXT_READER_PREFIX + name: tensor for name, tensor in of_reader.items()}
    fitted = [name for name in tensors if name.startswith(ENCODING_MODEL_PREFIX)]
    check_weights(planned, {n: tensors[n] for n in tensors if n not in fitted}, folder)


def load_adaptations(
    file: Path, encoding_model: EncodingModel | None
) -> dict[str, SubjectTransform]:
    """The transform of each subject that the encoding model was adapted to; none without a file."""
    if not file.exists():
        return {}
    if encoding_model is None:
        raise InputError(
            f"{file} adapts an encoding model to subjects, but the model holds none. {REMEDY}"
        )
    parts: dict[str, dict[str, Tensor]] = {}
    for key, tensor in load_weights(file).items():
        subject, _, name = key.rpartition("/")
        parts.setdefault(subject, {})[name] = tensor
    num_queries, rank = encoding_model.components.shape
    with name_file(file):
        return {
            subject: SubjectTransform.from_tensors(tensors, num_queries, rank)
            for subject, tensors in parts.items()
        }


def load_weights(file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file."""
    try:
        tensors = load_file(file)
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{file} is missing or damaged ({error}). Train or fetch the model again."
        ) from error
    check_finite_weights(tensors.items(), str(file))
    return tensors


def check_weights(
    expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor], folder: Path
) -> None:
    """Raise InputError unless names, shapes and kinds of the tensors are those of the model."""
    shapes = {name: describe_tensor(tensor) for name, tensor in expected.items()}
    stored = {name: describe_tensor(tensor) for name, tensor in tensors.items()}
    differing = sorted(n for n in shapes.keys() | stored.keys() if shapes.get(n) != stored.get(n))
    if differing:
        pairs = [f"{n}: expected {shapes.get(n)}, found {stored.get(n)}" for n in differing[:5]]
        raise InputError(
            f"{folder / 'model.safetensors'} does not fit config.json: {', '.join(pairs)}."
        )


def describe_tensor(tensor: Tensor) -> str:
    """Shape of a tensor, and whether it holds whole numbers.

    Examples
    --------
    >>> import torch
    >>> describe_tensor(torch.zeros(2, 3)), describe_tensor(torch.arange(4))
    ('(2, 3)', '(4,) of whole numbers')
    """
    suffix = "" if tensor.is_floating_point() else " of whole numbers"
    return f"{tuple(tensor.shape)}{suffix}"


def enumerate_parcels(parcel_names: Mapping[str, Sequence[str]]) -> dict[str, dict[int, str]]:
    """Atlas -> parcel number, from 1 -> name.

    Examples
    --------
    >>> enumerate_parcels({"HCPEx": ["V1", "V2"]})
    {'HCPEx': {1: 'V1', 2: 'V2'}}
    """
    return {atlas: dict(enumerate(names, 1)) for atlas, names in parcel_names.items()}
