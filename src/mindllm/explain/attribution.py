"""Voxels that a word of an answer came from, by integrated gradients through the language model.

The log-likelihood of a word is a function of the query outputs z = A x, which are linear in the
betas x, along the path from zero betas too. So a voxel's attribution is its beta times the mean
gradient at z, carried back by the attention weights A: the same as integrated gradients of the
betas themselves, at the cost of num_queries numbers per step instead of n_voxels. The path is cut
into pieces until the attributions of every word sum to its change in log-likelihood.

References
----------
Sundararajan, Taly & Yan 2017, Axiomatic attribution for deep networks, ICML;
Kokhlikyan et al. 2020, Captum, arXiv 2009.07896.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from mindllm.explain.features import multiply_attention
from mindllm.fmri.masker import VoxelMasker
from mindllm.model.evidence import Betas
from mindllm.model.generation import end_token_ids
from mindllm.model.logits import forward_logits
from mindllm.model.modeling import MindLLM
from mindllm.model.processing import IGNORE_INDEX
from mindllm.utils.errors import InputError

FIRST_PIECES = (0.0, 0.125, 0.5, 1.0)  # the head changes most near zero betas
ScoreWords = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class AttributionConfig:
    """Options of the attribution of words.

    Parameters
    ----------
    n_steps : int
        Gauss-Legendre nodes in each piece of the path.
    tolerance : float
        Nats by which the attributions of a word may miss its change in log-likelihood.
    max_pieces : int
        Pieces at most; where the tolerance is not met by then, `WordAttributions.error` says so.
    batch_size : int
        Rows that the language model reads at once.
    """

    n_steps: int = 8
    tolerance: float = 0.05
    max_pieces: int = 16
    batch_size: int = 16


@dataclass(frozen=True)
class WordAttributions:
    """Attribution of the words of an answer to voxels, for one trial.

    Parameters
    ----------
    answer : str
    words : tuple of str
    voxels : ndarray of shape (n_words, n_voxels)
        In nats of the word's log-likelihood.
    log_likelihood, at_zero : ndarray of shape (n_words,)
        Of each word after the words before it, given the trial and given zero betas.
    error : ndarray of shape (n_words,)
        Sum over voxels minus the change in log-likelihood.
    n_pieces : int
        Pieces of the path.
    """

    answer: str
    words: tuple[str, ...]
    voxels: np.ndarray
    log_likelihood: np.ndarray
    at_zero: np.ndarray
    error: np.ndarray
    n_pieces: int

    def to_arrays(self) -> dict[str, np.ndarray]:
        """All of it as arrays by name; `from_arrays` is the inverse."""
        texts = json.dumps([self.answer, *self.words]).encode()
        return {
            "texts": np.frombuffer(texts, np.uint8),
            "voxels": self.voxels,
            "log_likelihood": self.log_likelihood,
            "at_zero": self.at_zero,
            "error": self.error,
            "n_pieces": np.array(self.n_pieces),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Self:
        """Put it together from its arrays."""
        answer, *words = json.loads(arrays["texts"].tobytes())
        return cls(
            answer,
            tuple(words),
            arrays["voxels"],
            arrays["log_likelihood"],
            arrays["at_zero"],
            arrays["error"],
            int(arrays["n_pieces"]),
        )


@dataclass(frozen=True)
class Piece:
    """Mean gradients (n_words, num_queries) on a piece of the path, and what they miss."""

    start: float
    stop: float
    gradients: Tensor
    error: Tensor


def attribute_words(
    model: MindLLM,
    masker: VoxelMasker,
    betas: Betas,
    answer: str,
    question: str | None = None,
    *,
    words: Sequence[int] | None = None,
    config: AttributionConfig | None = None,
    on_piece: Callable[[], None] | None = None,
) -> WordAttributions:
    """Attribute the words of an answer to voxels.

    Parameters
    ----------
    model : MindLLM
    masker : VoxelMasker
    betas : ndarray or Tensor of shape (n_voxels,)
        Standardized betas of one trial.
    answer : str
        Such as what was decoded from the trial.
    question : str, optional
        By default the one that the model was trained with.
    words : sequence of int, optional
        Numbers of the words, from 0; all by default.
    config : AttributionConfig, optional
    on_piece : callable, optional
        Called before each piece of the path; what it raises ends the attribution.

    Returns
    -------
    WordAttributions

    Raises
    ------
    InputError
        If the answer has no such word, or betas do not fit the voxels.
    """
    config = config or AttributionConfig()
    trial = torch.atleast_2d(torch.as_tensor(betas))
    outputs = model.query_outputs(trial, masker)
    if len(outputs) != 1:
        raise InputError(f"words are attributed in one trial at a time, found {len(outputs)}.")
    score, all_words = word_scorer(model, answer, question)
    chosen = list(range(len(all_words)) if words is None else words)
    if not chosen or not all(0 <= number < len(all_words) for number in chosen):
        raise InputError(
            f"words {chosen} were asked for; the answer {answer!r} has words 0 to "
            f"{len(all_words) - 1}."
        )
    pieces = integrate_path(score, outputs, chosen, config, on_piece)
    gradients = sum_pieces(pieces)
    with torch.no_grad():
        scores = score(torch.cat([outputs, torch.zeros_like(outputs)]))[:, chosen].double().cpu()
        attention = model.encoder.attention_weights(model.encoder.prepare_voxels(masker)).cpu()
    voxels = trial.cpu().double() * multiply_attention(gradients.double().cpu(), attention)
    return WordAttributions(
        answer,
        tuple(all_words[number] for number in chosen),
        voxels.numpy(),
        scores[0].numpy(),
        scores[1].numpy(),
        (voxels.sum(1) - (scores[0] - scores[1])).numpy(),
        len(pieces),
    )


def sum_pieces(pieces: Sequence[Piece]) -> Tensor:
    """Mean gradients (n_words, num_queries) over the path."""
    return torch.stack([piece.gradients * (piece.stop - piece.start) for piece in pieces]).sum(0)


def integrate_path(
    score: ScoreWords,
    outputs: Tensor,
    words: Sequence[int],
    config: AttributionConfig,
    on_piece: Callable[[], None] | None = None,
) -> list[Piece]:
    """Cut the path into pieces, the worst first, until the errors of every word are small."""

    def integrate(start: float, stop: float) -> Piece:
        if on_piece is not None:
            on_piece()
        return integrate_piece(score, outputs, words, start, stop, config)

    pieces = [integrate(start, stop) for start, stop in pairwise(FIRST_PIECES)]
    while len(pieces) < config.max_pieces:
        total = torch.stack([piece.error.abs() for piece in pieces]).sum(0)
        if float(total.max()) <= config.tolerance:
            break
        worst = max(pieces, key=lambda piece: float(piece.error.abs().max()))
        pieces.remove(worst)
        middle = (worst.start + worst.stop) / 2
        for start, stop in ((worst.start, middle), (middle, worst.stop)):
            pieces.append(integrate(start, stop))
    return pieces


def integrate_piece(
    score: ScoreWords,
    outputs: Tensor,
    words: Sequence[int],
    start: float,
    stop: float,
    config: AttributionConfig,
) -> Piece:
    """Mean gradients on a piece of the path, by captum."""
    from captum.attr import IntegratedGradients  # slow to import

    n_words = len(words)
    first, last = start * outputs, stop * outputs
    gradients = IntegratedGradients(score, multiply_by_inputs=False).attribute(
        last.expand(n_words, -1),
        baselines=first.expand(n_words, -1),
        target=list(words),
        n_steps=config.n_steps,
        method="gausslegendre",
        internal_batch_size=max(config.batch_size, n_words),
    )
    with torch.no_grad():
        ends = score(torch.cat([first, last]))[:, words]
    gradients = gradients.detach()
    error = (gradients * (last - first)).sum(1) - (ends[1] - ends[0])
    return Piece(start, stop, gradients, error)


def word_scorer(
    model: MindLLM, answer: str, question: str | None
) -> tuple[ScoreWords, tuple[str, ...]]:
    """Log-likelihood (n, n_words) of an answer's words, by query outputs (n, num_queries)."""
    prompt = model.processor(model.build_conversation(question, answer))
    targets = np.flatnonzero(prompt.labels != IGNORE_INDEX)
    ends = set(end_token_ids(model))
    ids = prompt.labels[targets].tolist()
    n_tokens = next((i for i, token in enumerate(ids) if token in ends), len(ids))
    words, numbers = group_into_words(model.language_model.tokenizer, ids[:n_tokens])
    if not words:
        raise InputError(f"the answer {answer!r} has no word to attribute. Give one with words.")
    batch = model.processor.pad([prompt]).to(model.device)
    columns = torch.as_tensor(targets[:n_tokens] - 1, device=model.device)
    labels = torch.as_tensor(ids[:n_tokens], device=model.device)
    of_word = torch.nn.functional.one_hot(torch.tensor(numbers), len(words)).to(model.device)
    head = model.encoder.head

    def score(outputs: Tensor) -> Tensor:
        n = len(outputs)
        tokens = head.tokens(head.embed(outputs))
        inputs = model.prepare_inputs_embeds(
            batch["input_ids"].expand(n, -1), batch["fmri_token_positions"].expand(n, -1), tokens
        )
        logits, _ = forward_logits(
            model.language_model.model,
            columns,
            inputs_embeds=inputs,
            attention_mask=batch["attention_mask"].expand(n, -1),
        )
        log_probs = logits.float().log_softmax(-1)
        return log_probs.gather(2, labels.expand(n, -1)[..., None])[..., 0] @ of_word.float()

    return score, tuple(words)


def group_into_words(tokenizer: Any, ids: Sequence[int]) -> tuple[list[str], list[int]]:
    """Words of token ids, and the number of the word that each token belongs to."""
    spans = list(re.finditer(r"\S+", tokenizer.decode(list(ids), skip_special_tokens=True)))
    numbers = []
    for stop in range(len(ids)):
        before = tokenizer.decode(list(ids[:stop]), skip_special_tokens=True)
        start = len(before.rstrip("\ufffd"))  # a letter of several tokens is not complete yet
        ended = sum(span.end() <= start for span in spans)
        numbers.append(min(ended, len(spans) - 1))
    return [span[0] for span in spans], numbers
