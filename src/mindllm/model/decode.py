"""Scans in, text out: the whole path in one function."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mindllm.fmri.masker import VoxelSpace
from mindllm.fmri.nifti import Image
from mindllm.fmri.scaling import moments, standardize
from mindllm.model.modeling import MindLLM
from mindllm.utils.errors import InputError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Decoded:
    """The answer about one volume. `evidence`: log p(text | scan) - log p(text | no brain), in nats.

    The text was chosen because it is likely given the scan, so some evidence is always there: compare answers by it.
    """

    volume: int
    text: str
    evidence: float


def decode(
    model: MindLLM,
    scan: Image,
    mask: Image | VoxelSpace,
    atlases: Mapping[str, Image] | None = None,
    *,
    volumes: Sequence[int] | None = None,
    question: str | None = None,
    reference: Image | None = None,
    normalized: bool = False,
    batch_size: int = 16,
    stream: Callable[[str], None] | None = None,
    done: Callable[[int], None] | None = None,
    **options: Any,
) -> list[Decoded]:
    """Decode volumes of a 3-D or 4-D scan: voxels where `mask` is set, labelled by `atlases`, one answer per volume.

    mask: a NIfTI mask, or a voxel space, such as one that travels with the model (`model.spaces`).
    Voxels are normalized with their mean and spread over all volumes of `reference`: another scan of the same person on the
    same grid, or this one; not if they come `normalized`.  stream: receives the text as it is written, one volume after the
    other.  done: is told how many volumes are decoded.  options: go to the language model's `generate`, e.g. do_sample=True.
    """
    space = mask if isinstance(mask, VoxelSpace) else read_space(model, mask, atlases or {})
    values = space.read(scan, volumes)
    if not normalized:
        _, mean, std = moments(piece for _, piece in space.read_pieces(scan if reference is None else reference))
        values = standardize(values, mean, std)
    voxels = model.encoder.locate(space)
    out: list[Decoded] = []
    for some in torch.from_numpy(values).split(1 if stream else batch_size):
        tokens = model.encode(some, voxels)
        texts = model.generate(tokens, [model.ask(question)] * len(some), stream, **options)
        evidence = model.evidence(tokens, [model.ask(question, text) for text in texts])
        which = range(len(out), len(out) + len(some)) if volumes is None else volumes[len(out) :]
        out += [Decoded(int(v), t, float(e)) for v, t, e in zip(which, texts, evidence, strict=False)]
        if done:
            done(len(out))
    return out


def read_space(model: MindLLM, mask: Image, atlases: Mapping[str, Image]) -> VoxelSpace:
    """The voxels of a mask, labelled by those parcellations that the model knows. Raises InputError for another one."""
    known = model.encoder.regions
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
    return VoxelSpace.from_mask(mask, atlases, names={p: names for p, names in numbered.items() if names})
