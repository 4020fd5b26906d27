"""Conversations -> token ids, places for the fMRI tokens, and which tokens count in the loss."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mindllm.language.chat_templates import get_chat_template
from mindllm.language.conversation import FMRI_TOKEN, Conversation, check_conversation
from mindllm.utils.errors import InputError

IGNORE_INDEX = -100


@dataclass(frozen=True)
class EncodedPrompt:
    """One tokenized conversation of L tokens: `ids` (L,) with `fmri_id` at each place of an fMRI token, `labels` (L,)."""

    input_ids: np.ndarray
    labels: np.ndarray  # the id where the token counts in the loss, IGNORE elsewhere
    fmri_token_positions: np.ndarray  # (N,) positions of the fMRI tokens


class MindLLMProcessor:
    """Turns conversations into prompts, in a tokenizer's own chat template or a named format; with 0 fMRI tokens, without a scan."""

    def __init__(
        self,
        tokenizer: Any,
        num_fmri_tokens: int,
        chat_template: str | None = None,
        max_length: int | None = None,
    ) -> None:
        self.chat_template = get_chat_template(tokenizer, chat_template)
        self.tokenizer, self.num_fmri_tokens, self.max_length = (
            tokenizer,
            num_fmri_tokens,
            max_length,
        )
        self.fmri_token_id = tokenizer.convert_tokens_to_ids(FMRI_TOKEN)

    def encode_text(self, text: str, length: int) -> list[int]:
        """The first `length` token ids of a text, filled up with line breaks."""
        blank = self.tokenizer("\n", add_special_tokens=False)["input_ids"][-1:]
        return (self.tokenizer(text, add_special_tokens=False)["input_ids"] + blank * length)[
            :length
        ]

    def __call__(self, turns: Conversation, generate: bool = False) -> EncodedPrompt:
        """Tokenize one conversation. With `generate`, it must end on a user turn, and the prompt on the opened answer."""
        check_conversation(turns)
        ids, counts = self.chat_template.encode(turns, generate)
        if not (ids == self.fmri_token_id).any():
            raise InputError(
                f"a conversation was cut before its {FMRI_TOKEN}. Shorten what stands before it: {turns!r}"
            )
        repeats = np.where(ids == self.fmri_token_id, self.num_fmri_tokens, 1)
        labels = np.repeat(np.where(counts, ids, IGNORE_INDEX), repeats)
        ids = np.repeat(ids, repeats)
        if self.max_length and len(ids) > self.max_length:
            raise InputError(
                f"a conversation has {len(ids)} tokens, {self.num_fmri_tokens} of them for the scan, and the language model reads at most {self.max_length}. Shorten it: {str(turns)[:200]}..."
            )
        return EncodedPrompt(ids, labels, np.flatnonzero(ids == self.fmri_token_id))


def collate(
    prompts: Sequence[EncodedPrompt], pad_id: int, *, left: bool = False
) -> dict[str, np.ndarray]:
    """Pad P prompts to one length L: `ids`, `labels`, `attention` (P, L) and `places` (P, N). `left` pads on the left, to generate."""
    longest = max(len(p.input_ids) for p in prompts)
    out = {
        "ids": np.full((len(prompts), longest), pad_id),
        "labels": np.full((len(prompts), longest), IGNORE_INDEX),
        "attention": np.zeros((len(prompts), longest), int),
    }
    places = []
    for row, prompt in enumerate(prompts):
        start = longest - len(prompt.input_ids) if left else 0
        span = slice(start, start + len(prompt.input_ids))
        out["ids"][row, span], out["labels"][row, span], out["attention"][row, span] = (
            prompt.input_ids,
            prompt.labels,
            1,
        )
        places.append(prompt.fmri_token_positions + start)
    return out | {"places": np.stack(places)}
