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

from mindllm.convert.checkpoint_tensors import KEY_LAYERS, Sizes, State, check, measure, read_checkpoint
from mindllm.fmri.masker import VoxelSpace
from mindllm.fmri.roi_volumes import MASK, OUTSIDE, people, read_spaces
from mindllm.model import checkpoint
from mindllm.model.language_model import LanguageModel, load_llm
from mindllm.model.modeling import MindLLM
from mindllm.utils.errors import InputError
from mindllm.utils.files import refuse_existing, whole_folder

LORA_ALPHA = 16  # the checkpoint does not hold it; the authors' main.py does
logger = logging.getLogger(__name__)


def convert(
    file: str | Path,
    rois: str | Path,
    llm: str | None,
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
    file, rois, out = Path(file), Path(rois), Path(out)
    refuse_existing(out)
    content = read_checkpoint(file)
    state: State = content["state_dict"]
    sizes = measure(state, file)
    check(state, sizes, file)
    spaces = read_people(rois, state, sizes, file)
    unknown = sorted(set(trained_on or []) - set(spaces))
    if unknown:
        raise InputError(f"{', '.join(unknown)} is not among the people of {rois}: {', '.join(spaces)}.")
    language = load_llm(llm)
    if language.width != sizes.llm_width:
        raise InputError(
            f"{file}: projector.weight makes tokens for a language model of width {sizes.llm_width}; {language.name} has width {language.width}. Give the one it was trained with (the authors': lmsys/vicuna-7b-v1.5)."
        )
    if content.get("peft_model"):
        attach(language, content["peft_model"], lora_alpha, file)
    regions = {
        p: [next(s.region_names[p] for s in spaces.values())[n] for n in range(1, rows)]
        for p, rows in sizes.rows.items()
    }
    outside = {p for p in regions for s in spaces.values() if OUTSIDE in s.region_names[p].values()}
    regions = {p: [*names, OUTSIDE] if p in outside else names for p, names in regions.items()}
    model = MindLLM(sizes.config(), regions, language, "vicuna").eval()
    model.load_state_dict(translate(state, sizes, outside) | {"no_brain": model.no_brain})
    with torch.no_grad():
        # The checkpoint has no mean token: what an average scan (every voxel 0) says stands for it.
        model.no_brain.copy_(model.encoder.head.tokens(model.encoder.head.code(torch.zeros(1, sizes.queries)))[0])
    model.spaces = spaces
    model.card = {
        "converted_from": {
            "file": file.name,
            "sha256": digest(file),
            "lightning": content.get("pytorch-lightning_version"),
            "tensors": {name: list(tensor.shape) for name, tensor in state.items()},
            "lora": sorted(content.get("peft_model") or []),
        },
        "no_brain": "the tokens of a scan that is 0 everywhere (the checkpoint holds no mean token)",
    }
    if trained_on:
        model.card["subjects"] = list(trained_on)
    with whole_folder(out) as temporary:
        checkpoint.save(model, temporary)
    return model


def digest(file: Path) -> str:
    """The file's SHA-256, to say later which checkpoint it was."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def read_people(rois: Path, state: State, s: Sizes, file: Path) -> dict[str, VoxelSpace]:
    """The voxel spaces of all people in `rois`, compared with the masks and parcellations in the checkpoint."""
    there = people(rois)
    inside = {f"subj{n:02d}": n for n in s.grids}
    if bare := sorted(set(inside) - set(there)):
        raise InputError(
            f"{file} has left over visual_mask_subject_{inside[bare[0]]}: {rois} has no folder {', '.join(bare)}. Fetch the ROI files of every person in the checkpoint."
        )
    spaces = read_spaces({name: rois / name for name in there}, s.rows)
    for name, space in spaces.items():
        if name not in inside:
            logger.info("%s is not in the checkpoint; its ROI files alone describe it", name)
            continue
        number, where = inside[name], tuple(space.ijk.T)
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
            other = (np.where(theirs < 0, rows, theirs) != space.regions[p]).sum()
            if other:
                raise InputError(
                    f"{rois / name / p}.nii.gz numbers {other} of {len(space)} voxels otherwise than fmri_encoder.roi_{p}_subject_{number}. Fetch the ROI files that belong to this checkpoint."
                )
    return spaces


def translate(state: State, s: Sizes, outside: set[str]) -> dict[str, Tensor]:
    """The tensors of our modules. Products are made in double precision."""
    old = {
        name.removeprefix("fmri_encoder."): tensor.double() for name, tensor in state.items() if "subject_" not in name
    }
    last = 2 * (KEY_LAYERS - 1)
    project, own = old["region_feature_project.weight"], old["region_feature_project.weight"][:, : s.rank]
    bias = own @ old[f"coords_transform.{last}.bias"] + old["region_feature_project.bias"]
    new = {
        "frequencies": old["coords_encoding.b"],
        "queries": old["neuro_informed_attn.query_embeddings"][0] * s.rank**0.5,  # their attention is not scaled
        "region_key.weight": project[:, s.rank :],
        "head.enter.0.weight": old["neuro_informed_attn_post.0.weight"],
        "head.enter.0.bias": old["neuro_informed_attn_post.0.bias"],
        "head.leave.weight": old["head.weight"],
        "head.leave.bias": old["head.bias"],
    }
    for i in range(KEY_LAYERS):
        new |= {f"position_key.{2 * i}.{part}": old[f"coords_transform.{2 * i}.{part}"] for part in ("weight", "bias")}
    cosines, sines = new["position_key.0.weight"].chunk(2, 1)
    new["position_key.0.weight"] = torch.cat([sines, cosines], 1)  # the other way round here
    for i, p in enumerate(s.rows):
        table = old[f"roi_embeds.{p}"]
        # Theirs is read with -1 outside the cortex, which takes the last row.
        table = torch.cat([table, table[-1:]]) if p in outside else table
        new[f"region_tables.{p}.weight"] = table - table[0]
        bias = bias + project[:, s.rank + i * s.region_width :][:, : s.region_width] @ table[0]
    new[f"position_key.{last}.weight"] = own @ new[f"position_key.{last}.weight"]
    new[f"position_key.{last}.bias"] = bias
    for i in range(s.layers):
        new |= {
            f"head.layers.{i}.{part}": old[f"mlp.{i}.{part}"] for part in ("0.weight", "0.bias", "1.weight", "1.bias")
        }
    named = {f"encoder.{name}": tensor for name, tensor in new.items()}
    named |= {f"projector.{part}": old[f"projector.{part}"] for part in ("weight", "bias")}
    return {name: tensor.float() for name, tensor in named.items()}


def attach(language: LanguageModel, weights: State, alpha: float, file: Path) -> None:
    """Put LoRA weights into the language model; rank and places come from the tensors."""
    found = [re.fullmatch(r"base_model\.model\.(.+)\.lora_([AB])\.weight", name) for name in weights]
    odd = [name for name, match in zip(weights, found, strict=True) if not match]
    modules = dict(language.model.named_modules())
    homeless = sorted({match[1] for match in found if match and match[1] not in modules})
    ranks = {weights[match[0]].shape[0] for match in found if match and match[2] == "A"}
    if odd or homeless or len(ranks) != 1:
        raise InputError(
            f"{file}: the LoRA part `peft_model` does not fit {language.name}: {f'unknown tensors {odd[:3]}' if odd else f'no layers {homeless[:3]}' if homeless else f'ranks {sorted(ranks)}'}. Expected lora_A and lora_B of one rank for layers of this language model."
        )
    targets = sorted({match[1] for match in found if match})
    config = LoraConfig(task_type="CAUSAL_LM", r=ranks.pop(), lora_alpha=alpha, target_modules=targets)
    try:
        language.model.load_adapter(adapter_state_dict=dict(weights), peft_config=config)
    except (RuntimeError, ValueError) as error:
        raise InputError(f"{file}: the LoRA part does not fit {language.name}: {error}") from error
    language.model.requires_grad_(False).eval()
    logger.info("LoRA of rank %d on %d layers carried over, scaled by alpha %g", config.r, len(targets), alpha)
