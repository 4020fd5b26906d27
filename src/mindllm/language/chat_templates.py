"""Conversations as token ids: by a tokenizer's own chat template, or in a named format."""

import logging
from typing import Any, Protocol

import numpy as np

from mindllm.language.conversation import FMRI_TOKEN, QUESTION, Conversation
from mindllm.utils.errors import InputError

EncodedTurns = tuple[np.ndarray, np.ndarray]
logger = logging.getLogger(__name__)


class ChatTemplate(Protocol):
    """Encodes conversations with one tokenizer, to which it has added the placeholder `<fMRI>`.

    Attributes
    ----------
    question : str
        Question to ask by default.
    fmri_first : bool
        Whether the placeholder stands before a question or after it.
    """

    question: str
    fmri_first: bool

    def encode(self, turns: Conversation, generate: bool) -> EncodedTurns:
        """Token ids (L,) int64, and which of them are an assistant's, (L,) bool.

        `generate` opens the next assistant turn.
        """


class TokenizerChatTemplate:
    """The tokenizer's own template: one text, in which the assistant's characters are located.

    Parameters
    ----------
    tokenizer : transformers.PreTrainedTokenizerBase
        With a chat template; the placeholder is added to it.

    Raises
    ------
    InputError
        If the tokenizer has no chat template.
    """

    question, fmri_first = QUESTION, False

    def __init__(self, tokenizer: Any) -> None:
        if not tokenizer.chat_template:
            raise InputError(
                f"the tokenizer of {tokenizer.name_or_path} has no chat template; "
                f"name one: {sorted(CHAT_TEMPLATES)}."
            )
        # fMRI tokens replace the placeholder, so the model needs no embedding for it.
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
        """Token ids (L,) int64, and which of them are an assistant's, (L,) bool.

        Raises InputError if the template rewrites earlier turns.
        """
        text = self.render(turns, generate)
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        starts = np.array([start for start, _ in encoded["offset_mapping"]])
        is_answer = np.zeros(len(starts), bool)
        for start, stop in self.locate_answers(turns, text):
            is_answer |= (starts >= start) & (starts < stop)
        return np.array(encoded["input_ids"]), is_answer

    def locate_answers(self, turns: Conversation, text: str) -> list[tuple[int, int]]:
        """Character spans in `text` of the assistant's turns, each with its closing mark."""
        spans = []
        for i, turn in enumerate(turns):
            if turn["role"] != "assistant":
                continue
            before, after = self.render(turns[:i], generate=True), self.render(turns[: i + 1])
            if not (after.startswith(before) and text.startswith(after)):
                raise InputError(
                    "this chat template rewrites earlier turns, so answers cannot be found in it: "
                    f"{self.render(turns)!r}. Name another template: {sorted(CHAT_TEMPLATES)}."
                )
            spans.append((len(before), len(after.rstrip())))
        return spans


class VicunaChatTemplate:
    """The format with which MindLLM's authors trained Vicuna: texts are tokenized one by one.

    A role is tokenized as it is after an end-of-sequence token, but the opened answer as a text of
    its own. An answer's end-of-sequence token and the line break after it count in the loss.
    Conversations are cut at 800 tokens, the scan being one of them.

    Parameters
    ----------
    tokenizer : transformers.PreTrainedTokenizerBase
        With an end-of-sequence token; the placeholder, and a padding token if there is none, are
        added to it.

    Raises
    ------
    InputError
        If the tokenizer has no end-of-sequence token.

    References
    ----------
    github.com/Graph-and-Geometric-Learning/MindLLM, src/utils/chat.py
    """

    question, fmri_first = "Please describe the fMRI as simply as possible.", True
    system = (
        "You are a helpful agent that decode the brain activity of a person looking at an image."
    )
    max_length = 800

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer, self.end = tokenizer, tokenizer.eos_token
        if not self.end or self.tokenize(self.end)[:1] != [tokenizer.eos_token_id]:
            raise InputError(
                "the format `vicuna` needs a tokenizer with an end-of-sequence token; that of "
                f"{tokenizer.name_or_path} has {self.end!r}."
            )
        # In this order and of this kind: they get the authors' ids and split text as theirs do.
        if tokenizer.pad_token is None:
            tokenizer.add_special_tokens({"pad_token": "<pad>"})
        tokenizer.add_tokens([FMRI_TOKEN])

    def tokenize(self, text: str) -> list[int]:
        """Token ids of a text, without special tokens around it."""
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def encode(self, turns: Conversation, generate: bool) -> EncodedTurns:
        """Token ids (L,) int64, and which of them are an assistant's, (L,) bool."""
        has_system = turns[0]["role"] == "system"
        system = turns[0]["content"] if has_system else self.system
        ids = self.tokenize(f"{self.tokenizer.bos_token or ''}{system}\n\n")
        is_answer = [False] * len(ids)
        for turn in turns[has_system:]:
            by_assistant = turn["role"] == "assistant"
            role = self.tokenize(f"{self.end}{turn['role'].upper()}: ")[1:]
            content = self.tokenize(f"{turn['content']}{self.end * by_assistant}\n")
            ids += role + content
            is_answer += [False] * len(role) + [by_assistant] * len(content)
        if len(ids) > self.max_length:
            logger.warning(
                "a conversation of %d tokens is cut at %d, as published", len(ids), self.max_length
            )
        opened = self.tokenize("ASSISTANT: ") if generate else []
        ids = ids[: self.max_length] + opened
        is_answer = is_answer[: self.max_length] + [False] * len(opened)
        return np.array(ids), np.array(is_answer, bool)


CHAT_TEMPLATES = {"vicuna": VicunaChatTemplate}


def get_chat_template(tokenizer: Any, name: str | None) -> ChatTemplate:
    """Get a named chat template, or the tokenizer's own.

    Parameters
    ----------
    tokenizer : transformers.PreTrainedTokenizerBase
        The placeholder `<fMRI>` is added to it.
    name : str or None
        A key of CHAT_TEMPLATES; None: the tokenizer's own template.

    Returns
    -------
    ChatTemplate

    Raises
    ------
    InputError
        If the name is unknown, or the tokenizer does not fit.
    """
    if name is not None and name not in CHAT_TEMPLATES:
        raise InputError(f"unknown chat template {name!r}; known: {sorted(CHAT_TEMPLATES)}.")
    return CHAT_TEMPLATES[name](tokenizer) if name else TokenizerChatTemplate(tokenizer)
