"""Scans in, text out: the whole path in one function."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mindllm.fmri.masker import VoxelMasker
from mindllm.fmri.nifti import Image
from mindllm.fmri.scaling import apply_mean_std, fit_mean_std
from mindllm.model.modeling import MindLLM
from mindllm.utils.errors import InputError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DecodedVolume:
    """The answer about one volume. `evidence`: log p(text | scan) - log p(text | no brain), in nats.

    The text was chosen because it is likely given the scan, so some evidence is always there: compare answers by it.
    """

    volume: int
    text: str
    log_likelihood_ratio: float


def decode(
    model: MindLLM,
    img: Image,
    mask_or_masker: Image | VoxelMasker,
    atlases: Mapping[str, Image] | None = None,
    *,
    volumes: Sequence[int] | None = None,
    question: str | None = None,
    standardize_with: Image | None = None,
    standardized: bool = False,
    batch_size: int = 16,
    on_text: Callable[[str], None] | None = None,
    on_volume: Callable[[int], None] | None = None,
    **options: Any,
) -> list[DecodedVolume]:
    """Decode volumes of a 3-D or 4-D scan: voxels where `mask` is set, labelled by `atlases`, one answer per volume.

    mask: a NIfTI mask, or a voxel space, such as one that travels with the model (`model.spaces`).
    Voxels are normalized with their mean and spread over all volumes of `reference`: another scan of the same person on the
    same grid, or this one; not if they come `normalized`.  stream: receives the text as it is written, one volume after the
    other.  done: is told how many volumes are decoded.  options: go to the language model's `generate`, e.g. do_sample=True.
    """
    space = (
        mask_or_masker
        if isinstance(mask_or_masker, VoxelMasker)
        else resolve_masker(model, mask_or_masker, atlases or {})
    )
    values = space.transform(img, volumes)
    if not standardized:
        _, mean, std = fit_mean_std(
            piece
            for _, piece in space.iter_transform(
                img if standardize_with is None else standardize_with
            )
        )
        values = apply_mean_std(values, mean, std)
    voxels = model.encoder.prepare_voxels(space)
    out: list[DecodedVolume] = []
    for some in torch.from_numpy(values).split(1 if on_text else batch_size):
        tokens = model.encode(some, voxels)
        texts = model.generate(
            tokens, [model.build_conversation(question)] * len(some), on_text, **options
        )
        evidence = model.log_likelihood_ratio(
            tokens, [model.build_conversation(question, text) for text in texts]
        )
        which = range(len(out), len(out) + len(some)) if volumes is None else volumes[len(out) :]
        out += [
            DecodedVolume(int(v), t, float(e))
            for v, t, e in zip(which, texts, evidence, strict=False)
        ]
        if on_volume:
            on_volume(len(out))
    return out


def resolve_masker(model: MindLLM, mask: Image, atlases: Mapping[str, Image]) -> VoxelMasker:
    """The voxels of a mask, labelled by those parcellations that the model knows. Raises InputError for another one."""
    known = model.encoder.parcel_names
    unknown = sorted(set(atlases) - set(known))
    if unknown:
        raise InputError(
            f"the model knows no parcellation {', '.join(unknown)}; it knows {', '.join(known) or 'none'}. Give these names to your atlases, or leave an atlas out."
        )
    if missing := sorted(set(known) - set(atlases)):
        logger.warning(
            "the model also knows the parcellation %s; without it voxels are told apart by position alone",
            ", ".join(missing),
        )
    # A model may know regions by number alone; then an atlas needs no lookup table.
    numbered = {p: {int(n): n for n in names if n.isdecimal()} for p, names in known.items()}
    return VoxelMasker.from_mask_img(
        mask, atlases, parcel_names={p: names for p, names in numbered.items() if names}
    )
