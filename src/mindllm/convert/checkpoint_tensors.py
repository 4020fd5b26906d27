"""Tensors of a published checkpoint: read without running code, measured and checked."""

import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mindllm.model.configuration import MindLLMConfig
from mindllm.utils.errors import InputError, describe_error

# Lightning writes settings of these packages beside the weights. Placeholder objects take their
# place, so none of their code runs.
SETTINGS_PACKAGES = (
    "omegaconf.",
    "transformers.",
    "tokenizers.",
    "peft.",
    "lightning.",
    "pytorch_lightning.",
)
PLAIN_TYPES = {
    "typing.Any",
    "collections.defaultdict",
    *(f"builtins.{t.__name__}" for t in (dict, list, tuple, int, float, str, bool)),
}
NUM_KEY_LAYERS = 3  # from coordinates to keys, in every published checkpoint
ENCODER = "fmri_encoder."
PARCEL_EMBEDDINGS = f"{ENCODER}roi_embeds."
State = Mapping[str, Tensor]
Shape = tuple[int, ...]


class PlaceholderObject(dict):
    """Takes the place of a settings object in a checkpoint: it holds nothing and does nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> "PlaceholderObject":
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...


@dataclass(frozen=True, slots=True)
class PublishedCheckpoint:
    """Content of a published checkpoint.

    Parameters
    ----------
    file : Path
    state_dict : mapping from str to Tensor
        Encoder, projector, and the masks and atlases of the subjects.
    lora_state_dict : mapping from str to Tensor
        Empty where the language model was not adapted.
    lightning_version : str or None
        Version of Lightning that wrote it, where it is stated.
    """

    file: Path
    state_dict: State
    lora_state_dict: State
    lightning_version: str | None


@dataclass(frozen=True, slots=True)
class CheckpointDims:
    """Sizes of a published checkpoint, as its tensors have them.

    Parameters
    ----------
    num_queries, key_dim, num_frequencies, num_residual_layers, num_fmri_tokens, token_dim,
    parcel_embedding_dim : int
        As in MindLLMConfig.
    lm_hidden_size : int
        Hidden size of the language model that the projector was trained for.
    num_parcel_embeddings : mapping from str to int
        For each atlas its parcels, "no parcel" among them.
    mask_shapes : mapping from int to tuple
        For each subject's number the shape of the mask.
    """

    num_queries: int
    key_dim: int
    num_frequencies: int
    num_residual_layers: int
    num_fmri_tokens: int
    token_dim: int
    lm_hidden_size: int
    parcel_embedding_dim: int
    num_parcel_embeddings: Mapping[str, int]
    mask_shapes: Mapping[int, Shape]

    def config(self) -> MindLLMConfig:
        """Options with which our encoder is the published one."""
        return MindLLMConfig(
            num_queries=self.num_queries,
            key_dim=self.key_dim,
            num_key_layers=NUM_KEY_LAYERS,
            coordinate_system="voxel",
            fourier_features="gaussian",
            num_frequencies=self.num_frequencies,
            receptive_field_sd_mm=None,
            parcel_embedding_dim=self.parcel_embedding_dim,
            token_head_norm="layer",
            token_head_input_layer=False,
            hidden_size=self.num_queries,
            num_residual_layers=self.num_residual_layers,
            dropout=0.5,
            residual_dropout=0.15,
            embedding_dim=None,
            memory_size=0,
            num_fmri_tokens=self.num_fmri_tokens,
            token_dim=self.token_dim,
        )


def read_checkpoint(file: Path) -> PublishedCheckpoint:
    """Read a Lightning checkpoint without running anything in it.

    Parameters
    ----------
    file : Path

    Returns
    -------
    PublishedCheckpoint

    Raises
    ------
    InputError
        If the file is missing or damaged, holds no state dict, or needs code to be read.
    """
    if not file.is_file():
        raise InputError(f"there is no file {file}: expected a Lightning checkpoint (.ckpt).")
    check_zip(file)
    content = load_plain_content(file, list_safe_globals(file))
    state = content.get("state_dict") if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(t, Tensor) for t in state.values()):
        keys = sorted(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise InputError(
            f"{file} holds no `state_dict` of tensors, as Lightning writes it; found {keys}."
        )
    lora, version = content.get("peft_model") or {}, content.get("pytorch-lightning_version")
    return PublishedCheckpoint(file, state, lora, version)


def check_zip(file: Path) -> None:
    """Compare the parts of a zip file with their checksums, which torch does not."""
    try:
        if not zipfile.is_zipfile(file):
            return  # torch's older format has none
        with zipfile.ZipFile(file) as archive:
            damaged = archive.testzip()
    except Exception as error:  # zlib and zipfile have their own errors for a damaged file
        damaged = describe_error(error)
    if damaged is not None:
        raise InputError(
            f"{file} is refused: it is damaged or truncated, as its checksums tell ({damaged}). "
            "Fetch it again."
        )


def list_safe_globals(file: Path) -> list[str]:
    """Names of the classes that reading needs; InputError where one could run code."""
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(file)
    except Exception:  # not a zip file, or a damaged one: loading says which
        return []
    code = [n for n in names if n not in PLAIN_TYPES and not n.startswith(SETTINGS_PACKAGES)]
    if code:
        raise InputError(
            f"{file} is refused: reading it would run code ({', '.join(sorted(code)[:5])}), and "
            "only plain tensors are read. Save its `state_dict` (and `peft_model`) alone, on a "
            "machine where you trust it."
        )
    return names


def load_plain_content(file: Path, class_names: list[str]) -> Any:
    """What the file holds, with placeholder objects in place of these classes."""
    placeholders: list[Any] = [(PlaceholderObject, name) for name in class_names]
    try:
        with torch.serialization.safe_globals(placeholders):
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # zip, pickle and torch have their own errors for a damaged file
        raise InputError(
            f"{file} is refused: it is damaged or truncated, or no plain checkpoint of tensors "
            f"({describe_error(error)}). Fetch it again."
        ) from error


def infer_dims(checkpoint: PublishedCheckpoint) -> CheckpointDims:
    """Infer all sizes from the tensors.

    Parameters
    ----------
    checkpoint : PublishedCheckpoint

    Returns
    -------
    CheckpointDims

    Raises
    ------
    InputError
        If a tensor that tells a size is missing or has another number of dimensions.
    """
    state, file = checkpoint.state_dict, checkpoint.file
    _, num_queries, key_dim = get_shape(checkpoint, "neuro_informed_attn.query_embeddings", 3)
    lm_hidden_size, token_dim = get_shape(checkpoint, "projector.weight", 2, prefix="")
    out_dim, _ = get_shape(checkpoint, "head.weight", 2)
    if out_dim % token_dim:
        raise InputError(
            f"{file}: {ENCODER}head.weight makes {out_dim} numbers, which is no multiple of the "
            f"{token_dim} per token that projector.weight takes."
        )
    # torch sorts names when it is given a plain dict of parameters, so the embeddings of the
    # atlases are joined in this order.
    atlases = sorted(
        name.removeprefix(PARCEL_EMBEDDINGS) for name in state if name.startswith(PARCEL_EMBEDDINGS)
    )
    if not atlases:
        raise InputError(
            f"{file} lacks the tensors {PARCEL_EMBEDDINGS}*, the parcel embeddings of its atlases."
        )
    tables = {atlas: get_shape(checkpoint, f"roi_embeds.{atlas}", 2) for atlas in atlases}
    return CheckpointDims(
        num_queries=num_queries,
        key_dim=key_dim,
        num_frequencies=get_shape(checkpoint, "coords_encoding.b", 2)[0],
        num_residual_layers=len(match_numbers(state, r"fmri_encoder\.mlp\.(\d+)\.")),
        num_fmri_tokens=out_dim // token_dim,
        token_dim=token_dim,
        lm_hidden_size=lm_hidden_size,
        parcel_embedding_dim=tables[atlases[0]][1],
        num_parcel_embeddings={atlas: count for atlas, (count, _) in tables.items()},
        mask_shapes={
            number: get_shape(checkpoint, f"visual_mask_subject_{number}", 3)
            for number in match_numbers(state, r"_subject_(\d+)$")
        },
    )


def get_shape(
    checkpoint: PublishedCheckpoint, name: str, num_dims: int, prefix: str = ENCODER
) -> Shape:
    """Shape of a tensor; InputError if it is missing or has another number of dimensions."""
    name = prefix + name
    if name not in checkpoint.state_dict:
        problem = "lacks the tensor"
    else:
        shape = tuple(checkpoint.state_dict[name].shape)
        if len(shape) == num_dims:
            return shape
        problem = f"has a tensor of shape {shape}, where {num_dims} dimensions are expected:"
    raise InputError(
        f"{checkpoint.file} {problem} {name}. Is it a MindLLM checkpoint of the authors' format "
        "(position encoding `gauss`)?"
    )


def match_numbers(state: State, pattern: str) -> list[int]:
    """Sorted numbers that the pattern's group matches in names of tensors."""
    matches = (re.search(pattern, name) for name in state)
    return sorted({int(match[1]) for match in matches if match})


def expected_shapes(dims: CheckpointDims) -> dict[str, Shape]:
    """Name and shape of every tensor of a checkpoint with these sizes."""
    d, queries = dims, (dims.num_queries,)
    out_dim, num_atlases = d.num_fmri_tokens * d.token_dim, len(d.num_parcel_embeddings)
    shapes: dict[str, Shape] = {
        "neuro_informed_attn.query_embeddings": (1, d.num_queries, d.key_dim),
        "coords_encoding.b": (d.num_frequencies, 3),
        "region_feature_project.weight": (
            d.key_dim,
            d.key_dim + d.parcel_embedding_dim * num_atlases,
        ),
        "region_feature_project.bias": (d.key_dim,),
        "neuro_informed_attn_post.0.weight": queries,
        "neuro_informed_attn_post.0.bias": queries,
        "head.weight": (out_dim, d.num_queries),
        "head.bias": (out_dim,),
    }
    for i in range(NUM_KEY_LAYERS):
        in_dim = d.key_dim if i else 2 * d.num_frequencies
        shapes[f"coords_transform.{2 * i}.weight"] = (d.key_dim, in_dim)
        shapes[f"coords_transform.{2 * i}.bias"] = (d.key_dim,)
    for i in range(d.num_residual_layers):
        shapes[f"mlp.{i}.0.weight"] = (d.num_queries, d.num_queries)
        shapes |= dict.fromkeys([f"mlp.{i}.{p}" for p in ("0.bias", "1.weight", "1.bias")], queries)
    for atlas, count in d.num_parcel_embeddings.items():
        shapes[f"roi_embeds.{atlas}"] = (count, d.parcel_embedding_dim)
    for number, shape in d.mask_shapes.items():
        volumes = ["visual_mask", *(f"roi_{atlas}" for atlas in d.num_parcel_embeddings)]
        shapes |= dict.fromkeys([f"{name}_subject_{number}" for name in volumes], shape)
    return {f"{ENCODER}{name}": shape for name, shape in shapes.items()} | {
        "projector.weight": (d.lm_hidden_size, d.token_dim),
        "projector.bias": (d.lm_hidden_size,),
    }


def check_tensors(checkpoint: PublishedCheckpoint, dims: CheckpointDims) -> None:
    """Check that the checkpoint holds exactly the tensors that its sizes ask for, all finite.

    Parameters
    ----------
    checkpoint : PublishedCheckpoint
    dims : CheckpointDims

    Raises
    ------
    InputError
        If tensors are missing, left over, of another shape, or not finite.
    """
    state, expected = checkpoint.state_dict, expected_shapes(dims)
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    common = sorted(expected.keys() & shapes.keys())
    problems = {
        "lacks": sorted(expected.keys() - shapes.keys()),
        "has left over": sorted(shapes.keys() - expected.keys()),
        "has in another shape": [
            f"{name} (expected {expected[name]}, found {shapes[name]})"
            for name in common
            if expected[name] != shapes[name]
        ],
        "has NaN or infinity in": [name for name in common if not state[name].isfinite().all()],
    }
    sentences = [
        f"{problem} {', '.join(names[:5])}{f' and {len(names) - 5} more' * (len(names) > 5)}"
        for problem, names in problems.items()
        if names
    ]
    if sentences:
        raise InputError(
            f"{checkpoint.file} {'; '.join(sentences)}. It is not a whole MindLLM checkpoint; "
            "fetch it again."
        )
