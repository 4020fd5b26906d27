"""Chat requests: OpenAI's messages to a conversation about one scan, and answers back."""

import time
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Self

from mindllm.language.conversation import FMRI_TOKEN, Conversation
from mindllm.model.modeling import MindLLM
from mindllm.model.streaming import GeneratedText, GenerationOptions
from mindllm.serve.api_errors import APIError
from mindllm.serve.configuration import ServeConfig
from mindllm.serve.schemas import (
    AnswerMessage,
    ChatChunk,
    ChatRequest,
    ChatResponse,
    Choice,
    ChunkChoice,
    Delta,
    FinishReason,
    FMRIPart,
    FMRIReference,
    Message,
    Usage,
)
from mindllm.serve.worker import Answer, Delivery


def find_reference(messages: list[Message]) -> tuple[FMRIReference, int]:
    """The scan that a conversation is about, and the message that it first stands in.

    Raises
    ------
    APIError
        If there is none, there are several, or one stands in a message that is no user's.
    """
    references = [
        (number, part.fmri)
        for number, message in enumerate(messages)
        if not isinstance(message.content, str)
        for part in message.content
        if isinstance(part, FMRIPart)
    ]
    if not references:
        raise APIError(
            400,
            "no message holds a scan; expected a part "
            '{"type": "fmri", "fmri": {"subject": ..., "trial": ...}} or '
            '{"type": "fmri", "fmri": {"scan": ..., "volume": ...}} in a user message.',
            "no_scan",
            "messages",
        )
    first = references[0][1]
    if any(reference != first for _, reference in references):
        raise APIError(
            400,
            "the messages hold several scans; expected one. Ask about each in a conversation of "
            "its own.",
            "several_scans",
            "messages",
        )
    if any(messages[number].role != "user" for number, _ in references):
        raise APIError(
            400, "a scan stands in a message that is no user's.", "misplaced_scan", "messages"
        )
    return first, references[0][0]


def build_turns(model: MindLLM, messages: list[Message], scan_message: int) -> Conversation:
    """Turns of a conversation, with the placeholder of the scan where training had it.

    Parameters
    ----------
    model : MindLLM
    messages : list of Message
    scan_message : int
        Number of the message that the scan stands in.

    Returns
    -------
    Conversation

    Raises
    ------
    APIError
        If a text holds the placeholder of a scan, or the last turn is not the user's.
    """
    turns = []
    for number, message in enumerate(messages):
        text = join_text(message)
        if FMRI_TOKEN in text:
            raise APIError(
                400,
                f"a text holds {FMRI_TOKEN}, the placeholder of a scan; expected a part of type "
                "fmri instead.",
                "placeholder_in_text",
                "messages",
            )
        if number == scan_message:
            text = model.build_conversation(text or None)[0]["content"]
        role = "system" if message.role == "developer" else message.role
        turns.append({"role": role, "content": text})
    if turns[-1]["role"] != "user":
        raise APIError(
            400, "the last message is not the user's: nothing is asked.", "no_question", "messages"
        )
    return turns


def join_text(message: Message) -> str:
    """The words of a message."""
    if isinstance(message.content, str):
        return message.content
    return "\n".join(part.text for part in message.content if not isinstance(part, FMRIPart))


def generation_options(request: ChatRequest, config: ServeConfig) -> GenerationOptions:
    """How the answer is generated.

    Raises
    ------
    APIError
        If a request asks for more tokens than the server allows, or states two limits.
    """
    limits = {
        "max_tokens": request.max_tokens,
        "max_completion_tokens": request.max_completion_tokens,
    }
    stated = {name: limit for name, limit in limits.items() if limit is not None}
    if len(set(stated.values())) > 1:
        raise APIError(
            400,
            "max_tokens and max_completion_tokens differ; give one of them.",
            "conflicting_limits",
            "max_tokens",
        )
    for name, limit in stated.items():
        if limit > config.max_new_tokens:
            raise APIError(
                400,
                f"{name} is {limit}; expected at most {config.max_new_tokens}.",
                "limit_too_large",
                name,
            )
    stop = request.stop or ()
    return GenerationOptions(
        max_new_tokens=next(iter(stated.values()), config.default_new_tokens),
        temperature=request.temperature or 0.0,
        top_p=1.0 if request.top_p is None else request.top_p,
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
        seed=request.seed,
    )


@dataclass(frozen=True)
class Head:
    """What every part of an answer begins with.

    Parameters
    ----------
    id : str
    created : int
        Seconds since 1970.
    model : str
    """

    id: str
    created: int
    model: str

    @classmethod
    def make(cls, model: str) -> Self:
        """A new one."""
        return cls(f"chatcmpl-{uuid.uuid4().hex}", int(time.time()), model)

    def chunk(self, delta: Delta) -> ChatChunk:
        """A chunk of a streamed answer."""
        choice = ChunkChoice(delta=delta)
        return ChatChunk(id=self.id, created=self.created, model=self.model, choices=[choice])


def count_usage(generated: GeneratedText) -> Usage:
    """Tokens of an answer."""
    return Usage(
        prompt_tokens=generated.prompt_tokens,
        completion_tokens=generated.completion_tokens,
        total_tokens=generated.prompt_tokens + generated.completion_tokens,
    )


def make_response(head: Head, answer: Answer) -> ChatResponse:
    """An answer that is not streamed."""
    message = AnswerMessage(content=answer.generated.text)
    is_cut = answer.generated.finish_reason == "length"
    reason: FinishReason = "length" if is_cut else "stop"
    return ChatResponse(
        id=head.id,
        created=head.created,
        model=head.model,
        choices=[Choice(message=message, finish_reason=reason)],
        usage=count_usage(answer.generated),
        mindllm=answer.evidence,
    )


async def stream_events(
    head: Head,
    delivery: Delivery[Answer],
    first: str | None,
    include_usage: bool,
    describe_failure: Callable[[Exception], APIError],
) -> AsyncIterator[str]:
    """Server-sent events of an answer; leaving them cancels it.

    Parameters
    ----------
    head : Head
    delivery : Delivery of Answer
    first : str or None
        The piece that was waited for already; None: there was none.
    include_usage : bool
    describe_failure : callable
        Makes an error of the API of any error.

    Yields
    ------
    str
    """
    try:
        yield event(head.chunk(Delta(role="assistant", content="")))
        piece = first
        while piece is not None:
            yield event(head.chunk(Delta(content=piece)))
            piece = await delivery.next_piece()
        try:
            answer = await delivery.result()
        except Exception as error:
            # The status was sent: what went wrong comes as an event, as OpenAI's clients expect.
            yield f"data: {bytes(describe_failure(error).response().body).decode()}\n\n"
            return
        last = head.chunk(Delta())
        last.choices[0].finish_reason = make_response(head, answer).choices[0].finish_reason
        last.mindllm = answer.evidence
        yield event(last)
        if include_usage:
            usage = head.chunk(Delta())
            usage.choices, usage.usage = [], count_usage(answer.generated)
            yield event(usage)
        yield "data: [DONE]\n\n"
    finally:
        delivery.cancelled.set()


def event(chunk: ChatChunk) -> str:
    """A server-sent event."""
    return f"data: {chunk.model_dump_json()}\n\n"
