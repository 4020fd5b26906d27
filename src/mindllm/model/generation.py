"""Token ids of open-ended generation from fMRI tokens, whole or streamed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import TextStreamer

from mindllm.language.conversation import Conversation
from mindllm.model.processing import EncodedPrompt

if TYPE_CHECKING:
    from mindllm.model.modeling import MindLLM

MAX_NEW_TOKENS = 48


class CallbackStreamer(TextStreamer):
    """Passes each finished piece of text to a function instead of printing it."""

    def __init__(self, tokenizer: Any, on_text: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_special_tokens=True)
        self.on_text = on_text

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self.on_text(text)


@torch.no_grad()
def generate_ids(
    model: MindLLM,
    fmri_tokens: Tensor,
    conversations: Sequence[Conversation],
    streamer: CallbackStreamer | None = None,
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
    streamer: CallbackStreamer | None,
    options: Mapping[str, Any],
) -> list[list[int]]:
    """Token ids that follow each prompt, up to what ends a turn."""
    batch = model.processor.pad(prompts, left=True).to(model.device)
    inputs = model.prepare_inputs_embeds(
        batch["input_ids"], batch["fmri_token_positions"], fmri_tokens
    )
    # Sampling settings that come with a language model would warn under greedy decoding.
    greedy = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    settings = {"max_new_tokens": MAX_NEW_TOKENS, "pad_token_id": model.language_model.pad_id}
    settings |= ({} if options.get("do_sample") else greedy) | dict(options)
    ids = model.language_model.model.generate(
        inputs_embeds=inputs,
        attention_mask=batch["attention_mask"],
        streamer=streamer,
        **settings,
    )
    return ids.tolist()
