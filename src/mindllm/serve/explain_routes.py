"""Routes that show where in the brain an answer comes from."""

from fastapi import APIRouter

from mindllm.serve.api_errors import APIError
from mindllm.serve.decoder import FMRIDecoder
from mindllm.serve.evidence import NO_ENCODING_MODEL
from mindllm.serve.schemas import EvidenceRequest, EvidenceResponse, TextEvidence
from mindllm.serve.services import Services, ServicesOf, UserOf

router = APIRouter(prefix="/v1", tags=["explanations"])


def check_evidence(services: Services) -> None:
    """Refuse what needs an encoding model where there is none.

    Raises
    ------
    APIError
        If there is none.
    """
    if not services.decoder.has_evidence:
        raise APIError(400, f"{NO_ENCODING_MODEL}.", "no_encoding_model", "model")


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

    data = await services.worker.call(weigh)
    n_voxels_off = int(source.is_off.sum())
    return EvidenceResponse(data=data, n_voxels=len(source.masker), n_voxels_off=n_voxels_off)
