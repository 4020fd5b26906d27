"""Images of betas to text, in one function."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from mindllm.fmri.masker import VoxelMasker
from mindllm.fmri.nifti import Image
from mindllm.fmri.scaling import apply_mean_std, fit_mean_std
from mindllm.model.modeling import MindLLM
from mindllm.model.scan_voxels import resolve_masker


@dataclass(frozen=True, slots=True)
class DecodedVolume:
    """Prediction for one volume.

    Parameters
    ----------
    volume : int
        Number of the volume in the image, from 0.
    text : str
        The prediction.
    log_likelihood_ratio : float
        log p(text | fMRI tokens) - log p(text | null tokens), in nats. The text was generated
        because it is likely given the scan, so it is nearly always positive: compare texts by it.
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
    **generate_options: Any,
) -> list[DecodedVolume]:
    """Decode volumes of an image of betas.

    Parameters
    ----------
    model : MindLLM
    img : 3-D or 4-D image, or path
    mask_or_masker : image, path, or VoxelMasker
        Such as one of `model.maskers`.
    atlases : mapping from str to image or path, optional
        Atlas name to labels, where a mask is passed; the names are the model's.
    volumes : sequence of int, optional
        By default all.
    question : str, optional
        By default the question that the model was trained with.
    standardize_with : image or path, optional
        Betas are z-scored as in this image of the subject, on the same grid; by default in `img`.
    standardized : bool
        Betas are z-scored already.
    batch_size, on_text, on_volume
        Volumes at once; called with text as it is generated, and with the number decoded so far.
    **generate_options
        Arguments of transformers' ``generate``, such as do_sample.

    Returns
    -------
    list of DecodedVolume
        In the order of `volumes`.
    """
    masker = resolve_masker(model, mask_or_masker, atlases or {})
    betas = read_betas(masker, img, volumes, standardize_with, standardized)
    size, callbacks = 1 if on_text else batch_size, (on_text, on_volume)
    predictions = decode_betas(model, masker, betas, question, size, callbacks, generate_options)
    indices = range(len(betas)) if volumes is None else volumes
    return [DecodedVolume(int(i), *p) for i, p in zip(indices, predictions, strict=True)]


def read_betas(
    masker: VoxelMasker,
    img: Image,
    volumes: Sequence[int] | None,
    standardize_with: Image | None,
    standardized: bool,
) -> np.ndarray:
    """Standardized betas (n_volumes, n_voxels) of an image."""
    betas = masker.transform(img, volumes)
    if standardized:
        return betas
    batches = masker.iter_transform(img if standardize_with is None else standardize_with)
    _, mean, std = fit_mean_std(batch for _, batch in batches)
    return apply_mean_std(betas, mean, std)


def decode_betas(
    model: MindLLM,
    masker: VoxelMasker,
    betas: np.ndarray,
    question: str | None,
    batch_size: int,
    callbacks: tuple[Callable[[str], None] | None, Callable[[int], None] | None],
    generate_options: Mapping[str, Any],
) -> list[tuple[str, float]]:
    """Text and log-likelihood ratio of each row of betas (n_volumes, n_voxels)."""
    on_text, on_volume = callbacks
    voxels = model.encoder.prepare_voxels(masker)
    predictions: list[tuple[str, float]] = []
    for batch in torch.from_numpy(betas).split(batch_size):
        fmri_tokens = model.encode(batch, voxels)
        questions = [model.build_conversation(question)] * len(batch)
        texts = model.generate(fmri_tokens, questions, on_text, **generate_options)
        answered = [model.build_conversation(question, text) for text in texts]
        ratios = model.log_likelihood_ratio(fmri_tokens, answered)
        predictions += zip(texts, ratios.tolist(), strict=True)
        if on_volume:
            on_volume(len(predictions))
    return predictions
