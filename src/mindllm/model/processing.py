"""Conversations -> token ids, places for the fMRI tokens, and which tokens count in the loss."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mindllm.language.chat_templates import choose_format
from mindllm.language.conversation import FMRI, Conversation, check_conversation
from mindllm.utils.errors import InputError

IGNORE = -100


@dataclass(frozen=True)
class Prompt:
    """One tokenized conversation of L tokens: `ids` (L,) with `fmri_id` at each place of an fMRI token, `labels` (L,)."""

    ids: np.ndarray
    labels: np.ndarray  # the id where the token counts in the loss, IGNORE elsewhere
    places: np.ndarray  # (N,) positions of the fMRI tokens


class Prompter:
    """Turns conversations into prompts, in a tokenizer's own chat template or a named format; with 0 fMRI tokens, without a scan."""

    def __init__(
        self, tokenizer: Any, n_fmri_tokens: int, template: str | None = None, max_length: int | None = None
    ) -> None:
        self.format = choose_format(tokenizer, template)
        self.tokenizer, self.n_fmri_tokens, self.max_length = tokenizer, n_fmri_tokens, max_length
        self.fmri_id = tokenizer.convert_tokens_to_ids(FMRI)

    def spell(self, text: str, length: int) -> list[int]:
        """The first `length` token ids of a text, filled up with line breaks."""
        blank = self.tokenizer("\n", add_special_tokens=False)["input_ids"][-1:]
        return (self.tokenizer(text, add_special_tokens=False)["input_ids"] + blank * length)[:length]

    def __call__(self, turns: Conversation, generate: bool = False) -> Prompt:
        """Tokenize one conversation. With `generate`, it must end on a user turn, and the prompt on the opened answer."""
        check_conversation(turns)
        ids, counts = self.format.spell(turns, generate)
        if not (ids == self.fmri_id).any():
            raise InputError(f"a conversation was cut before its {FMRI}. Shorten what stands before it: {turns!r}")
        repeats = np.where(ids == self.fmri_id, self.n_fmri_tokens, 1)
        labels = np.repeat(np.where(counts, ids, IGNORE), repeats)
        ids = np.repeat(ids, repeats)
        if self.max_length and len(ids) > self.max_length:
            raise InputError(
                f"a conversation has {len(ids)} tokens, {self.n_fmri_tokens} of them for the scan, and the language model reads at most {self.max_length}. Shorten it: {str(turns)[:200]}..."
            )
        return Prompt(ids, labels, np.flatnonzero(ids == self.fmri_id))


def collate(prompts: Sequence[Prompt], pad_id: int, *, left: bool = False) -> dict[str, np.ndarray]:
    """Pad P prompts to one length L: `ids`, `labels`, `attention` (P, L) and `places` (P, N). `left` pads on the left, to generate."""
    longest = max(len(p.ids) for p in prompts)
    out = {
        "ids": np.full((len(prompts), longest), pad_id),
        "labels": np.full((len(prompts), longest), IGNORE),
        "attention": np.zeros((len(prompts), longest), int),
    }
    places = []
    for row, prompt in enumerate(prompts):
        start = longest - len(prompt.ids) if left else 0
        span = slice(start, start + len(prompt.ids))
        out["ids"][row, span], out["labels"][row, span], out["attention"][row, span] = prompt.ids, prompt.labels, 1
        places.append(prompt.places + start)
    return out | {"places": np.stack(places)}
