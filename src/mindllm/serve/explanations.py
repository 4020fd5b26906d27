"""Explanations of one scan as the routes give them; called by the model's thread."""

from functools import cache
from threading import Event
from typing import Literal

import nibabel as nib
import numpy as np
import torch

from mindllm.explain.attention import relative_to_uniform, token_sensitivity
from mindllm.explain.attribution import attribute_words, word_scorer
from mindllm.explain.contributions import Contributions, contribute
from mindllm.explain.evidence_path import Question
from mindllm.explain.features import build_features
from mindllm.explain.regions import list_parcels
from mindllm.fmri.masker import VoxelMasker
from mindllm.serve.api_errors import client_gone
from mindllm.serve.decoder import FMRIDecoder, FMRISource
from mindllm.serve.schemas import RegionSum, WordInfo
from mindllm.utils.errors import InputError

TEMPLATE_MM = 2
Space = Literal["native", "mni"]


def attend(
    decoder: FMRIDecoder, source: FMRISource, query: int | None, token: int | None
) -> np.ndarray:
    """Where a query, a token, or the mean of all queries attends to.

    Parameters
    ----------
    decoder : FMRIDecoder
    source : FMRISource
    query, token : int or None
        From 0.

    Returns
    -------
    ndarray of shape (n_voxels,)
        1 is what uniform attention gives every voxel.

    Raises
    ------
    InputError
        If there is no such query or token.
    """
    attention = decoder.attention(source)
    if query is not None:
        check_number("query", query, len(attention))
        return relative_to_uniform(attention[query].double().numpy())
    if token is None:
        return relative_to_uniform(attention.double().mean(0).numpy())
    model = decoder.model
    check_number("token", token, model.encoder.config.num_fmri_tokens)
    outputs = decoder.encode(source)[0].query_outputs[None]
    weights = token_sensitivity(model, outputs)[token].double().cpu()
    if not weights.sum() > 0:
        raise InputError(f"fMRI token {token} depends on no query at this scan. Take another.")
    return relative_to_uniform(((weights / weights.sum()) @ attention.double()).numpy())


def check_number(what: str, number: int, count: int) -> None:
    """Refuse a number that is too large."""
    if number >= count:
        raise InputError(f"there is no {what} {number}; the model has {count}, from 0.")


def contribute_to(decoder: FMRIDecoder, source: FMRISource, text: str) -> Contributions:
    """Contribution of every voxel to the evidence of a scan for a text."""
    encoding_model = decoder.model.encoding_model
    assert encoding_model is not None

    def compute() -> Contributions:
        betas = torch.from_numpy(source.betas()).double()
        features = build_features(
            encoding_model, decoder.context(source).transform, decoder.attention(source), betas
        )
        embeddings = decoder.model.embed_texts([text])
        return contribute(features, Question.of_texts(encoding_model, embeddings, None))

    return decoder.contributions((source.key, text), compute)


@torch.no_grad()
def describe_words(
    decoder: FMRIDecoder, source: FMRISource, answer: str, question: str | None
) -> list[WordInfo]:
    """Words of an answer, and their log-likelihood given the scan and given zero betas."""
    score, words = word_scorer(decoder.model, answer, question)
    outputs = decoder.encode(source)[0].query_outputs[None]
    scores = score(torch.cat([outputs, torch.zeros_like(outputs)])).double().cpu()
    return [
        WordInfo(word=number, text=text, log_likelihood=given_scan, at_zero=at_zero)
        for number, (text, given_scan, at_zero) in enumerate(
            zip(words, *scores.tolist(), strict=True)
        )
    ]


def map_word(
    decoder: FMRIDecoder,
    source: FMRISource,
    answer: str,
    question: str | None,
    word: int,
    cancelled: Event,
) -> np.ndarray:
    """Attribution (n_voxels,) of a word of an answer to voxels, in nats.

    Raises
    ------
    APIError
        If it was cancelled meanwhile.
    """

    def check_waited_for() -> None:
        if cancelled.is_set():
            decoder.monitoring.cancelled.inc()
            raise client_gone()

    def attribute() -> np.ndarray:
        attributions = attribute_words(
            decoder.model,
            source.masker,
            source.betas(),
            answer,
            question,
            words=[word],
            on_piece=check_waited_for,
        )
        return attributions.voxels[0]

    return decoder.word_map((source.key, answer, question, word), attribute)


def sum_regions(masker: VoxelMasker, values: np.ndarray) -> list[RegionSum]:
    """Sums of values (n_voxels,) over the parcels of every atlas."""
    return [
        RegionSum(
            atlas=region.atlas,
            parcel=region.name,
            n_voxels=int(region.voxels.sum()),
            voxel_fraction=float(region.voxels.mean()),
            value=float(values[region.voxels].sum()),
        )
        for region in list_parcels(masker)
    ]


def to_image(
    decoder: FMRIDecoder, source: FMRISource, values: np.ndarray, space: Space
) -> nib.Nifti1Image:
    """Values (n_voxels,) as an image, on the scan's grid or in MNI space."""
    if space == "native":
        return source.masker.inverse_transform(values.astype(np.float32))
    return decoder.mni_grid(source).to_img(values.astype(np.float32))


@cache
def template_image() -> nib.Nifti1Image:
    """The MNI152 anatomy."""
    from nilearn.datasets import load_mni152_template

    img = load_mni152_template(resolution=TEMPLATE_MM)
    data = img.get_fdata()
    return nib.Nifti1Image((255 * data / data.max()).round().astype(np.uint8), img.affine)
