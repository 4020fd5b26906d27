"""The authors' published checkpoints, read exactly and written as ordinary model folders.

Their format: a Lightning checkpoint whose `state_dict` holds the encoder, the projector, and the masks and parcellations of
the people they had; `peft_model` holds LoRA weights, where there are any. Two linear layers in a row are folded into one
here, and the embedding of "in no region" into the bias, which changes no result.
Source: github.com/Graph-and-Geometric-Learning/MindLLM, src/models.
"""

import hashlib
import logging
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig
from torch import Tensor

from mindllm.convert.checkpoint_tensors import (
    KEY_LAYERS,
    CheckpointDims,
    State,
    check_tensors,
    infer_dims,
    read_checkpoint,
)
from mindllm.fmri.masker import VoxelMasker
from mindllm.fmri.roi_volumes import MASK, OUTSIDE, find_roi_subjects, load_roi_maskers
from mindllm.model.language_model import FrozenLanguageModel, load_language_model
from mindllm.model.modeling import MindLLM
from mindllm.utils.errors import InputError
from mindllm.utils.files import atomic_directory, check_not_exists

LORA_ALPHA = 16  # the checkpoint does not hold it; the authors' main.py does
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
    """Write the model folder `out` of a published checkpoint: all sizes come from its tensors.

    rois: folder with subj01/nsdgeneral.nii.gz and the parcellations, for every person in the checkpoint.
    trained_on: the people whom the weights were trained on, if known; their training trials are then never evaluated.
    Raises InputError, naming the culprit, for anything missing, left over, of another shape, or on another grid; and for a
    checkpoint that needs code to be read. Nothing is written then.
    """
    file, roi_dir, out = Path(file), Path(roi_dir), Path(out)
    check_not_exists(out)
    content = read_checkpoint(file)
    state: State = content["state_dict"]
    sizes = infer_dims(state, file)
    check_tensors(state, sizes, file)
    spaces = load_checkpoint_maskers(roi_dir, state, sizes, file)
    unknown = sorted(set(trained_on or []) - set(spaces))
    if unknown:
        raise InputError(
            f"{', '.join(unknown)} is not among the people of {roi_dir}: {', '.join(spaces)}."
        )
    language = load_language_model(language_model)
    if language.hidden_size != sizes.llm_width:
        raise InputError(
            f"{file}: projector.weight makes tokens for a language model of width {sizes.llm_width}; {language.name} has width {language.hidden_size}. Give the one it was trained with (the authors': lmsys/vicuna-7b-v1.5)."
        )
    if content.get("peft_model"):
        load_lora_adapter(language, content["peft_model"], lora_alpha, file)
    regions = {
        p: [next(s.parcel_names[p] for s in spaces.values())[n] for n in range(1, rows)]
        for p, rows in sizes.rows.items()
    }
    outside = {p for p in regions for s in spaces.values() if OUTSIDE in s.parcel_names[p].values()}
    regions = {p: [*names, OUTSIDE] if p in outside else names for p, names in regions.items()}
    model = MindLLM(sizes.config(), regions, language, "vicuna").eval()
    model.load_state_dict(
        convert_state_dict(state, sizes, outside) | {"null_tokens": model.null_tokens}
    )
    with torch.no_grad():
        # The checkpoint has no mean token: what an average scan (every voxel 0) says stands for it.
        model.null_tokens.copy_(
            model.encoder.head.tokens(model.encoder.head.embed(torch.zeros(1, sizes.queries)))[0]
        )
    model.maskers = spaces
    model.model_card = {
        "converted_from": {
            "file": file.name,
            "sha256": file_sha256(file),
            "lightning": content.get("pytorch-lightning_version"),
            "tensors": {name: list(tensor.shape) for name, tensor in state.items()},
            "lora": sorted(content.get("peft_model") or []),
        },
        "null_tokens": "the tokens of a scan that is 0 everywhere (the checkpoint holds no mean token)",
    }
    if trained_on:
        model.model_card["subjects"] = list(trained_on)
    with atomic_directory(out) as temporary:
        model.save_pretrained(temporary)
    return model


def file_sha256(file: Path) -> str:
    """The file's SHA-256, to say later which checkpoint it was."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def load_checkpoint_maskers(
    rois: Path, state: State, s: CheckpointDims, file: Path
) -> dict[str, VoxelMasker]:
    """The voxel spaces of all people in `rois`, compared with the masks and parcellations in the checkpoint."""
    there = find_roi_subjects(rois)
    inside = {f"subj{n:02d}": n for n in s.grids}
    if bare := sorted(set(inside) - set(there)):
        raise InputError(
            f"{file} has left over visual_mask_subject_{inside[bare[0]]}: {rois} has no folder {', '.join(bare)}. Fetch the ROI files of every person in the checkpoint."
        )
    spaces = load_roi_maskers({name: rois / name for name in there}, s.rows)
    for name, space in spaces.items():
        if name not in inside:
            logger.info("%s is not in the checkpoint; its ROI files alone describe it", name)
            continue
        number, where = inside[name], tuple(space.voxel_indices.T)
        mask = state[f"fmri_encoder.visual_mask_subject_{number}"].numpy()
        if mask.shape != space.shape:
            raise InputError(
                f"{rois / name / MASK}.nii.gz is on another grid than the checkpoint: found {space.shape}, expected {mask.shape} (fmri_encoder.visual_mask_subject_{number})."
            )
        if mask.sum() != len(space) or not mask[where].all():
            raise InputError(
                f"{rois / name / MASK}.nii.gz is another mask than fmri_encoder.visual_mask_subject_{number}: it has {len(space)} voxels, the checkpoint {mask.sum()}. Fetch the ROI files that belong to this checkpoint."
            )
        for p, rows in s.rows.items():
            theirs = state[f"fmri_encoder.roi_{p}_subject_{number}"].numpy()[where]
            other = (np.where(theirs < 0, rows, theirs) != space.parcel_labels[p]).sum()
            if other:
                raise InputError(
                    f"{rois / name / p}.nii.gz numbers {other} of {len(space)} voxels otherwise than fmri_encoder.roi_{p}_subject_{number}. Fetch the ROI files that belong to this checkpoint."
                )
    return spaces


def convert_state_dict(state: State, s: CheckpointDims, outside: set[str]) -> dict[str, Tensor]:
    """The tensors of our modules. Products are made in double precision."""
    old = {
        name.removeprefix("fmri_encoder."): tensor.double()
        for name, tensor in state.items()
        if "subject_" not in name
    }
    last = 2 * (KEY_LAYERS - 1)
    project, own = (
        old["region_feature_project.weight"],
        old["region_feature_project.weight"][:, : s.rank],
    )
    bias = own @ old[f"coords_transform.{last}.bias"] + old["region_feature_project.bias"]
    new = {
        "frequencies": old["coords_encoding.b"],
        "queries": old["neuro_informed_attn.query_embeddings"][0]
        * s.rank**0.5,  # their attention is not scaled
        "parcel_proj.weight": project[:, s.rank :],
        "head.input_block.0.weight": old["neuro_informed_attn_post.0.weight"],
        "head.input_block.0.bias": old["neuro_informed_attn_post.0.bias"],
        "head.token_proj.weight": old["head.weight"],
        "head.token_proj.bias": old["head.bias"],
    }
    for i in range(KEY_LAYERS):
        new |= {
            f"coord_proj.{2 * i}.{part}": old[f"coords_transform.{2 * i}.{part}"]
            for part in ("weight", "bias")
        }
    cosines, sines = new["coord_proj.0.weight"].chunk(2, 1)
    new["coord_proj.0.weight"] = torch.cat([sines, cosines], 1)  # the other way round here
    for i, p in enumerate(s.rows):
        table = old[f"roi_embeds.{p}"]
        # Theirs is read with -1 outside the cortex, which takes the last row.
        table = torch.cat([table, table[-1:]]) if p in outside else table
        new[f"parcel_embeddings.{p}.weight"] = table - table[0]
        bias = bias + project[:, s.rank + i * s.region_width :][:, : s.region_width] @ table[0]
    new[f"coord_proj.{last}.weight"] = own @ new[f"coord_proj.{last}.weight"]
    new[f"coord_proj.{last}.bias"] = bias
    for i in range(s.layers):
        new |= {
            f"head.residual_blocks.{i}.{part}": old[f"mlp.{i}.{part}"]
            for part in ("0.weight", "0.bias", "1.weight", "1.bias")
        }
    named = {f"encoder.{name}": tensor for name, tensor in new.items()}
    named |= {f"projector.{part}": old[f"projector.{part}"] for part in ("weight", "bias")}
    return {name: tensor.float() for name, tensor in named.items()}


def load_lora_adapter(
    language: FrozenLanguageModel, weights: State, alpha: float, file: Path
) -> None:
    """Put LoRA weights into the language model; rank and places come from the tensors."""
    found = [
        re.fullmatch(r"base_model\.model\.(.+)\.lora_([AB])\.weight", name) for name in weights
    ]
    odd = [name for name, match in zip(weights, found, strict=True) if not match]
    modules = dict(language.model.named_modules())
    homeless = sorted({match[1] for match in found if match and match[1] not in modules})
    ranks = {weights[match[0]].shape[0] for match in found if match and match[2] == "A"}
    if odd or homeless or len(ranks) != 1:
        raise InputError(
            f"{file}: the LoRA part `peft_model` does not fit {language.name}: {f'unknown tensors {odd[:3]}' if odd else f'no layers {homeless[:3]}' if homeless else f'ranks {sorted(ranks)}'}. Expected lora_A and lora_B of one rank for layers of this language model."
        )
    targets = sorted({match[1] for match in found if match})
    config = LoraConfig(
        task_type="CAUSAL_LM", r=ranks.pop(), lora_alpha=alpha, target_modules=targets
    )
    try:
        language.model.load_adapter(adapter_state_dict=dict(weights), peft_config=config)
    except (RuntimeError, ValueError) as error:
        raise InputError(f"{file}: the LoRA part does not fit {language.name}: {error}") from error
    language.model.requires_grad_(False).eval()
    logger.info(
        "LoRA of rank %d on %d layers carried over, scaled by alpha %g",
        config.r,
        len(targets),
        alpha,
    )
