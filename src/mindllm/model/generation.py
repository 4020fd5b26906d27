"""Token ids of open-ended generation from fMRI tokens, whole or streamed."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import TextStreamer
from transformers.generation.streamers import BaseStreamer

from mindllm.language.chat_templates import strip_thinking
from mindllm.language.conversation import FMRI_TOKEN, Conversation
from mindllm.model.candidates import count_prefix_tokens
from mindllm.model.logits import read_prefix, unwindowed_length
from mindllm.model.processing import EncodedPrompt
from mindllm.model.sampling import MAX_NEW_TOKENS, FirstRows, guide_settings
from mindllm.utils.errors import InputError

if TYPE_CHECKING:
    from mindllm.model.modeling import MindLLM

logger = logging.getLogger(__name__)


class CallbackStreamer(TextStreamer):
    """Passes each finished piece of text to a function instead of printing it."""

    def __init__(
        self, tokenizer: Any, on_text: Callable[[str], None], end_token_ids: Sequence[int] = ()
    ) -> None:
        super().__init__(tokenizer, skip_special_tokens=True)
        self.on_text, self.end_token_ids = on_text, set(end_token_ids)

    def put(self, value: Tensor) -> None:
        if not self.end_token_ids.intersection(value.flatten().tolist()):
            super().put(value)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self.on_text(text)


def generate_texts(
    model: MindLLM,
    fmri_tokens: Tensor,
    conversations: Sequence[Conversation],
    on_text: Callable[[str], None] | None = None,
    streamer: BaseStreamer | None = None,
    **options: Any,
) -> list[str]:
    """Text of the generated turns; see `MindLLM.generate`."""
    tokenizer = model.language_model.tokenizer
    check_streaming(len(conversations), on_text, streamer)
    if on_text:
        streamer = CallbackStreamer(tokenizer, on_text, end_token_ids(model))
    texts = []
    for ids in generate_ids(model, fmri_tokens, conversations, streamer, **options):
        text = visible_text(tokenizer.decode(ids, skip_special_tokens=True))
        texts.append(clean_text(text, model.processor.chat_template.stop_strings))
    return texts


def check_streaming(
    n_conversations: int, on_text: Callable[[str], None] | None, streamer: BaseStreamer | None
) -> None:
    """Refuse two ways to stream, and to stream several conversations as one text."""
    if on_text and streamer:
        raise InputError("on_text and streamer both take text as it is generated: pass one.")
    if (on_text or streamer) and n_conversations != 1:
        raise InputError(
            f"text of {n_conversations} conversations cannot be streamed as one: pass a single "
            "conversation (of `decode`: a single trial), or use "
            "`mindllm.model.streaming.answer_requests`."
        )


def visible_text(text: str) -> str:
    """A decoded text without thoughts and placeholders."""
    return strip_thinking(text).replace(FMRI_TOKEN, "")


def clean_text(text: str, stop_strings: Sequence[str]) -> str:
    """A text up to the first of some strings, without blanks around it.

    Examples
    --------
    >>> clean_text(" a dog\\n###", ["###"])
    'a dog'
    """
    for mark in stop_strings:
        text = text.partition(mark)[0]
    return text.strip()


@torch.no_grad()
def generate_ids(
    model: MindLLM,
    fmri_tokens: Tensor,
    conversations: Sequence[Conversation],
    streamer: BaseStreamer | None = None,
    **options: Any,
) -> list[list[int]]:
    """Token ids of the generated turns, each without what ends it.

    Prompts of one length are continued at once, or all, where the language model can do so.
    """
    prompts = [model.processor(turns, generate=True) for turns in conversations]
    ids: list[list[int]] = [[]] * len(prompts)
    for rows in group_prompts(prompts, model.language_model.shortcuts.left_padding):
        part = [prompts[row] for row in rows]
        generated = continue_prompts(model, fmri_tokens[rows], part, streamer, options)
        for row, sequence in zip(rows, generated, strict=True):
            ids[row] = sequence
    return ids


def group_prompts(prompts: Sequence[EncodedPrompt], pad: bool) -> list[list[int]]:
    """Indices of prompts that are continued at once: all, or those of one length."""
    groups: dict[int, list[int]] = {}
    for row, prompt in enumerate(prompts):
        groups.setdefault(0 if pad else len(prompt.input_ids), []).append(row)
    return list(groups.values())


def continue_prompts(
    model: MindLLM,
    fmri_tokens: Tensor,
    prompts: Sequence[EncodedPrompt],
    streamer: BaseStreamer | None,
    options: Mapping[str, Any],
) -> list[list[int]]:
    """Token ids that follow each prompt, up to what ends a turn.

    The option `guidance_scale` is a number, or one per prompt.
    """
    template, language_model = model.processor.chat_template, model.language_model
    settings = {"max_new_tokens": MAX_NEW_TOKENS, "do_sample": False, **options}
    longest = max(len(p.input_ids) for p in prompts)
    settings["max_new_tokens"] = limit_new_tokens(
        longest, settings["max_new_tokens"], language_model.max_length
    )
    if template.stop_strings:
        tokenizer = language_model.tokenizer
        settings = {"stop_strings": template.stop_strings, "tokenizer": tokenizer} | settings
    n_rows = len(prompts)
    scales = check_guidance(settings.pop("guidance_scale", None), n_rows)
    if any(scale != 1 for scale in scales):
        settings, guided = guide_settings(settings, scales, model.device)
        null_tokens = model.null_tokens.expand(len(guided), -1, -1)
        fmri_tokens = torch.cat([fmri_tokens, null_tokens.to(fmri_tokens)])
        prompts = [*prompts, *(prompts[row] for row in guided)]
        streamer = FirstRows(streamer, n_rows) if streamer else None
    inputs = read_prompts(model, fmri_tokens, prompts, longest + settings["max_new_tokens"])
    ids = language_model.model.generate(
        streamer=streamer,
        **inputs,
        **{"eos_token_id": end_token_ids(model), "pad_token_id": language_model.pad_id} | settings,
    )
    ends = set(end_token_ids(model))
    return [list(takewhile(lambda token: token not in ends, row)) for row in ids[:n_rows].tolist()]


def check_guidance(guidance_scale: float | Sequence[float] | None, n_rows: int) -> list[float]:
    """Guidance scale of each row; 1 is no guidance.

    Raises
    ------
    InputError
        If a scale is negative or not finite.
    """
    scales = guidance_scale if isinstance(guidance_scale, Sequence) else [guidance_scale] * n_rows
    numbers = [1.0 if scale is None else float(scale) for scale in scales]
    for number in numbers:
        if not 0 <= number < math.inf:
            raise InputError(
                f"guidance_scale={number}: expected a number from 0; 1 is no guidance, 2 counts "
                "twice what the scan adds to the null tokens."
            )
    return numbers


def read_prompts(
    model: MindLLM, fmri_tokens: Tensor, prompts: Sequence[EncodedPrompt], longest: int
) -> dict[str, object]:
    """Embeddings and mask of padded prompts, and a cache of what they begin with together.

    `longest` is the number of tokens of the longest prompt and of what is generated.
    """
    language_model = model.language_model
    limit, shared = unwindowed_length(language_model.model), 0
    if language_model.shortcuts.generation_prefix and (limit is None or longest <= limit):
        shared = count_prefix_tokens(model, prompts, fmri_tokens)
    batch = model.processor.pad(prompts, pad_after=shared).to(model.device)
    embeds = model.prepare_inputs_embeds(
        batch["input_ids"], batch["fmri_token_positions"], fmri_tokens
    )
    inputs = {"inputs_embeds": embeds, "attention_mask": batch["attention_mask"]}
    if shared:
        inputs["past_key_values"] = read_prefix(language_model.model, embeds, shared)
    return inputs


def find_end_token_ids(model: Any) -> list[int]:
    """Tokens that end a text, by the model's configuration and that of its generation."""
    configs = (model.config, model.config.get_text_config(decoder=True), model.generation_config)
    values = [getattr(config, "eos_token_id", None) for config in configs]
    ids = [value if isinstance(value, list) else [value] for value in values]
    return sorted({i for group in ids for i in group if isinstance(i, int)})


def end_token_ids(model: MindLLM) -> list[int]:
    """Tokens that end an answer: the language model's, and those that close a turn."""
    closing = model.processor.chat_template.end_token_ids
    return sorted({*model.language_model.end_token_ids, *closing})


def limit_new_tokens(prompt_length: int, max_new_tokens: int, max_length: int | None) -> int:
    """Tokens that can be generated within the positions of the language model."""
    if max_length is None or prompt_length + max_new_tokens <= max_length:
        return max_new_tokens
    if prompt_length >= max_length:
        raise InputError(
            f"a prompt has {prompt_length} tokens, and the language model reads and writes at "
            f"most {max_length}: no room for an answer. Shorten the question."
        )
    logger.warning(
        "answers are cut at %d tokens instead of %d: the prompt has %d, and the language model "
        "reads and writes at most %d",
        max_length - prompt_length,
        max_new_tokens,
        prompt_length,
        max_length,
    )
    return max_length - prompt_length
