"""Conversations as token ids: by a tokenizer's own chat template, or in a named format."""

import logging
import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Protocol

import numpy as np

from mindllm.language.conversation import FMRI_TOKEN, QUESTION, Conversation
from mindllm.utils.errors import InputError

EncodedTurns = tuple[np.ndarray, np.ndarray]
Spans = list[tuple[int, int]]
# Names under which templates switch off that a model thinks before it answers.
NO_THINKING = {"enable_thinking": False, "thinking": False}
THINKING = re.compile(r"\A.*</think>|<think>.*\Z", re.DOTALL)
MARK = "\ue000{}\ue001"  # stands for a turn; of private characters, which no template looks for
logger = logging.getLogger(__name__)


class ChatTemplate(Protocol):
    """Encodes conversations with one tokenizer, to which it has added the placeholder `<fMRI>`.

    Attributes
    ----------
    question : str
        Question to ask by default.
    fmri_first : bool
        Whether the placeholder stands before a question or after it.
    end_token_ids : list of int
        Tokens that close an assistant's turn.
    stop_strings : list of str
        Texts that close it, where no token does.
    data_tokenizer : DataTokenizer
        Tokenizes texts of data.
    """

    question: str
    fmri_first: bool
    data_tokenizer: "DataTokenizer"
    end_token_ids: list[int]
    stop_strings: list[str]

    def encode(self, turns: Conversation, generate: bool) -> EncodedTurns:
        """Token ids (L,) int64, and which of them are an assistant's, (L,) bool.

        `generate` opens the next assistant turn.
        """


def strip_thinking(text: str) -> str:
    """Remove what a model thought before it answered.

    Parameters
    ----------
    text : str
        Generated text.

    Returns
    -------
    str
        What stands behind `</think>`, without an unfinished thought.

    Examples
    --------
    >>> strip_thinking("<think>An animal.</think> a dog")
    ' a dog'
    """
    return THINKING.sub("", text)


class DataTokenizer:
    """Tokenizes texts in which control tokens that stand in data are letters.

    Parameters
    ----------
    tokenizer : transformers.PreTrainedTokenizerBase
        With the placeholder `<fMRI>`, which stays a token everywhere.

    Attributes
    ----------
    controls : dict of str to int
        Tokens that the tokenizer finds in a text and that are no letters, such as `<|im_end|>`.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder.items()
        controls = {str(token): number for number, token in added if token.special}
        controls |= dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
        self.controls = {text: number for text, number in controls.items() if text != FMRI_TOKEN}
        longest_first = sorted(self.controls, key=len, reverse=True)
        self.pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def leading_control(self, text: str) -> str | None:
        """The control token that a text begins with, but for blanks."""
        match = self.pattern.match(text.lstrip())
        return match and match[0]

    def tokenize(self, text: str, data: Spans | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Tokenize a text.

        Parameters
        ----------
        text : str
        data : list of (int, int), optional
            Character spans of what comes from data; by default the complete text.

        Returns
        -------
        input_ids : ndarray of shape (L,)
        starts : ndarray of shape (L,)
            Character at which each token begins.
        """
        spans = [(0, len(text))] if data is None else data
        matches = [m for start, stop in spans for m in self.pattern.finditer(text, start, stop)]
        # Cut behind its first character, a control token is none.
        cuts = sorted({0, len(text), *(match.start() + 1 for match in matches)})
        ids: list[int] = []
        starts: list[int] = []
        for start, stop in pairwise(cuts):
            encoded = self.tokenizer(
                text[start:stop], add_special_tokens=False, return_offsets_mapping=True
            )
            ids += encoded["input_ids"]
            starts += [start + first for first, _ in encoded["offset_mapping"]]
        return np.array(ids, dtype=np.int64), np.array(starts, dtype=np.int64)


class TokenizerChatTemplate:
    """The tokenizer's own template: one text, in which turns are located.

    An answer is what stands between a text that the template writes before it (with an empty
    thought, where the template has one) and the mark that closes a turn, which is learned too.

    Parameters
    ----------
    tokenizer : transformers.PreTrainedTokenizerBase
        With a chat template; the placeholder is added to it.

    Raises
    ------
    InputError
        If the tokenizer has no chat template, or the template changes what is said.
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
        self.tokenizer, self.data_tokenizer = tokenizer, DataTokenizer(tokenizer)
        self.end_token_ids, self.stop_strings = self.find_closing_marks()

    def find_closing_marks(self) -> tuple[list[int], list[str]]:
        """Tokens, or else texts, that close an assistant's turn, the last or an earlier one."""
        turns = [
            {"role": role, "content": "Yes."} for role in ("user", "assistant", "user", "assistant")
        ]
        text, spans = self.locate_turns(turns)
        token_ids, strings = [], []
        for start, stop in (self.closing_span(text, spans, i) for i in (1, 3)):
            mark = text[start:stop].strip()
            control = self.data_tokenizer.leading_control(mark)
            if control:
                token_ids.append(self.data_tokenizer.controls[control])
            elif mark:
                strings.append(mark)
        return sorted(set(token_ids)), sorted(set(strings))

    def render(self, turns: Conversation) -> str:
        """The conversation as the text that the language model reads; it thinks nothing."""
        try:
            return self.tokenizer.apply_chat_template(turns, tokenize=False, **NO_THINKING)
        except Exception as error:  # a template raises what it likes
            raise InputError(
                f"the chat template of {self.tokenizer.name_or_path} refuses a conversation "
                f"({error}). Leave out what it does not know, such as a system turn, or name "
                f"another template: {sorted(CHAT_TEMPLATES)}."
            ) from error

    def locate_turns(self, turns: Conversation) -> tuple[str, Spans]:
        """The text of a conversation, and the characters of each turn's content in it."""
        marks = [MARK.format(i) for i in range(len(turns))]
        marked = self.render(
            [{**turn, "content": mark} for turn, mark in zip(turns, marks, strict=True)]
        )
        if all(marked.count(mark) == 1 for mark in marks):
            text = self.render(turns)
            contents = [turn["content"] for turn in turns]
            for candidate in (contents, [content.strip() for content in contents]):
                spans = locate_marks(marked, marks, candidate)
                if replace_marks(marked, marks, candidate) == text:
                    return text, spans
        raise InputError(
            f"the chat template of {self.tokenizer.name_or_path} changes or leaves out turns, so "
            f"answers cannot be found in it: {str(turns)[:200]}. "
            f"Name another template: {sorted(CHAT_TEMPLATES)}."
        )

    def encode(self, turns: Conversation, generate: bool) -> EncodedTurns:
        """Token ids (L,) int64, and which of them are an assistant's, (L,) bool.

        Raises InputError if the template changes turns.
        """
        opened = [*turns, {"role": "assistant", "content": "Yes."}] if generate else turns
        text, spans = self.locate_turns(opened)
        if generate:
            text = text[: self.answer_start(text, spans, -1)]
            spans = spans[:-1]
        ids, starts = self.data_tokenizer.tokenize(text, spans)
        is_answer = np.zeros(len(starts), bool)
        for i, turn in enumerate(turns):
            if turn["role"] == "assistant":
                _, stop = self.closing_span(text, spans, i)
                is_answer |= (starts >= self.answer_start(text, spans, i)) & (starts < stop)
        return ids, is_answer

    def answer_start(self, text: str, spans: Spans, turn: int) -> int:
        """First character of an answer; tokenizers join a blank before it to its first word."""
        return len(text[: spans[turn][0]].rstrip(" "))

    def closing_span(self, text: str, spans: Spans, turn: int) -> tuple[int, int]:
        """Characters of the mark that closes a turn: to the end, or a control token."""
        start = spans[turn][1]
        if spans[turn] == max(spans):
            return start, len(text.rstrip())
        control = self.data_tokenizer.leading_control(text[start:])
        if control is None:
            return start, start
        return start, text.index(control, start) + len(control)


def locate_marks(marked: str, marks: Sequence[str], contents: Sequence[str]) -> Spans:
    """Characters of each content, once it has replaced its mark."""
    order = sorted(range(len(marks)), key=lambda i: marked.index(marks[i]))
    spans, shift = {}, 0
    for i in order:
        start = marked.index(marks[i]) + shift
        spans[i] = (start, start + len(contents[i]))
        shift += len(contents[i]) - len(marks[i])
    return [spans[i] for i in range(len(marks))]


def replace_marks(marked: str, marks: Sequence[str], contents: Sequence[str]) -> str:
    """The text with contents in place of their marks."""
    replacements = dict(zip(marks, contents, strict=True))
    pattern = re.compile("|".join(map(re.escape, marks)))
    return pattern.sub(lambda match: replacements[match[0]], marked)


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
        if not self.end or tokenizer(self.end, add_special_tokens=False)["input_ids"][:1] != [
            tokenizer.eos_token_id
        ]:
            raise InputError(
                "the format `vicuna` needs a tokenizer with an end-of-sequence token; that of "
                f"{tokenizer.name_or_path} has {self.end!r}."
            )
        self.end_token_ids: list[int] = [int(tokenizer.eos_token_id)]
        self.stop_strings: list[str] = []
        # In this order and of this kind: they get the authors' ids and split text as theirs do.
        if tokenizer.pad_token is None:
            tokenizer.add_special_tokens({"pad_token": "<pad>"})
        tokenizer.add_tokens([FMRI_TOKEN])
        self.data_tokenizer = DataTokenizer(tokenizer)

    def tokenize(self, before: str, data: str = "", after: str = "") -> list[int]:
        """Token ids of a text, without special tokens around it, and with data in its middle."""
        span = (len(before), len(before) + len(data))
        return self.data_tokenizer.tokenize(before + data + after, [span])[0].tolist()

    def encode(self, turns: Conversation, generate: bool) -> EncodedTurns:
        """Token ids (L,) int64, and which of them are an assistant's, (L,) bool."""
        has_system = turns[0]["role"] == "system"
        system = turns[0]["content"] if has_system else self.system
        ids = self.tokenize(self.tokenizer.bos_token or "", system, "\n\n")
        is_answer = [False] * len(ids)
        for turn in turns[has_system:]:
            by_assistant = turn["role"] == "assistant"
            role = self.tokenize(f"{self.end}{turn['role'].upper()}: ")[1:]
            content = self.tokenize("", turn["content"], f"{self.end * by_assistant}\n")
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
