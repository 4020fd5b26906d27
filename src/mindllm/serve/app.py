"""The application: routes, errors, checks of access, and what it needs while it runs."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import Depends, FastAPI
from fastapi.security import HTTPBearer
from starlette.staticfiles import StaticFiles

from mindllm.data.store import Store
from mindllm.model.modeling import MindLLM
from mindllm.serve import chat_routes, data_routes, explain_routes, status_routes
from mindllm.serve.access import AccessGuard
from mindllm.serve.api_errors import ErrorResponse, install_handlers
from mindllm.serve.configuration import ServeConfig
from mindllm.serve.decoder import FMRIDecoder
from mindllm.serve.monitoring import Monitoring
from mindllm.serve.openapi import install_schema
from mindllm.serve.scans import ScanCollection
from mindllm.serve.services import Services
from mindllm.serve.store_subjects import StoreSubjects
from mindllm.serve.worker import ModelWorker
from mindllm.utils.versions import package_version

PAGE = Path(__file__).parent / "page"
ERRORS = {
    400: "The request is malformed, or cannot be answered",
    401: "A token is needed",
    403: "From another site, or by another name of the server",
    404: "There is no such thing, or it is another user's",
    408: "The request did not arrive in time",
    413: "The request is too large",
    429: "Too many requests wait; Retry-After says when to come again",
    500: "The server failed",
}


def create_app(
    model: MindLLM, store: Store | None = None, config: ServeConfig | None = None, name: str = ""
) -> FastAPI:
    """Make the application that serves a model.

    Parameters
    ----------
    model : MindLLM
    store : Store, optional
        Whose trials may be asked about.
    config : ServeConfig, optional
    name : str
        What the model is called; by default as its card says.

    Returns
    -------
    FastAPI

    Examples
    --------
    >>> app = create_app(model, store)  # doctest: +SKIP
    """
    config = (config or ServeConfig()).check()
    monitoring = Monitoring()
    name = name or model.model_card.name or "mindllm"
    app = FastAPI(
        title="mindllm",
        version=package_version("mindllm"),
        description="Ask a model about scans of brains, with the API of OpenAI.",
        lifespan=lambda app: run_services(app, name, model, store, config, monitoring),
        docs_url=None,  # these pages would be fetched from another server
        redoc_url=None,
        responses={
            status: {"model": ErrorResponse, "description": description}
            for status, description in ERRORS.items()
        },
    )
    install_handlers(app)
    secured = [Depends(HTTPBearer(auto_error=False))] if config.tokens else []
    for router in (chat_routes.router, data_routes.router, explain_routes.router):
        app.include_router(router, dependencies=secured)
    app.include_router(status_routes.metrics_router, dependencies=secured)
    app.include_router(status_routes.router)
    install_schema(app)
    if PAGE.is_dir():
        app.mount("/", StaticFiles(directory=PAGE, html=True), name="page")
    app.add_middleware(AccessGuard, config=config, monitoring=monitoring)
    return app


@asynccontextmanager
async def run_services(
    app: FastAPI,
    name: str,
    model: MindLLM,
    store: Store | None,
    config: ServeConfig,
    monitoring: Monitoring,
) -> AsyncIterator[None]:
    """Run what the routes use: the model's thread, and a folder for scans."""
    decoder = FMRIDecoder(model, config.cached_scans, monitoring)
    worker = ModelWorker(decoder, config, monitoring)
    scans = ScanCollection(
        config,
        decoder.check_voxels,
        numbered_parcels(model),
        lambda scan: decoder.forget(f"scan {scan}"),
    )
    subjects = StoreSubjects(store, model.model_card.subjects, config.show_answers)
    app.state.services = Services(name, model, config, monitoring, decoder, worker, subjects, scans)
    worker.start()
    try:
        await worker.call(FMRIDecoder.prepare)
        yield
    finally:
        worker.stop()
        scans.close()


def numbered_parcels(model: MindLLM) -> Mapping[str, Mapping[str, str]]:
    """Parcels that the model knows by number alone, for which an atlas needs no lookup table."""
    return {
        atlas: {name: name for name in names if name.isdecimal()}
        for atlas, names in model.encoder.parcel_names.items()
        if any(name.isdecimal() for name in names)
    }
