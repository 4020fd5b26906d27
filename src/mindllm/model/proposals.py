"""Proposals: texts that an answer is chosen from, sampled from the language model or others.

Evidence of a trial for texts (`mindllm.model.encoding_model`) makes probabilities among them. The
text that is chosen is not the one of the most evidence, but the one whose expected similarity with
what the trial is about rises most by the evidence. The expectation makes use of all texts that
mean nearly the same; the comparison with before keeps texts that are similar to everything back.

References
----------
Expected similarity: Kumar & Byrne 2004, Minimum Bayes-risk decoding for statistical machine
translation, HLT-NAACL. Texts similar to everything: Radovanović et al. 2010, Hubs in space,
JMLR 11.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from mindllm.model.generation import limit_new_tokens
from mindllm.model.language_model import FrozenLanguageModel
from mindllm.utils.errors import InputError
from mindllm.utils.progress import Advance

if TYPE_CHECKING:
    from mindllm.model.modeling import MindLLM

N_EXAMPLES = 8  # texts in the prompt that a batch of texts is sampled after
LENGTH_FACTOR = 2  # a text has at most this many times the tokens of the longest example
TOP_K = 50  # the likeliest tokens, of which the next one is drawn
MAX_ROUNDS = 4  # as many tokens are sampled, at most, as this many times the texts need


def collect_proposals(
    model: MindLLM,
    corpus: Sequence[str] = (),
    n_texts: int = 400,
    seed: int = 0,
    advance: Advance | None = None,
) -> list[str]:
    """Texts to choose among: of training, of a corpus, and some that are written like them.

    Parameters
    ----------
    model : MindLLM
        Its card holds the texts that it was trained on.
    corpus : sequence of str
    n_texts, seed, advance
        As for `sample_texts`.

    Returns
    -------
    list of str
        Each text once.

    Raises
    ------
    InputError
        If there are no texts of training and no corpus.
    """
    examples = list(dict.fromkeys([*(model.model_card.answers or {}), *corpus]))
    if not examples:
        raise InputError(
            "the model does not name the texts that it was trained on: give a corpus to choose "
            "among."
        )
    if not n_texts:
        return examples
    sampled = sample_texts(model.language_model, examples, n_texts, seed=seed, advance=advance)
    return list(dict.fromkeys([*examples, *sampled]))


@torch.no_grad()
def sample_texts(
    language_model: FrozenLanguageModel,
    examples: Sequence[str],
    n_texts: int,
    *,
    temperature: float = 1.1,
    batch_size: int = 64,
    seed: int = 0,
    advance: Advance | None = None,
) -> list[str]:
    """Sample texts from a language model that is shown examples, a line each.

    Parameters
    ----------
    language_model : FrozenLanguageModel
    examples : sequence of str
        A few are drawn anew for each batch.
    n_texts : int
    temperature : float
    batch_size : int
        Texts sampled at once.
    seed : int
    advance : Advance, optional
        Called with the number of texts that a batch gave.

    Returns
    -------
    list of str
        Different texts, none of them an example; fewer than `n_texts` where the language model
        repeats itself.

    Raises
    ------
    InputError
        If there are no examples.
    """
    lines = sorted({" ".join(text.split()) for text in examples} - {""})
    if not lines:
        raise InputError("texts are sampled after examples, and there are none.")
    device, texts = language_model.model.device, dict.fromkeys(lines)
    total = len(lines) + n_texts
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        for _ in range(MAX_ROUNDS * -(-n_texts // batch_size)):
            before = len(texts)
            shown = [lines[i] for i in torch.randperm(len(lines))[:N_EXAMPLES]]
            texts |= dict.fromkeys(sample_lines(language_model, shown, batch_size, temperature))
            if advance:
                advance(min(len(texts), total) - min(before, total))
            if len(texts) >= total:
                break
    return list(texts)[len(lines) : total]


def sample_lines(
    language_model: FrozenLanguageModel, shown: Sequence[str], count: int, temperature: float
) -> list[str]:
    """Lines that follow those shown; one that does not end within the limit is left out."""
    tokenizer = language_model.tokenizer
    prompt = tokenizer("\n".join(shown) + "\n", return_tensors="pt", add_special_tokens=True)
    ids = prompt["input_ids"].to(language_model.model.device)
    longest = max(len(tokenizer(text)["input_ids"]) for text in shown)
    limit = limit_new_tokens(ids.shape[1], LENGTH_FACTOR * longest, language_model.max_length)
    generated = language_model.model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=True,
        temperature=temperature,
        top_k=TOP_K,
        num_return_sequences=count,
        max_new_tokens=limit,
        stop_strings=["\n"],
        tokenizer=tokenizer,
        eos_token_id=language_model.end_token_ids or None,
        pad_token_id=language_model.pad_id,
    )
    decoded = tokenizer.batch_decode(generated[:, ids.shape[1] :], skip_special_tokens=True)
    ended = [text.partition("\n") for text in decoded]
    return [line.strip() for line, end, _ in ended if end and len(line.split()) > 1]


@dataclass(frozen=True, slots=True)
class RankedText:
    """A text that a trial may be about.

    Parameters
    ----------
    text : str
    evidence : float
        log p(trial | text) - log p(trial), in nats.
    probability : float
        Among all proposals, which are equally likely beforehand.
    similarity_gain : float
        Expected cosine similarity with the text that the trial is about, minus that before the
        trial was seen.
    """

    text: str
    evidence: float
    probability: float
    similarity_gain: float


def similarity_gains(evidence: Tensor, embeddings: Tensor) -> Tensor:
    """How much the evidence raises each text's expected similarity with what a trial is about.

    Parameters
    ----------
    evidence : Tensor of shape (n_trials, n_texts)
        In nats.
    embeddings : Tensor of shape (n_texts, embedding_dim)
        Of the texts, centred.

    Returns
    -------
    Tensor of shape (n_trials, n_texts), float64
    """
    unit = F.normalize(embeddings.double(), dim=1)
    change = evidence.double().softmax(1) - 1 / len(embeddings)
    return change @ unit @ unit.T


def rank_texts(
    texts: Sequence[str], evidence: Tensor, embeddings: Tensor, n_best: int = 5
) -> list[list[RankedText]]:
    """Rank texts by the gain in expected similarity.

    Parameters
    ----------
    texts : sequence of str
        Proposals, equally likely beforehand.
    evidence, embeddings
        As for `similarity_gains`.
    n_best : int
        Texts per trial.

    Returns
    -------
    list of list of RankedText
        The best of each trial, the best first.

    Examples
    --------
    >>> import torch
    >>> ((best, *_),) = rank_texts(["a dog", "a tree"], torch.tensor([[2.0, 0.0]]), torch.eye(2))
    >>> best.text, round(best.probability, 2)
    ('a dog', 0.88)
    """
    gains = similarity_gains(evidence, embeddings)
    order = gains.argsort(dim=1, descending=True, stable=True)[:, :n_best]
    values = torch.stack([evidence.double(), evidence.double().softmax(1), gains], -1)
    return [
        [RankedText(texts[i], *values[trial, i].tolist()) for i in row.tolist()]
        for trial, row in enumerate(order)
    ]
