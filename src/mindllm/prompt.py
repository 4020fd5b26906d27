"""Conversations -> token ids, places for the fMRI tokens, and which tokens count in the loss."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mindllm.conversation import FMRI, TEMPLATES, Conversation, check_conversation
from mindllm.errors import InputError

IGNORE = -100


@dataclass(frozen=True)
class Prompt:
    """One tokenized conversation of L tokens: `ids` (L,) with `fmri_id` at each place of an fMRI token, `labels` (L,)."""

    ids: np.ndarray
    labels: np.ndarray  # the id where the token counts in the loss, IGNORE elsewhere
    places: np.ndarray  # (N,) positions of the fMRI tokens


class Prompter:
    """Turns conversations into prompts with a tokenizer's own chat template, or a named one where it has none."""

    def __init__(
        self, tokenizer: Any, n_fmri_tokens: int, template: str | None = None, max_length: int | None = None
    ) -> None:
        if template is not None and template not in TEMPLATES:
            raise InputError(f"unknown chat template {template!r}; known: {sorted(TEMPLATES)}.")
        if template is None and not tokenizer.chat_template:
            raise InputError(
                f"the tokenizer of {tokenizer.name_or_path} has no chat template; name one: {sorted(TEMPLATES)}."
            )
        # The placeholder is a token of the tokenizer alone: its place is taken by fMRI tokens, so the model needs no row for it.
        tokenizer.add_special_tokens({"additional_special_tokens": [FMRI]}, replace_extra_special_tokens=False)
        self.tokenizer, self.n_fmri_tokens, self.max_length = tokenizer, n_fmri_tokens, max_length
        self.template = TEMPLATES[template] if template else None
        self.fmri_id = tokenizer.convert_tokens_to_ids(FMRI)

    def spell(self, text: str, length: int) -> list[int]:
        """The first `length` token ids of a text, filled up with line breaks."""
        blank = self.tokenizer("\n", add_special_tokens=False)["input_ids"][-1:]
        return (self.tokenizer(text, add_special_tokens=False)["input_ids"] + blank * length)[:length]

    def render(self, turns: Conversation, generate: bool = False) -> str:
        """The conversation as the text that the language model reads; `generate` opens the next assistant turn."""
        return self.tokenizer.apply_chat_template(
            turns, chat_template=self.template, tokenize=False, add_generation_prompt=generate
        )

    def __call__(self, turns: Conversation, generate: bool = False) -> Prompt:
        """Tokenize one conversation. With `generate`, it must end on a user turn, and the prompt on the opened answer."""
        check_conversation(turns)
        text = self.render(turns, generate)
        spoken = []  # character spans of what the assistant says and its closing mark
        for i, turn in enumerate(turns):
            if turn["role"] == "assistant":
                before, after = self.render(turns[:i], generate=True), self.render(turns[: i + 1])
                if not (after.startswith(before) and text.startswith(after)):
                    raise InputError(
                        f"this chat template rewrites earlier turns, so answers cannot be found in it: {self.render(turns)!r}. Name another template: {sorted(TEMPLATES)}."
                    )
                spoken.append((len(before), len(after.rstrip())))
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids, starts = np.array(encoded["input_ids"]), np.array([start for start, _ in encoded["offset_mapping"]])
        counts = np.zeros(len(ids), bool)
        for start, stop in spoken:
            counts |= (starts >= start) & (starts < stop)
        repeats = np.where(ids == self.fmri_id, self.n_fmri_tokens, 1)
        labels = np.repeat(np.where(counts, ids, IGNORE), repeats)
        ids = np.repeat(ids, repeats)
        if self.max_length and len(ids) > self.max_length:
            raise InputError(
                f"a conversation has {len(ids)} tokens, {self.n_fmri_tokens} of them for the scan, and the language model reads at most {self.max_length}. Shorten it: {text[:200]!r}..."
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
