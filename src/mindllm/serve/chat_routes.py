"""Routes of OpenAI's API: models and chat completions."""

from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse

from mindllm.serve.api_errors import APIError
from mindllm.serve.chat import (
    Head,
    build_turns,
    find_reference,
    generation_options,
    make_response,
    stream_events,
)
from mindllm.serve.schemas import (
    AtlasParcels,
    ChatRequest,
    ChatResponse,
    ModelFacts,
    ModelInfo,
    ModelList,
)
from mindllm.serve.services import (
    Services,
    ServicesOf,
    UserOf,
    describe_failure,
    until_disconnect,
)
from mindllm.serve.worker import Answer, ChatJob, Delivery

router = APIRouter(prefix="/v1", tags=["OpenAI"])


def model_info(services: Services) -> ModelInfo:
    """Describe the model."""
    model = services.model
    return ModelInfo(
        id=services.name,
        created=services.created,
        mindllm=ModelFacts(
            has_encoding_model=services.decoder.has_evidence,
            n_proposals=len(services.decoder.proposals),
            num_queries=model.encoder.config.num_queries,
            num_fmri_tokens=model.encoder.config.num_fmri_tokens,
            language_model=model.language_model.name.rsplit("/", 1)[-1],
            max_length=model.language_model.max_length,
            question=model.model_card.question or model.processor.chat_template.question,
            training_subjects=model.model_card.subjects,
            atlases=[
                AtlasParcels(atlas=atlas, parcels=list(names))
                for atlas, names in model.encoder.parcel_names.items()
            ],
        ),
    )


@router.get("/models", summary="The model of this server")
async def list_models(services: ServicesOf) -> ModelList:
    """List the one model that this server has."""
    return ModelList(data=[model_info(services)])


@router.get("/models/{model}", summary="A model")
async def get_model(model: str, services: ServicesOf) -> ModelInfo:
    """Describe a model, and what it can say."""
    services.check_model(model)
    return model_info(services)


STREAMED = {
    200: {
        "description": "The answer; with `stream` as server-sent events, each a ChatChunk",
        "content": {
            "text/event-stream": {"schema": {"type": "string"}},
        },
    }
}


@router.post(
    "/chat/completions",
    summary="Ask about a scan",
    response_model=ChatResponse,
    responses=STREAMED,  # type: ignore[arg-type]
)
async def create_chat_completion(
    body: ChatRequest, request: Request, services: ServicesOf, user: UserOf
) -> ChatResponse | StreamingResponse:
    """Continue a conversation about a scan, which a part of type `fmri` of a user message names."""
    services.check_model(body.model)
    if body.stream_options is not None and not body.stream:
        raise APIError(
            400, "stream_options is for streamed answers.", "not_streamed", "stream_options"
        )
    reference, scan_message = find_reference(body.messages)
    job = ChatJob(
        services.source(reference, user, "messages"),
        build_turns(services.model, body.messages, scan_message),
        generation_options(body, services.config),
        body.mindllm,
        Delivery(),
    )
    services.worker.submit(job)
    head = Head.make(services.name)
    if not body.stream:
        return make_response(head, await wait_for_answer(job.delivery, request))
    first = await first_piece(job.delivery, request)
    include_usage = body.stream_options is not None and body.stream_options.include_usage
    events = stream_events(head, job.delivery, first, include_usage, describe_failure)
    return StreamingResponse(
        events, media_type="text/event-stream", headers={"Cache-Control": "no-store"}
    )


async def wait_for_answer(delivery: Delivery[Answer], request: Request) -> Answer:
    """The answer; a client that goes away cancels it.

    Raises
    ------
    APIError
        If it failed.
    """
    try:
        return await until_disconnect(delivery.result(), request)
    except Exception as error:
        raise describe_failure(error) from None
    finally:
        delivery.cancelled.set()


async def first_piece(delivery: Delivery[Answer], request: Request) -> str | None:
    """The first piece, so that an error before it has its status; None: the answer is empty.

    Raises
    ------
    APIError
        If the answer failed before.
    """
    try:
        piece = await until_disconnect(delivery.next_piece(), request)
        if piece is None:
            await delivery.result()
    except BaseException as error:
        delivery.cancelled.set()
        if isinstance(error, Exception):
            raise describe_failure(error) from None
        raise
    return piece
