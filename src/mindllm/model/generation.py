"""Open-ended generation from fMRI tokens, whole or streamed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import TextStreamer

from mindllm.language.conversation import FMRI_TOKEN, Conversation

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


def generate(
    model: MindLLM,
    fmri_tokens: Tensor,
    conversations: Sequence[Conversation],
    on_text: Callable[[str], None] | None = None,
    **options: Any,
) -> list[str]:
    """Generate the next assistant turn of each conversation.

    Parameters
    ----------
    model : MindLLM
    fmri_tokens : Tensor of shape (n, num_fmri_tokens, token_dim)
    conversations : sequence of Conversation
        One per trial, each ending on a user turn.
    on_text : callable, optional
        Receives text as it is generated, for a single trial.
    **options
        Arguments of transformers' ``generate``; greedy, at most 48 new tokens by default.

    Returns
    -------
    list of str
        One text per conversation.
    """
    tokenizer = model.language_model.tokenizer
    streamer = CallbackStreamer(tokenizer, on_text) if on_text else None
    ids = generate_ids(model, fmri_tokens, conversations, streamer, **options)
    texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
    return [text.replace(FMRI_TOKEN, "").strip() for text in texts]


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
