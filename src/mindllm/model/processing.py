"""From conversations to model inputs: token ids, positions of fMRI tokens, labels."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import BatchEncoding

from mindllm.language.chat_templates import get_chat_template
from mindllm.language.conversation import FMRI_TOKEN, Conversation, check_conversation
from mindllm.utils.errors import InputError

IGNORE_INDEX = -100
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EncodedPrompt:
    """One tokenized conversation of L tokens.

    Parameters
    ----------
    input_ids : ndarray of shape (L,)
        The id of the placeholder `<fMRI>` at every position of an fMRI token.
    labels : ndarray of shape (L,)
        The token id where the assistant speaks, IGNORE_INDEX elsewhere.
    fmri_token_positions : ndarray of shape (num_fmri_tokens,)
    """

    input_ids: np.ndarray
    labels: np.ndarray
    fmri_token_positions: np.ndarray


class MindLLMProcessor:
    """Converts conversations about a trial to model inputs.

    Parameters
    ----------
    tokenizer : transformers.PreTrainedTokenizerBase
    num_fmri_tokens : int
        Tokens in place of `<fMRI>`; 0: the prompt without a scan.
    chat_template : str, optional
        A named format ("vicuna"); by default the tokenizer's own chat template.
    max_length : int, optional
        Positions of the language model; longer conversations are refused.
    pad_token_id : int
        Id to pad with.
    """

    def __init__(
        self,
        tokenizer: Any,
        num_fmri_tokens: int,
        chat_template: str | None = None,
        max_length: int | None = None,
        pad_token_id: int = 0,
    ) -> None:
        self.tokenizer, self.num_fmri_tokens = tokenizer, num_fmri_tokens
        self.max_length, self.pad_token_id = max_length, pad_token_id
        self.chat_template = get_chat_template(tokenizer, chat_template)
        self.fmri_token_id = tokenizer.convert_tokens_to_ids(FMRI_TOKEN)

    def encode_text(self, text: str, length: int) -> list[int]:
        """The first `length` token ids of a text, padded with line breaks."""
        blank = self.tokenizer("\n", add_special_tokens=False)["input_ids"][-1:]
        ids = self.chat_template.data_tokenizer.tokenize(text)[0].tolist()
        return (ids + blank * length)[:length]

    def __call__(
        self, turns: Conversation, generate: bool = False, *, cut: bool = False
    ) -> EncodedPrompt:
        """Tokenize one conversation.

        Parameters
        ----------
        turns : Conversation
            Messages with the keys role and content; one holds `<fMRI>`.
        generate : bool
            Whether it ends on a user turn, and the prompt on the opened assistant turn.
        cut : bool
            Whether a last answer that is too long is cut, with a warning.

        Returns
        -------
        EncodedPrompt

        Raises
        ------
        InputError
            If it is malformed, or longer than the language model reads.
        """
        check_conversation(turns)
        ids, counts = self.chat_template.encode(turns, generate)
        if not (ids == self.fmri_token_id).any():
            raise InputError(
                f"a conversation was cut before its {FMRI_TOKEN}. "
                f"Shorten what stands before it: {turns!r}"
            )
        repeats = np.where(ids == self.fmri_token_id, self.num_fmri_tokens, 1)
        labels = np.repeat(np.where(counts, ids, IGNORE_INDEX), repeats)
        ids = np.repeat(ids, repeats)
        if self.max_length and len(ids) > self.max_length:
            n_tokens, ids = len(ids), ids[: self.max_length]
            labels = labels[: self.max_length]
            if not (cut and labels[-1] != IGNORE_INDEX):
                raise InputError(
                    f"a conversation has {n_tokens} tokens, {self.num_fmri_tokens} of them for the "
                    f"scan, and the language model reads at most {self.max_length}. "
                    f"Shorten it: {str(turns)[:200]}..."
                )
            logger.warning("an answer is cut: %d tokens of %d are read", self.max_length, n_tokens)
        return EncodedPrompt(ids, labels, np.flatnonzero(ids == self.fmri_token_id))

    def pad(self, prompts: Sequence[EncodedPrompt], pad_after: int | None = None) -> BatchEncoding:
        """Pad prompts to one length L and stack them.

        Parameters
        ----------
        prompts : sequence of EncodedPrompt
        pad_after : int, optional
            Pad after so many tokens of each prompt, to generate; by default after all.

        Returns
        -------
        BatchEncoding
            Tensors `input_ids`, `attention_mask`, `labels` (n, L) and `fmri_token_positions`
            (n, num_fmri_tokens).
        """
        longest = max(len(p.input_ids) for p in prompts)
        shape = (len(prompts), longest)
        input_ids = np.full(shape, self.pad_token_id)
        labels = np.full(shape, IGNORE_INDEX)
        attention_mask = np.zeros(shape, int)
        positions = []
        for row, prompt in enumerate(prompts):
            columns = np.arange(len(prompt.input_ids))
            columns[len(columns) if pad_after is None else pad_after :] += longest - len(columns)
            input_ids[row, columns], labels[row, columns] = prompt.input_ids, prompt.labels
            attention_mask[row, columns] = 1
            positions.append(columns[prompt.fmri_token_positions])
        arrays = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "labels": labels,
            "fmri_token_positions": np.stack(positions),
        }
        return BatchEncoding({name: torch.as_tensor(array) for name, array in arrays.items()})
