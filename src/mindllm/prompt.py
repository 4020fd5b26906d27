"""Conversations -> token ids, places for the fMRI tokens, and which tokens count in the loss."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mindllm.errors import InputError

FMRI = "<fMRI>"
QUESTION = "What is this person seeing?"
IGNORE = -100

Conversation = list[dict[str, str]]

# Vicuna v1.1's format, for tokenizers that carry no template of their own (a base Llama, for one).
TEMPLATES = {
    "vicuna": (
        "{{ bos_token }}{% if messages[0]['role'] != 'system' %}A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions. {% endif %}"
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'] }} {% elif m['role'] == 'user' %}USER: {{ m['content'] }} "
        "{% else %}ASSISTANT: {{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
    ),
}


@dataclass(frozen=True)
class Prompt:
    """One tokenized conversation of L tokens: `ids` (L,) with `fmri_id` at each place of an fMRI token, `labels` (L,)."""

    ids: np.ndarray
    labels: np.ndarray  # the id where the token counts in the loss, IGNORE elsewhere
    places: np.ndarray  # (N,) positions of the fMRI tokens


def ask(question: str = QUESTION, answer: str | None = None) -> Conversation:
    """A conversation of one question about a scan; `<fMRI>` is put before the question where it is not in it."""
    question = question if FMRI in question else f"{FMRI}\n{question}"
    turns = [{"role": "user", "content": question}]
    return turns if answer is None else [*turns, {"role": "assistant", "content": answer}]


def check_conversation(turns: Conversation) -> None:
    """Raise InputError unless roles alternate user, assistant (after an optional system turn) and `<fMRI>` stands once, in a user turn."""
    roles = [turn.get("role") for turn in turns]
    spoken = roles[1:] if roles[:1] == ["system"] else roles
    if not spoken or any(role != ("user", "assistant")[i % 2] for i, role in enumerate(spoken)):
        raise InputError(
            f"a conversation alternates user and assistant turns, after at most one system turn; found the roles {roles}."
        )
    places = [turn["role"] for turn in turns for _ in range(turn["content"].count(FMRI))]
    if places != ["user"]:
        raise InputError(
            f"{FMRI} must stand exactly once, in a user turn; found it {len(places)} times{f' (in {places})' if places else ''}: {turns!r}"
        )


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

    def render(self, turns: Conversation, generate: bool = False) -> str:
        """The conversation as the text that the language model reads; `generate` opens the next assistant turn."""
        return self.tokenizer.apply_chat_template(
            turns, chat_template=self.template, tokenize=False, add_generation_prompt=generate
        )

    def __call__(self, turns: Conversation, generate: bool = False) -> Prompt:
        """Tokenize one conversation. With `generate`, it must end on a user turn, and the prompt on the opened answer."""
        check_conversation(turns)
        text = self.render(turns, generate)
        spoken = []  # character spans of what the assistant says, its closing mark included
        for i, turn in enumerate(turns):
            if turn["role"] == "assistant":
                before, after = self.render(turns[:i], generate=True), self.render(turns[: i + 1])
                if not (after.startswith(before) and text.startswith(after)):
                    raise InputError(
                        f"this chat template rewrites earlier turns, so answers cannot be found in it: {self.render(turns)!r}. Name another template: {sorted(TEMPLATES)}."
                    )
                spoken.append((len(before), len(after)))
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
