"""Routes that show where in the brain an answer comes from."""

from collections.abc import Callable
from threading import Event
from typing import TypeVar

import nibabel as nib
import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import Response

from mindllm.explain.contributions import Contributions
from mindllm.serve.api_errors import APIError, input_error
from mindllm.serve.data_routes import NIFTI, nifti_response
from mindllm.serve.decoder import FMRIDecoder, FMRISource
from mindllm.serve.evidence import NO_ENCODING_MODEL
from mindllm.serve.explanations import (
    attend,
    contribute_to,
    describe_words,
    map_word,
    sum_regions,
    template_image,
    to_image,
)
from mindllm.serve.schemas import (
    AttentionRequest,
    ContributionRequest,
    EvidenceRequest,
    EvidenceResponse,
    EvidenceSums,
    ExplainRequest,
    RegionSums,
    TextEvidence,
    WordList,
    WordMapRequest,
    WordsRequest,
)
from mindllm.serve.services import Services, ServicesOf, UserOf, until_disconnect
from mindllm.utils.errors import InputError

router = APIRouter(prefix="/v1", tags=["explanations"])
T = TypeVar("T")


def check_evidence(services: Services) -> None:
    """Refuse what needs an encoding model where there is none.

    Raises
    ------
    APIError
        If there is none.
    """
    if not services.decoder.has_evidence:
        raise APIError(400, f"{NO_ENCODING_MODEL}.", "no_encoding_model", "model")


async def explain(
    services: Services,
    function: Callable[[FMRIDecoder], T],
    param: str | None = None,
    cancelled: Event | None = None,
) -> T:
    """What a function computes in the model's thread.

    Parameters
    ----------
    services : Services
    function : callable
    param : str, optional
        The field that is wrong where the model refuses.
    cancelled : threading.Event, optional
        As for `ModelWorker.call`.

    Raises
    ------
    APIError
        If the model refuses what is asked.
    """
    try:
        return await services.worker.call(function, cancelled)
    except InputError as error:
        raise input_error(error, param=param) from None


async def image_response(
    services: Services, body: ExplainRequest, source: FMRISource, values: np.ndarray, name: str
) -> Response:
    """Numbers of voxels as an image, on the grid that was asked for."""

    def make(decoder: FMRIDecoder) -> nib.Nifti1Image:
        return to_image(decoder, source, values, body.space)

    return nifti_response(await explain(services, make), f"{name}.nii")


@router.post("/evidence", summary="Evidence of a scan for texts")
async def weigh_texts(
    body: EvidenceRequest, services: ServicesOf, user: UserOf
) -> EvidenceResponse:
    """Weigh any texts by a scan; with parcels switched off, also without them."""
    services.check_model(body.model)
    source = services.source(body.fmri, user, "fmri")
    check_evidence(services)

    def weigh(decoder: FMRIDecoder) -> list[TextEvidence]:
        embeddings = decoder.model.embed_texts(body.texts)
        evidence = decoder.evidence(source.whole(), embeddings)[0].tolist()
        without = [None] * len(evidence)
        if source.off:
            without = decoder.evidence(source, embeddings)[0].tolist()
        return [
            TextEvidence(text=text, evidence=e, evidence_without=w)
            for text, e, w in zip(body.texts, evidence, without, strict=True)
        ]

    data = await explain(services, weigh, "texts")
    n_voxels_off = int(source.is_off.sum())
    return EvidenceResponse(data=data, n_voxels=len(source.masker), n_voxels_off=n_voxels_off)


async def compute_attention(
    body: AttentionRequest, services: Services, user: str
) -> tuple[FMRISource, np.ndarray]:
    """Where the model listens, (n_voxels,), 1 being uniform."""
    services.check_model(body.model)
    if body.query is not None and body.token is not None:
        raise APIError(400, "give a query or a token, not both.", "query_and_token", "token")
    source = services.source(body.fmri, user, "fmri")
    values = await explain(
        services, lambda decoder: attend(decoder, source, body.query, body.token)
    )
    return source, values


@router.post(
    "/explain/attention", summary="Where the model listens", response_class=Response,
    responses=NIFTI,  # type: ignore[arg-type]
)  # fmt: skip
async def get_attention(body: AttentionRequest, services: ServicesOf, user: UserOf) -> Response:
    """Attention of a query, a token, or the mean of all queries, as an image; 1 is uniform."""
    source, values = await compute_attention(body, services, user)
    return await image_response(services, body, source, values, "attention")


@router.post("/explain/attention/regions", summary="Where the model listens, per region")
async def get_attention_regions(
    body: AttentionRequest, services: ServicesOf, user: UserOf
) -> RegionSums:
    """Fraction of the attention that each parcel gets, beside its fraction of the voxels."""
    source, values = await compute_attention(body, services, user)
    return RegionSums(data=sum_regions(source.masker, values / values.sum()))


async def compute_contributions(
    body: ContributionRequest, services: Services, user: str
) -> tuple[FMRISource, Contributions]:
    """Contribution of every voxel to the evidence for a text, in nats."""
    services.check_model(body.model)
    source = services.source(body.fmri, user, "fmri")
    check_evidence(services)
    contributions = await explain(
        services, lambda decoder: contribute_to(decoder, source, body.text)
    )
    return source, contributions


@router.post(
    "/explain/evidence", summary="Voxels that speak for a text", response_class=Response,
    responses=NIFTI,  # type: ignore[arg-type]
)  # fmt: skip
async def get_contributions(
    body: ContributionRequest, services: ServicesOf, user: UserOf
) -> Response:
    """Contribution of every voxel to the evidence for a text, in nats, as an image."""
    source, contributions = await compute_contributions(body, services, user)
    return await image_response(services, body, source, contributions.voxels[0], "evidence")


@router.post("/explain/evidence/regions", summary="Regions that speak for a text")
async def get_contribution_regions(
    body: ContributionRequest, services: ServicesOf, user: UserOf
) -> EvidenceSums:
    """Contributions summed over parcels. Those of all voxels and `at_zero` sum to the evidence."""
    source, contributions = await compute_contributions(body, services, user)
    return EvidenceSums(
        evidence=float(contributions.evidence[0]),
        at_zero=float(contributions.at_zero[0]),
        error=contributions.error,
        is_closed_form=contributions.is_closed_form,
        data=sum_regions(source.masker, contributions.voxels[0]),
    )


@router.post("/explain/words", summary="Words of an answer")
async def list_words(body: WordsRequest, services: ServicesOf, user: UserOf) -> WordList:
    """Words of an answer, and how much likelier the scan makes each of them."""
    services.check_model(body.model)
    source = services.source(body.fmri, user, "fmri")
    words = await explain(
        services,
        lambda decoder: describe_words(decoder, source, body.answer, body.question),
        param="answer",
    )
    return WordList(data=words)


async def compute_word(
    body: WordMapRequest, request: Request, services: Services, user: str
) -> tuple[FMRISource, np.ndarray]:
    """Attribution (n_voxels,) of a word, in nats; a client that goes away ends the work."""
    services.check_model(body.model)
    source = services.source(body.fmri, user, "fmri")
    cancelled = Event()

    def attribute(decoder: FMRIDecoder) -> np.ndarray:
        return map_word(decoder, source, body.answer, body.question, body.word, cancelled)

    values = await until_disconnect(
        explain(services, attribute, "answer", cancelled=cancelled), request
    )
    return source, values


@router.post(
    "/explain/words/map", summary="Voxels that a word came from", response_class=Response,
    responses=NIFTI,  # type: ignore[arg-type]
)  # fmt: skip
async def get_word_map(
    body: WordMapRequest, request: Request, services: ServicesOf, user: UserOf
) -> Response:
    """Attribution of a word to voxels, in nats, as an image; takes some seconds."""
    source, values = await compute_word(body, request, services, user)
    return await image_response(services, body, source, values, "word")


@router.post("/explain/words/regions", summary="Regions that a word came from")
async def get_word_regions(
    body: WordMapRequest, request: Request, services: ServicesOf, user: UserOf
) -> RegionSums:
    """Attribution of a word, in nats, summed over parcels."""
    source, values = await compute_word(body, request, services, user)
    return RegionSums(data=sum_regions(source.masker, values))


@router.get(
    "/template", summary="Anatomy in MNI space", response_class=Response,
    responses=NIFTI,  # type: ignore[arg-type]
)  # fmt: skip
async def get_template(services: ServicesOf) -> Response:
    """The MNI152 anatomy, to show images of the space `mni` over."""
    return nifti_response(await explain(services, lambda _: template_image()), "template.nii")
