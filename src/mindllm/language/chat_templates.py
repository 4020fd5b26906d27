"""How a conversation is spelled for a language model: by its tokenizer's chat template, or in a named format."""

import logging
from typing import Any, Protocol

import numpy as np

from mindllm.language.conversation import FMRI_TOKEN, QUESTION, Conversation
from mindllm.utils.errors import InputError

EncodedTurns = tuple[np.ndarray, np.ndarray]
logger = logging.getLogger(__name__)


class ChatTemplate(Protocol):
    """Spells conversations with one tokenizer, to which it has added the placeholder `<fMRI>`.

    question: what is asked where nothing else is.  scan_first: whether the scan stands before a question or after it.
    """

    question: str
    fmri_first: bool

    def encode(self, turns: Conversation, generate: bool) -> EncodedTurns:
        """Token ids (L,), and which of them the assistant says (L,). `generate` opens the next assistant turn."""


class TokenizerChatTemplate:
    """The tokenizer's own template: one text, in which what the assistant says is found by its characters."""

    question, fmri_first = QUESTION, False

    def __init__(self, tokenizer: Any) -> None:
        if not tokenizer.chat_template:
            raise InputError(
                f"the tokenizer of {tokenizer.name_or_path} has no chat template; name one: {sorted(CHAT_TEMPLATES)}."
            )
        # The placeholder is a token of the tokenizer alone: its place is taken by fMRI tokens, so the model needs no row for it.
        tokenizer.add_special_tokens(
            {"additional_special_tokens": [FMRI_TOKEN]}, replace_extra_special_tokens=False
        )
        self.tokenizer = tokenizer

    def render(self, turns: Conversation, generate: bool = False) -> str:
        """The conversation as the text that the language model reads."""
        return self.tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=generate
        )

    def encode(self, turns: Conversation, generate: bool) -> EncodedTurns:
        text = self.render(turns, generate)
        spoken = []  # character spans of what the assistant says and its closing mark
        for i, turn in enumerate(turns):
            if turn["role"] == "assistant":
                before, after = self.render(turns[:i], generate=True), self.render(turns[: i + 1])
                if not (after.startswith(before) and text.startswith(after)):
                    raise InputError(
                        f"this chat template rewrites earlier turns, so answers cannot be found in it: {self.render(turns)!r}. Name another template: {sorted(CHAT_TEMPLATES)}."
                    )
                spoken.append((len(before), len(after.rstrip())))
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        starts = np.array([start for start, _ in encoded["offset_mapping"]])
        counts = np.zeros(len(starts), bool)
        for start, stop in spoken:
            counts |= (starts >= start) & (starts < stop)
        return np.array(encoded["input_ids"]), counts


class VicunaChatTemplate:
    """The format that MindLLM's authors trained Vicuna with: each piece of text is tokenized on its own, then joined.

    A role is spelled as it is after an end-of-sequence token, but the opened answer as a text of its own. An answer's
    end-of-sequence token and the line break after it count in the loss. Conversations are cut at 800 tokens, the scan
    being one of them. Source: github.com/Graph-and-Geometric-Learning/MindLLM, src/utils/chat.py.
    """

    question, fmri_first = "Please describe the fMRI as simply as possible.", True
    system = (
        "You are a helpful agent that decode the brain activity of a person looking at an image."
    )
    max_length = 800

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer, self.end = tokenizer, tokenizer.eos_token
        if not self.end or self.ids(self.end)[:1] != [tokenizer.eos_token_id]:
            raise InputError(
                f"the format `vicuna` needs a tokenizer with an end-of-sequence token; that of {tokenizer.name_or_path} has {self.end!r}."
            )
        # In this order and of this kind, so that they get the authors' ids and split text as theirs do.
        if tokenizer.pad_token is None:
            tokenizer.add_special_tokens({"pad_token": "<pad>"})
        tokenizer.add_tokens([FMRI_TOKEN])

    def ids(self, text: str) -> list[int]:
        """The token ids of a piece of text."""
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def encode(self, turns: Conversation, generate: bool) -> EncodedTurns:
        own = turns[0]["role"] == "system"
        pieces = [
            (
                self.ids(
                    f"{self.tokenizer.bos_token or ''}{turns[0]['content'] if own else self.system}\n\n"
                ),
                False,
            )
        ]
        for turn in turns[own:]:
            answer = turn["role"] == "assistant"
            pieces.append((self.ids(f"{self.end}{turn['role'].upper()}: ")[1:], False))
            pieces.append((self.ids(f"{turn['content']}{self.end * answer}\n"), answer))
        ids = [i for piece, _ in pieces for i in piece]
        counts = [counted for piece, counted in pieces for _ in piece]
        if len(ids) > self.max_length:
            logger.warning(
                "a conversation of %d tokens is cut at %d, as published", len(ids), self.max_length
            )
        opened = self.ids("ASSISTANT: ") if generate else []
        ids, counts = (
            ids[: self.max_length] + opened,
            counts[: self.max_length] + [False] * len(opened),
        )
        return np.array(ids), np.array(counts, bool)


CHAT_TEMPLATES = {"vicuna": VicunaChatTemplate}


def get_chat_template(tokenizer: Any, name: str | None) -> ChatTemplate:
    """The named format, or (None) the tokenizer's own chat template. Raises InputError where there is neither."""
    if name is not None and name not in CHAT_TEMPLATES:
        raise InputError(f"unknown chat template {name!r}; known: {sorted(CHAT_TEMPLATES)}.")
    return CHAT_TEMPLATES[name](tokenizer) if name else TokenizerChatTemplate(tokenizer)
