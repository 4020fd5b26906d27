"""Published checkpoints of MindLLM's authors, converted exactly to our own format.

Theirs is a Lightning checkpoint whose `state_dict` holds the encoder, the projector, and the masks
and atlases of the subjects they had; `peft_model` holds LoRA weights, where there are any. Two
consecutive linear layers are multiplied into one here, and the embedding of "no parcel" is moved
into the bias, which changes no result.

References
----------
github.com/Graph-and-Geometric-Learning/MindLLM, src/models
"""

import hashlib
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig
from torch import Tensor

from mindllm.convert.checkpoint_tensors import (
    ENCODER,
    NUM_KEY_LAYERS,
    CheckpointDims,
    PublishedCheckpoint,
    State,
    check_tensors,
    infer_dims,
    read_checkpoint,
)
from mindllm.fmri.masker import VoxelMasker
from mindllm.fmri.roi_volumes import MASK, OUTSIDE, find_roi_subjects, load_roi_maskers
from mindllm.model.language_model import FrozenLanguageModel, load_language_model
from mindllm.model.model_card import ConvertedFrom, ModelCard
from mindllm.model.modeling import MindLLM
from mindllm.utils.errors import InputError
from mindllm.utils.files import check_not_exists
from mindllm.utils.folders import atomic_directory
from mindllm.utils.weights import check_finite_weights

LORA_ALPHA = 16  # the checkpoint does not hold it; the authors' main.py does
CHAT_TEMPLATE = "vicuna"
LORA_TENSOR = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")
logger = logging.getLogger(__name__)


def convert_checkpoint(
    file: str | Path,
    roi_dir: str | Path,
    language_model: str | None,
    out: str | Path,
    *,
    trained_on: Sequence[str] | None = None,
    lora_alpha: float = LORA_ALPHA,
) -> MindLLM:
    """Convert a published checkpoint; all sizes come from its tensors.

    Parameters
    ----------
    file : str or Path
        Lightning checkpoint (.ckpt).
    roi_dir : str or Path
        Folder with subj01/nsdgeneral.nii.gz and the atlases, for every subject of the checkpoint.
    language_model : str or None
        The one it was trained with: hub id, folder or .gguf file.
    out : str or Path
        Folder to write; it must not exist.
    trained_on : sequence of str, optional
        Subjects of the training, if known; their training trials are then never evaluated.
    lora_alpha : float
        Alpha of the LoRA part, which the checkpoint does not state.

    Returns
    -------
    MindLLM

    Raises
    ------
    InputError
        If anything is missing, left over, of another shape or on another grid, or the checkpoint
        needs code to be read. Nothing is written then.
    """
    file, roi_dir, out = Path(file), Path(roi_dir), Path(out)
    check_not_exists(out)
    checkpoint = read_checkpoint(file)
    dims = infer_dims(checkpoint)
    check_tensors(checkpoint, dims)
    maskers = load_checkpoint_maskers(roi_dir, checkpoint, dims)
    check_subjects(trained_on or [], maskers, roi_dir)
    frozen = load_matching_language_model(language_model, checkpoint, dims, lora_alpha)
    model = build_model(checkpoint, dims, maskers, frozen)
    if trained_on:
        model.model_card = replace(model.model_card, subjects=list(trained_on))
    with atomic_directory(out) as temporary:
        model.save_pretrained(temporary)
    return model


def check_subjects(
    trained_on: Sequence[str], maskers: Mapping[str, VoxelMasker], roi_dir: Path
) -> None:
    """Raise InputError for training subjects without ROI files."""
    unknown = sorted(set(trained_on) - set(maskers))
    if unknown:
        raise InputError(
            f"{', '.join(unknown)} is not among the subjects of {roi_dir}: {', '.join(maskers)}."
        )


def load_matching_language_model(
    name: str | None, checkpoint: PublishedCheckpoint, dims: CheckpointDims, lora_alpha: float
) -> FrozenLanguageModel:
    """The language model with the checkpoint's LoRA part; InputError if its size does not fit."""
    language_model = load_language_model(name)
    if language_model.hidden_size != dims.lm_hidden_size:
        raise InputError(
            f"{checkpoint.file}: projector.weight makes tokens for a language model of hidden "
            f"size {dims.lm_hidden_size}; {language_model.name} has {language_model.hidden_size}. "
            "Give the one it was trained with (the authors': lmsys/vicuna-7b-v1.5)."
        )
    if checkpoint.lora_state_dict:
        load_lora_adapter(language_model, checkpoint.lora_state_dict, lora_alpha, checkpoint.file)
    return language_model


def build_model(
    checkpoint: PublishedCheckpoint,
    dims: CheckpointDims,
    maskers: dict[str, VoxelMasker],
    language_model: FrozenLanguageModel,
) -> MindLLM:
    """The model with the checkpoint's weights, maskers, and a model card of their origin."""
    parcel_names = list_parcel_names(maskers, dims)
    outside = {atlas for atlas, names in parcel_names.items() if names[-1:] == [OUTSIDE]}
    model = MindLLM(dims.config(), parcel_names, language_model, CHAT_TEMPLATE).eval()
    state = convert_state_dict(checkpoint.state_dict, dims, outside)
    check_finite_weights(state.items(), f"{checkpoint.file}, converted to single precision")
    model.load_state_dict(state | {"null_tokens": model.null_tokens})
    # The checkpoint has no mean tokens: the tokens of an average scan (every voxel 0) replace them.
    head = model.encoder.head
    with torch.no_grad():
        model.null_tokens.copy_(head.tokens(head.embed(torch.zeros(1, dims.num_queries)))[0])
    model.maskers = maskers
    model.model_card = ModelCard(
        converted_from=ConvertedFrom(
            file=checkpoint.file.name,
            sha256=hash_file(checkpoint.file),
            lightning=checkpoint.lightning_version,
            tensors={name: list(t.shape) for name, t in checkpoint.state_dict.items()},
            lora=sorted(checkpoint.lora_state_dict),
        ),
        null_tokens=(
            "the tokens of a scan that is 0 everywhere (the checkpoint holds no mean token)"
        ),
    )
    return model


def list_parcel_names(
    maskers: Mapping[str, VoxelMasker], dims: CheckpointDims
) -> dict[str, list[str]]:
    """Parcel names per atlas; "not cortex" is appended where a subject's volume has it."""
    first = next(iter(maskers.values()))
    parcel_names = {
        atlas: [first.parcel_names[atlas][n] for n in range(1, count)]
        for atlas, count in dims.num_parcel_embeddings.items()
    }
    for atlas, names in parcel_names.items():
        if any(OUTSIDE in m.parcel_names[atlas].values() for m in maskers.values()):
            names.append(OUTSIDE)
    return parcel_names


def hash_file(file: Path) -> str:
    """The file's SHA-256, which identifies the checkpoint."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def load_checkpoint_maskers(
    roi_dir: Path, checkpoint: PublishedCheckpoint, dims: CheckpointDims
) -> dict[str, VoxelMasker]:
    """Load the maskers of all subjects in a folder, compared with the checkpoint's volumes.

    Parameters
    ----------
    roi_dir : Path
        With a folder per subject, such as subj01.
    checkpoint : PublishedCheckpoint
    dims : CheckpointDims

    Returns
    -------
    dict of str to VoxelMasker

    Raises
    ------
    InputError
        If a subject of the checkpoint is missing, or its mask or an atlas differs.
    """
    subjects = find_roi_subjects(roi_dir)
    numbers = {f"subj{number:02d}": number for number in dims.mask_shapes}
    if missing := sorted(set(numbers) - set(subjects)):
        raise InputError(
            f"{checkpoint.file} has left over visual_mask_subject_{numbers[missing[0]]}: {roi_dir} "
            f"has no folder {', '.join(missing)}. Fetch the ROI files of every subject in the "
            "checkpoint."
        )
    folders = {subject: roi_dir / subject for subject in subjects}
    maskers = load_roi_maskers(folders, dims.num_parcel_embeddings)
    for subject, masker in maskers.items():
        if subject in numbers:
            check_mask(masker, checkpoint.state_dict, numbers[subject], folders[subject])
            check_parcels(masker, checkpoint.state_dict, numbers[subject], folders[subject], dims)
        else:
            logger.info("%s is not in the checkpoint; its ROI files alone describe it", subject)
    return maskers


def check_mask(masker: VoxelMasker, state: State, number: int, folder: Path) -> None:
    """Raise InputError unless the masker has the checkpoint's grid and voxels."""
    name, file = f"{ENCODER}visual_mask_subject_{number}", folder / f"{MASK}.nii.gz"
    mask = state[name].numpy()
    if mask.shape != masker.shape:
        raise InputError(
            f"{file} is on another grid than the checkpoint: found {masker.shape}, "
            f"expected {mask.shape} ({name})."
        )
    if mask.sum() != len(masker) or not mask[tuple(masker.voxel_indices.T)].all():
        raise InputError(
            f"{file} is another mask than {name}: it has {len(masker)} voxels, the checkpoint "
            f"{mask.sum()}. Fetch the ROI files that belong to this checkpoint."
        )


def check_parcels(
    masker: VoxelMasker, state: State, number: int, folder: Path, dims: CheckpointDims
) -> None:
    """Raise InputError unless every voxel has the checkpoint's parcel numbers."""
    for atlas, count in dims.num_parcel_embeddings.items():
        name = f"{ENCODER}roi_{atlas}_subject_{number}"
        labels = state[name].numpy()[tuple(masker.voxel_indices.T)]
        differing = (np.where(labels < 0, count, labels) != masker.parcel_labels[atlas]).sum()
        if differing:
            raise InputError(
                f"{folder / atlas}.nii.gz numbers {differing} of {len(masker)} voxels otherwise "
                f"than {name}. Fetch the ROI files that belong to this checkpoint."
            )


def convert_state_dict(state: State, dims: CheckpointDims, outside: set[str]) -> dict[str, Tensor]:
    """Convert tensors to those of our modules. Products are made in double precision.

    Parameters
    ----------
    state : mapping from str to Tensor
        The checkpoint's state dict.
    dims : CheckpointDims
    outside : set of str
        Atlases that have a parcel "not cortex".

    Returns
    -------
    dict of str to Tensor
        Encoder and projector, in single precision.
    """
    tensors = {
        name.removeprefix(ENCODER): tensor.double()
        for name, tensor in state.items()
        if "subject_" not in name
    }
    encoder = {
        "frequencies": tensors["coords_encoding.b"],
        # Their attention is not scaled.
        "queries": tensors["neuro_informed_attn.query_embeddings"][0] * dims.key_dim**0.5,
        "head.input_block.0.weight": tensors["neuro_informed_attn_post.0.weight"],
        "head.input_block.0.bias": tensors["neuro_informed_attn_post.0.bias"],
        "head.token_proj.weight": tensors["head.weight"],
        "head.token_proj.bias": tensors["head.bias"],
    }
    for i in range(dims.num_residual_layers):
        for part in ("0.weight", "0.bias", "1.weight", "1.bias"):
            encoder[f"head.residual_blocks.{i}.{part}"] = tensors[f"mlp.{i}.{part}"]
    encoder |= convert_key_layers(tensors, dims, outside)
    converted = {f"encoder.{name}": tensor for name, tensor in encoder.items()}
    converted |= {f"projector.{part}": tensors[f"projector.{part}"] for part in ("weight", "bias")}
    return {name: tensor.float() for name, tensor in converted.items()}


def convert_key_layers(
    tensors: State, dims: CheckpointDims, outside: set[str]
) -> dict[str, Tensor]:
    """Weights from coordinates and parcels to keys.

    Their last layer, which reads coordinate features and parcel embeddings together, is multiplied
    into our last coordinate layer and our parcel projection.
    """
    last = 2 * (NUM_KEY_LAYERS - 1)
    joint, bias = tensors["region_feature_project.weight"], tensors["region_feature_project.bias"]
    coord_part, parcel_part = joint[:, : dims.key_dim], joint[:, dims.key_dim :]
    converted = {"parcel_proj.weight": parcel_part}
    for i in range(0, last + 1, 2):
        for part in ("weight", "bias"):
            converted[f"coord_proj.{i}.{part}"] = tensors[f"coords_transform.{i}.{part}"]
    cosines, sines = converted["coord_proj.0.weight"].chunk(2, 1)
    converted["coord_proj.0.weight"] = torch.cat([sines, cosines], 1)  # sines come first here
    bias = coord_part @ converted[f"coord_proj.{last}.bias"] + bias
    for atlas, part in zip(
        dims.num_parcel_embeddings, parcel_part.split(dims.parcel_embedding_dim, 1), strict=True
    ):
        table = tensors[f"roi_embeds.{atlas}"]
        # Theirs is indexed with -1 outside the cortex, which takes the last row.
        table = torch.cat([table, table[-1:]]) if atlas in outside else table
        converted[f"parcel_embeddings.{atlas}.weight"] = table - table[0]
        bias = bias + part @ table[0]
    converted[f"coord_proj.{last}.weight"] = coord_part @ converted[f"coord_proj.{last}.weight"]
    converted[f"coord_proj.{last}.bias"] = bias
    return converted


def load_lora_adapter(
    language_model: FrozenLanguageModel, weights: State, alpha: float, file: Path
) -> None:
    """Put LoRA weights into the language model; rank and layers come from the tensors.

    Parameters
    ----------
    language_model : FrozenLanguageModel
        Changed in place.
    weights : mapping from str to Tensor
        In PEFT's naming.
    alpha : float
        Scale of the adapter, times its rank.
    file : Path
        For messages.

    Raises
    ------
    InputError
        If the tensors do not fit the language model.
    """
    model, name = language_model.model, language_model.name
    check_finite_weights(weights.items(), str(file))
    rank, layers = infer_lora_layers(weights, dict(model.named_modules()), name, file)
    config = LoraConfig(task_type="CAUSAL_LM", r=rank, lora_alpha=alpha, target_modules=layers)
    try:
        model.load_adapter(adapter_state_dict=dict(weights), peft_config=config)
    except (RuntimeError, ValueError) as error:
        raise InputError(f"{file}: the LoRA part does not fit {name}: {error}") from error
    model.requires_grad_(False).eval()
    logger.info("LoRA of rank %d on %d layers, scaled by alpha %g", rank, len(layers), alpha)


def infer_lora_layers(
    weights: State, modules: Mapping[str, object], language_model: str, file: Path
) -> tuple[int, list[str]]:
    """Rank and layer names of LoRA weights; InputError where they do not fit the modules."""
    matches = {name: LORA_TENSOR.fullmatch(name) for name in weights}
    unknown = [name for name, match in matches.items() if not match]
    layers = sorted({match[1] for match in matches.values() if match})
    missing = [layer for layer in layers if layer not in modules]
    ranks = sorted(
        {weights[name].shape[0] for name, match in matches.items() if match and match[2] == "A"}
    )
    if unknown:
        problem = f"unknown tensors {unknown[:3]}"
    elif missing:
        problem = f"no layers {missing[:3]}"
    elif len(ranks) != 1:
        problem = f"ranks {ranks}"
    else:
        return ranks[0], layers
    raise InputError(
        f"{file}: the LoRA part `peft_model` does not fit {language_model}: {problem}. Expected "
        "lora_A and lora_B of one rank for layers of this language model."
    )
