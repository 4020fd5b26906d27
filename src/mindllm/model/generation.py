"""Token ids of open-ended generation from fMRI tokens, whole or streamed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import TextStreamer

from mindllm.language.conversation import Conversation

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
) -> Tensor:
    """Token ids (n, L) of the generated turns, padded behind the end of the shorter ones."""
    prompts = [model.processor(turns, generate=True) for turns in conversations]
    batch = model.processor.pad(prompts, left=True).to(model.device)
    inputs = model.prepare_inputs_embeds(
        batch["input_ids"], batch["fmri_token_positions"], fmri_tokens
    )
    # Sampling settings that come with a language model would warn under greedy decoding.
    greedy = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    settings = {"max_new_tokens": MAX_NEW_TOKENS, "pad_token_id": model.language_model.pad_id}
    settings |= ({} if options.get("do_sample") else greedy) | options
    return model.language_model.model.generate(
        inputs_embeds=inputs,
        attention_mask=batch["attention_mask"],
        streamer=streamer,
        **settings,
    )
