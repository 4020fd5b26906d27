"""Routes that tell how the server is."""

from fastapi import APIRouter
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST

from mindllm.serve.schemas import Health
from mindllm.serve.services import ServicesOf
from mindllm.utils.versions import package_version

router = APIRouter(tags=["status"])
metrics_router = APIRouter(tags=["status"])  # which needs a token
METRICS = {
    200: {
        "description": "Counts and times in Prometheus' text format",
        "content": {"text/plain": {"schema": {"type": "string"}}},
    }
}


@router.get("/health", summary="Is the server ready?")
async def health(services: ServicesOf) -> Health:
    """Answered once the model is loaded; no token is needed."""
    return Health(version=package_version("mindllm"), model=services.name)


@metrics_router.get(
    "/metrics", summary="Numbers for Prometheus", response_class=Response,
    responses=METRICS,  # type: ignore[arg-type]
)  # fmt: skip
async def metrics(services: ServicesOf) -> Response:
    """Counts and times; nothing of what was asked or answered."""
    return Response(services.monitoring.to_text(), media_type=CONTENT_TYPE_LATEST)
