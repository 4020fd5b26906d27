"""Scans in, text out: the whole path in one function."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mindllm.conversation import QUESTION, ask
from mindllm.errors import InputError
from mindllm.images import Image
from mindllm.model import MindLLM
from mindllm.normalization import moments, standardize
from mindllm.voxels import VoxelSpace

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
    mask: Image,
    atlases: Mapping[str, Image] | None = None,
    *,
    volumes: Sequence[int] | None = None,
    question: str = QUESTION,
    reference: Image | None = None,
    batch_size: int = 16,
    stream: Callable[[str], None] | None = None,
    done: Callable[[int], None] | None = None,
    **options: Any,
) -> list[Decoded]:
    """Decode volumes of a 3-D or 4-D scan: voxels where `mask` is set, labelled by `atlases`, one answer per volume.

    Voxels are normalized with their mean and spread over all volumes of `reference`: another scan of the same person on the
    same grid, or this one.  stream: receives the text as it is written, one volume after the other.  done: is told how many
    volumes are decoded.  options: go to the language model's `generate`, e.g. do_sample=True, temperature=0.7.
    """
    space = VoxelSpace.from_mask(mask, atlases)
    unknown = sorted(set(space.regions) - set(model.encoder.regions))
    if unknown:
        raise InputError(
            f"the model knows no parcellation {', '.join(unknown)}; it knows {', '.join(model.encoder.regions) or 'none'}. Give these names to your atlases, or leave an atlas out."
        )
    if missing := sorted(set(model.encoder.regions) - set(space.regions)):
        logger.warning(
            "the model also knows the parcellation %s; without it voxels are told apart by position alone",
            ", ".join(missing),
        )
    _, mean, std = moments(piece for _, piece in space.read_pieces(scan if reference is None else reference))
    values = torch.from_numpy(standardize(space.read(scan, volumes), mean, std))
    voxels = model.encoder.locate(space)
    out: list[Decoded] = []
    for some in values.split(1 if stream else batch_size):
        tokens = model.encode(some, voxels)
        texts = model.generate(tokens, [ask(question)] * len(some), stream, **options)
        evidence = model.evidence(tokens, texts, question)
        which = range(len(out), len(out) + len(some)) if volumes is None else volumes[len(out) :]
        out += [Decoded(int(v), t, float(e)) for v, t, e in zip(which, texts, evidence, strict=False)]
        if done:
            done(len(out))
    return out
