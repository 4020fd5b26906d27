"""Sentence encoders: encoder models that average over tokens, and prompted language models."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property, lru_cache
from importlib.resources import files
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, AutoTokenizer

from mindllm.language.hub import load_local_first, model_not_found_message, quiet_transformers
from mindllm.utils.errors import InputError
from mindllm.utils.weights import check_finite_weights

MAX_TOKENS = 256  # what the default encoder was trained to read
PROMPT = ('This sentence: "', '" can be summarized in one word: "')
LAST_LAYERS = 15  # one layer in so many is left out at the end, where the next token is prepared


class SentenceEncoder(ABC):
    """A model that turns sentences into unit vectors of their meaning.

    Parameters
    ----------
    tokenizer, model
        As transformers loads them.
    """

    def __init__(self, tokenizer: Any, model: Any) -> None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.tokenizer, self.model = tokenizer, model.eval().to(device)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token

    @property
    def embedding_dim(self) -> int:
        """Length of a vector."""
        return int(self.model.config.hidden_size)

    @abstractmethod
    def embed(self, texts: Sequence[str]) -> Tensor:
        """Embed texts in one batch.

        Parameters
        ----------
        texts : sequence of str
            Cut at 256 tokens.

        Returns
        -------
        Tensor of shape (n_texts, embedding_dim), float32
            Unit vectors, on the CPU.
        """


class MeanPoolingEncoder(SentenceEncoder):
    """An encoder whose last layer is averaged over the tokens of each text.

    References
    ----------
    Reimers & Gurevych 2019, Sentence-BERT, arXiv 1908.10084.
    """

    @torch.no_grad()
    def embed(self, texts: Sequence[str]) -> Tensor:
        """Embed texts in one batch; see `SentenceEncoder.embed`."""
        encoded = self.tokenizer(
            list(texts), padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
        ).to(self.model.device)
        mask = encoded["attention_mask"][..., None]
        hidden = self.model(**encoded).last_hidden_state
        return F.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1).float().cpu()


class LanguageModelEncoder(SentenceEncoder):
    """A causal language model that is asked to summarize each text in one word.

    A vector is the hidden state where that word would begin, near the last layer, in units of the
    standard deviation of each dimension over general sentences, from their mean.

    References
    ----------
    Jiang et al. 2023, Scaling sentence embeddings with large language models, arXiv 2307.16645.
    """

    def embed(self, texts: Sequence[str]) -> Tensor:
        """Embed texts in one batch; see `SentenceEncoder.embed`."""
        mean, std = self.general_statistics
        return F.normalize((self.hidden_states(texts) - mean) / std, dim=-1)

    @cached_property
    def general_statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each dimension over general sentences."""
        states = self.hidden_states(general_sentences())
        std, mean = torch.std_mean(states, 0)
        return mean, std.clamp_min(torch.finfo(std.dtype).eps)

    @torch.no_grad()
    def hidden_states(self, texts: Sequence[str]) -> Tensor:
        """States after the prompt.

        Parameters
        ----------
        texts : sequence of str

        Returns
        -------
        Tensor of shape (n_texts, embedding_dim), float32
            On the CPU.
        """
        before, after = (self._tokenize(part) for part in PROMPT)
        first = self.tokenizer.bos_token_id if self._begins_with_bos() else None
        prompts = [
            ([] if first is None else [first]) + before + self._tokenize(text)[:MAX_TOKENS] + after
            for text in texts
        ]
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        ids = torch.nn.utils.rnn.pad_sequence(
            [torch.tensor(prompt) for prompt in prompts],
            batch_first=True,
            padding_value=self.tokenizer.pad_token_id,
        )
        mask = torch.arange(ids.shape[1]) < lengths[:, None]
        device = self.model.device
        outputs = self.model(
            input_ids=ids.to(device), attention_mask=mask.to(device), output_hidden_states=True
        )
        layers = outputs.hidden_states  # the word embeddings first
        states = layers[-1 - (len(layers) - 1) // LAST_LAYERS]
        return states[torch.arange(len(prompts)), lengths - 1].float().cpu()

    def _tokenize(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _begins_with_bos(self) -> bool:
        first = self.tokenizer("a")["input_ids"][:1]
        return bool(first == [self.tokenizer.bos_token_id])


def general_sentences() -> list[str]:
    """Sentences about everyday things, which language models' hidden states are centred on."""
    text = files(__package__).joinpath("general_sentences.txt").read_text(encoding="utf-8")
    return text.splitlines()


@lru_cache(maxsize=2)
def load_sentence_encoder(name: str) -> SentenceEncoder:
    """Load a sentence encoder.

    Parameters
    ----------
    name : str
        Hub id or folder; of a sentence encoder, or of a causal language model.

    Returns
    -------
    SentenceEncoder

    Raises
    ------
    InputError
        If it cannot be loaded; the message says how to get it.
    """

    def load(location: str) -> SentenceEncoder:
        architectures = AutoConfig.from_pretrained(location).architectures or [""]
        is_causal = architectures[0].endswith(("ForCausalLM", "LMHeadModel"))
        kind = LanguageModelEncoder if is_causal else MeanPoolingEncoder
        tokenizer = AutoTokenizer.from_pretrained(location)
        return kind(tokenizer, AutoModel.from_pretrained(location, dtype=torch.float32))

    try:
        with quiet_transformers():
            encoder = load_local_first(name, load)
    except InputError:
        raise
    except (OSError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise InputError(model_not_found_message(name, reason)) from error
    check_finite_weights(encoder.model.named_parameters(), f"sentence encoder {name}")
    return encoder
