"""What every route uses: the model's thread, the store, uploaded scans, the options."""

import asyncio
import time
from collections.abc import Awaitable
from dataclasses import dataclass, field
from typing import Annotated, TypeVar

from fastapi import Depends, Request

from mindllm.model.modeling import MindLLM
from mindllm.serve.api_errors import (
    APIError,
    client_gone,
    input_error,
    log_unexpected,
    not_found,
)
from mindllm.serve.configuration import ServeConfig
from mindllm.serve.decoder import FMRIDecoder, FMRISource, volume_source
from mindllm.serve.monitoring import Monitoring
from mindllm.serve.scans import ScanCollection
from mindllm.serve.schemas import FMRIReference, StoreTrial
from mindllm.serve.store_subjects import StoreSubjects
from mindllm.serve.worker import ModelWorker
from mindllm.utils.errors import InputError

Result = TypeVar("Result")


@dataclass(frozen=True)
class Services:
    """What every route uses.

    Parameters
    ----------
    name : str
        What the model is called.
    model : MindLLM
    config : ServeConfig
    monitoring : Monitoring
    decoder : FMRIDecoder
    worker : ModelWorker
    subjects : StoreSubjects
    scans : ScanCollection
    """

    name: str
    model: MindLLM
    config: ServeConfig
    monitoring: Monitoring
    decoder: FMRIDecoder
    worker: ModelWorker
    subjects: StoreSubjects
    scans: ScanCollection
    created: int = field(default_factory=lambda: int(time.time()))

    def check_model(self, name: str) -> None:
        """Refuse a request for another model.

        Raises
        ------
        APIError
            If it names another.
        """
        if name != self.name:
            raise not_found(
                f"there is no such model; this server has {self.name}.", "model_not_found", "model"
            )

    def source(self, reference: FMRIReference, user: str, param: str) -> FMRISource:
        """The trial, or the volume of a user's scan, that a request names.

        Raises
        ------
        APIError
            If there is none, or it is another user's.
        """
        return self._whole_source(reference, user, param).without(reference.without)

    def _whole_source(self, reference: FMRIReference, user: str, param: str) -> FMRISource:
        if isinstance(reference, StoreTrial):
            return self.subjects.source(reference.subject, reference.trial, param)
        scan = self.scans.get(reference.scan, user, param)
        if reference.volume >= len(scan.betas):
            raise not_found(
                f"the scan has {len(scan.betas)} volumes, from 0 to {len(scan.betas) - 1}.",
                "volume_not_found",
                param,
            )
        return volume_source(scan, reference.volume)


def get_services(request: Request) -> Services:
    """The services of the application that a request is for."""
    services = request.app.state.services
    assert isinstance(services, Services)
    return services


def get_user(request: Request) -> str:
    """The user whose token a request holds."""
    return str(request.state.user)


ServicesOf = Annotated[Services, Depends(get_services)]
UserOf = Annotated[str, Depends(get_user)]


def describe_failure(error: Exception) -> APIError:
    """An error of the API: the sentence of one that the user can mend, else none of its content."""
    if isinstance(error, APIError):
        return error
    if isinstance(error, InputError):
        return input_error(error, param="messages")
    log_unexpected(error)
    return APIError(500, "the server failed; its log says where.", "server_failed")


async def until_disconnect(work: Awaitable[Result], request: Request) -> Result:
    """The result of an awaitable, unless the client goes away before.

    Raises
    ------
    APIError
        If the client has gone.
    """
    waiting = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(wait_for_disconnect(request))
    try:
        await asyncio.wait({waiting, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not waiting.done():
            raise client_gone()
        return waiting.result()
    finally:
        waiting.cancel()
        leaving.cancel()


async def wait_for_disconnect(request: Request) -> None:
    """Return when the client has closed the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
