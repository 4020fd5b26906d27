"""Answers to requests that come together: streamed, stopped, counted, each by its own options.

Several requests are answered in one batch of the language model. Every row keeps its own options,
random state, stop strings and length, so an answer does not depend on what it shares a batch with.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Literal, Self

import torch
from torch import Tensor
from transformers import LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from mindllm.language.conversation import FMRI_TOKEN, Conversation
from mindllm.model.generation import (
    clean_text,
    continue_prompts,
    end_token_ids,
    group_prompts,
    limit_new_tokens,
    visible_text,
)
from mindllm.model.processing import EncodedPrompt
from mindllm.model.sampling import GenerationOptions, RowSampler
from mindllm.utils.errors import InputError

if TYPE_CHECKING:
    from mindllm.model.modeling import MindLLM

FinishReason = Literal["stop", "length", "cancelled"]
INCOMPLETE = "\ufffd"  # what bytes of an unfinished character are decoded to
OPENED_MARKS = ("<think>", FMRI_TOKEN)  # which are left out of a text


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """A conversation about one scan that is to be continued.

    Parameters
    ----------
    fmri_tokens : Tensor of shape (num_fmri_tokens, token_dim)
        As `MindLLM.encode` gives them for a trial.
    conversation : Conversation
        Ends on a user turn.
    options : GenerationOptions
    on_text : callable, optional
        Called with each piece of text as it is generated, in the thread that generates. An error
        that it raises ends the whole batch.
    cancelled : threading.Event
        Once it is set, the answer ends with the next token.
    """

    fmri_tokens: Tensor
    conversation: Conversation
    options: GenerationOptions = field(default_factory=GenerationOptions)
    on_text: Callable[[str], None] | None = None
    cancelled: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True, slots=True)
class GeneratedText:
    """An answer, and what it took.

    Parameters
    ----------
    text : str
        As `MindLLM.generate` gives it.
    prompt_tokens : int
        Tokens of the conversation, the fMRI tokens included.
    completion_tokens : int
        Tokens that were generated, with the one that ended the answer.
    finish_reason : {"stop", "length", "cancelled"}
        "stop": by a token or text that ends an answer; "length": `max_new_tokens` or the language
        model's positions were used up.
    """

    text: str
    prompt_tokens: int
    completion_tokens: int
    finish_reason: FinishReason


def answer_requests(model: MindLLM, requests: Sequence[GenerationRequest]) -> list[GeneratedText]:
    """Answer requests about different scans together.

    Prompts of other lengths are padded on the left where the language model can do so, else those
    of one length are answered together. Call it from one thread at a time or from several: no
    random state is shared.

    Parameters
    ----------
    model : MindLLM
    requests : sequence of GenerationRequest

    Returns
    -------
    list of GeneratedText
        In the order of the requests.

    Raises
    ------
    InputError
        If fMRI tokens have another shape than the model's, or a conversation is malformed or too
        long.

    Examples
    --------
    >>> options = GenerationOptions(max_new_tokens=8)
    >>> requests = [
    ...     GenerationRequest(tokens, model.build_conversation("What is it?"), options)
    ...     for tokens in model.encode(betas, masker)
    ... ]  # doctest: +SKIP
    >>> answer_requests(model, requests)[0]  # doctest: +SKIP
    GeneratedText(text='a dog', prompt_tokens=43, completion_tokens=3, finish_reason='stop')
    """
    check_fmri_tokens(model, requests)
    prompts = [model.processor(request.conversation, generate=True) for request in requests]
    texts = [
        RunningText(model, request, len(prompt.input_ids))
        for request, prompt in zip(requests, prompts, strict=True)
    ]
    for rows in group_requests(model, prompts, texts):
        continue_texts(model, [prompts[row] for row in rows], [texts[row] for row in rows])
    return [text.result(len(prompt.input_ids)) for text, prompt in zip(texts, prompts, strict=True)]


def check_fmri_tokens(model: MindLLM, requests: Sequence[GenerationRequest]) -> None:
    """Refuse fMRI tokens of another shape than the model's."""
    expected = tuple(model.null_tokens.shape)
    for number, request in enumerate(requests):
        if tuple(request.fmri_tokens.shape) != expected:
            raise InputError(
                f"request {number}: fMRI tokens of shape {tuple(request.fmri_tokens.shape)}; "
                f"expected {expected} for one trial. Pass one row of model.encode."
            )


def group_requests(
    model: MindLLM, prompts: Sequence[EncodedPrompt], texts: Sequence[RunningText]
) -> list[list[int]]:
    """Indices of requests that are answered at once.

    A batch needs the positions of its longest prompt and longest answer. Where the language model
    has fewer, its requests are answered one by one, so that none is cut for another's sake.
    """
    max_length = model.language_model.max_length
    groups = []
    for rows in group_prompts(prompts, model.language_model.shortcuts.left_padding):
        longest = max(len(prompts[row].input_ids) for row in rows)
        needed = longest + max(texts[row].max_new_tokens for row in rows)
        fits = max_length is None or needed <= max_length
        groups += [rows] if fits else [[row] for row in rows]
    return groups


@torch.no_grad()
def continue_texts(
    model: MindLLM, prompts: Sequence[EncodedPrompt], texts: Sequence[RunningText]
) -> None:
    """Generate until every text of a batch is finished."""
    tokens = torch.stack([text.request.fmri_tokens.to(model.device) for text in texts])
    options = [text.request.options for text in texts]
    settings = {
        "max_new_tokens": max(text.max_new_tokens for text in texts),
        "stopping_criteria": StoppingCriteriaList([RowCriteria(texts)]),
        "logits_processor": LogitsProcessorList([RowSampler(options, model.device)]),
        "guidance_scale": [row.guidance_scale for row in options],
    }
    continue_prompts(model, tokens, prompts, None, settings)


class RunningText:
    """One answer while its tokens come, and the pieces of it that no later token can change.

    Parameters
    ----------
    model : MindLLM
    request : GenerationRequest
    prompt_length : int
        Tokens of the prompt.

    Attributes
    ----------
    max_new_tokens : int
        Within the positions of the language model.
    finish_reason : str or None
        None: not finished.
    """

    def __init__(self, model: MindLLM, request: GenerationRequest, prompt_length: int) -> None:
        self.request, self.tokenizer = request, model.language_model.tokenizer
        self.end_token_ids = set(end_token_ids(model))
        self.stop_strings = (*model.processor.chat_template.stop_strings, *request.options.stop)
        self.max_new_tokens = limit_new_tokens(
            prompt_length, request.options.max_new_tokens, model.language_model.max_length
        )
        self.finish_reason: FinishReason | None = None
        self.text = ""
        self._ids: list[int] = []
        self._streamed = ""

    def append(self, token: int) -> None:
        """Take the next token, and pass on the text that it completes."""
        self._ids.append(token)
        is_end = token in self.end_token_ids
        kept = self._ids[:-1] if is_end else self._ids
        visible = visible_text(self.tokenizer.decode(kept, skip_special_tokens=True))
        if is_end or any(mark in visible for mark in self.stop_strings):
            self.finish_reason = "stop"
        elif len(self._ids) >= self.max_new_tokens:
            self.finish_reason = "length"
        elif self.request.cancelled.is_set():
            self.finish_reason = "cancelled"
        self.text = clean_text(visible, self.stop_strings)
        self._stream(self.text if self.finish_reason else self._settled(visible))

    def _settled(self, visible: str) -> str:
        """The text without an end that later tokens may complete to what is left out."""
        marks = (*self.stop_strings, *OPENED_MARKS, INCOMPLETE)
        settled = visible.rstrip(INCOMPLETE)
        withheld = max(overlap(settled, mark) for mark in marks)
        return clean_text(settled[: len(settled) - withheld], ())

    def _stream(self, text: str) -> None:
        """Pass on what is new in a text that continues the streamed one."""
        if text.startswith(self._streamed) and text != self._streamed:
            piece, self._streamed = text[len(self._streamed) :], text
            if self.request.on_text is not None:
                self.request.on_text(piece)

    def result(self, prompt_tokens: int) -> GeneratedText:
        """The finished answer."""
        assert self.finish_reason is not None
        return GeneratedText(self.text, prompt_tokens, len(self._ids), self.finish_reason)


def overlap(text: str, mark: str) -> int:
    """Number of characters at the end of a text that a mark begins with, fewer than all.

    Examples
    --------
    >>> overlap("a dog<thi", "<think>")
    4
    """
    sizes = range(min(len(text), len(mark) - 1), 0, -1)
    return next((size for size in sizes if text.endswith(mark[:size])), 0)


class RowCriteria(StoppingCriteria):
    """Gives each row's token to its text, and ends the rows that are finished."""

    def __init__(self, texts: Sequence[RunningText]) -> None:
        self.texts = texts

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        for text, token in zip(self.texts, input_ids[:, -1].tolist(), strict=True):
            if text.finish_reason is None:
                text.append(token)
        is_done = [text.finish_reason is not None for text in self.texts]
        return torch.tensor(is_done, device=input_ids.device)


class TextStream:
    """One answer that a thread generates: iterate over its pieces, then read `result`.

    Leaving the `with` block cancels what is not finished.

    Parameters
    ----------
    model : MindLLM
    fmri_tokens : Tensor of shape (num_fmri_tokens, token_dim)
    conversation : Conversation
        Ends on a user turn.
    options : GenerationOptions, optional
        Greedy by default.

    Examples
    --------
    >>> conversation = model.build_conversation("What is it?")  # doctest: +SKIP
    >>> with TextStream(model, fmri_tokens, conversation) as stream:  # doctest: +SKIP
    ...     for piece in stream:
    ...         print(piece, end="")
    >>> stream.result.finish_reason  # doctest: +SKIP
    'stop'
    """

    def __init__(
        self,
        model: MindLLM,
        fmri_tokens: Tensor,
        conversation: Conversation,
        options: GenerationOptions | None = None,
    ) -> None:
        self._pieces: SimpleQueue[str | None] = SimpleQueue()
        self._request = GenerationRequest(
            fmri_tokens, conversation, options or GenerationOptions(), self._pieces.put
        )
        self._future: Future[GeneratedText] = Future()
        thread = threading.Thread(target=self._generate, args=(model,), daemon=True)
        thread.start()

    def _generate(self, model: MindLLM) -> None:
        """Answer the request; an error is raised where the stream is read."""
        try:
            (answer,) = answer_requests(model, [self._request])
        except BaseException as error:
            self._future.set_exception(error)
        else:
            self._future.set_result(answer)
        finally:
            self._pieces.put(None)

    def __iter__(self) -> Iterator[str]:
        while (piece := self._pieces.get()) is not None:
            yield piece
        self._pieces.put(None)  # a second iteration ends at once
        self._future.result()

    @property
    def result(self) -> GeneratedText:
        """The answer, once it is finished; raises what ended the generation otherwise."""
        return self._future.result()

    def cancel(self) -> None:
        """End the answer with the next token."""
        self._request.cancelled.set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.cancel()
        self._future.exception()  # wait for the thread's last use of the model
