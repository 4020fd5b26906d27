"""Which short cuts give the logits of a language model's own forward; tried when it is loaded.

Families of language models differ in masks, windows, caches and states, so what holds for one may
silently be wrong for another. A short text is read without any short cut, and then with each.
"""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any

import torch
from torch import Tensor

from mindllm.model.logits import (
    TokenTrie,
    forward_logits,
    read_prefix,
    read_prompt,
    score_tree,
    selected_logits,
    unwindowed_length,
)
from mindllm.utils.errors import InputError
from mindllm.utils.weights import check_finite_weights

PROBE = "A person rides a bicycle along the river while two dogs play on the beach."
PREFIX_LENGTH = 6  # tokens of a prompt, which both rows of the probe begin with
BRANCH_LENGTHS = (8, 4)  # tokens after it; the first of them is the same in both
TOLERANCE_NATS = 1e-3  # in single precision
HALF_PRECISION_STEPS = 64  # machine epsilons that log-probabilities may differ in half precision
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Shortcuts:
    """Short cuts that give the logits of the language model's own forward.

    Parameters
    ----------
    prefix_cache : bool
        The beginning that all rows of a batch share is read once.
    token_tree : bool
        Continuations of a prompt are read as one tree.
    left_padding : bool
        Prompts of other lengths are continued in one batch.
    generation_prefix : bool
        The beginning that all prompts of a batch share is read once before they are continued.
    row_logits : bool
        Logits are computed at other positions in each row.
    """

    prefix_cache: bool
    token_tree: bool
    left_padding: bool
    generation_prefix: bool
    row_logits: bool


@dataclass(frozen=True)
class Probe:
    """Two rows of token ids with a common beginning, and their log-probabilities.

    Parameters
    ----------
    rows : list of list of int
        The second is shorter.
    log_probs : list of Tensor of shape (length, vocab_size)
        By the language model's own forward, one row at a time.
    """

    rows: list[list[int]]
    log_probs: list[Tensor]


@torch.no_grad()
def find_shortcuts(model: Any, tokenizer: Any, name: str) -> Shortcuts:
    """Try which short cuts give the logits of a language model's own forward.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        A causal language model, in evaluation mode.
    tokenizer : transformers.PreTrainedTokenizerBase
    name : str
        For messages.

    Returns
    -------
    Shortcuts

    Raises
    ------
    InputError
        If weights or logits are not finite, the model is not causal, or it cannot read and
        continue embeddings, which fMRI tokens are.
    """
    check_finite_weights(model.named_parameters(), f"language model {name}")
    pass_embeds_on(model)
    with describe_unusable(name, "does not read a text"):
        probe = make_probe(model, tokenizer)
    if not all(log_probs.isfinite().all() for log_probs in probe.log_probs):
        raise unusable(name, "its logits are NaN or infinite")
    tolerance = allowed_difference(model)

    def holds(deviation: Callable[[], float]) -> bool:
        try:
            return deviation() <= tolerance
        except Exception as error:  # whatever a family raises, the short cut is not for it
            logger.debug("%s: %s", name, error)
            return False

    left_padding = holds(lambda: generation_deviation(model, probe.rows))
    check_usable(model, probe, tolerance, name, left_padding)
    return Shortcuts(
        prefix_cache=holds(lambda: prefix_deviation(model, probe)),
        token_tree=holds(lambda: tree_deviation(model, probe)),
        left_padding=left_padding,
        generation_prefix=holds(lambda: generation_deviation(model, probe.rows, PREFIX_LENGTH)),
        row_logits=holds(lambda: row_logits_deviation(model, probe)),
    )


def check_usable(
    model: Any, probe: Probe, tolerance: float, name: str, continues_embeddings: bool
) -> None:
    """Check that a language model is causal, and reads and continues embeddings."""
    checks: dict[str, Callable[[], float]] = {
        "does not read from left to right": lambda: causal_deviation(model, probe),
        "does not read embeddings": lambda: padded_deviation(model, probe),
    }
    if not continues_embeddings:
        one = probe.rows[:1]
        checks["does not continue embeddings"] = lambda: generation_deviation(model, one)
    for reason, deviation in checks.items():
        with describe_unusable(name, reason):
            difference = deviation()
        if not difference <= tolerance:
            raise unusable(
                name,
                f"it {reason} (log-probabilities are off by {difference:.2g} nats from those of "
                f"its own forward; expected at most {tolerance:.2g})",
            )


def pass_embeds_on(model: Any) -> None:
    """Let `generate` take embeddings where a family passes them on among other arguments.

    `generate` looks for an argument of that name in the signature of
    `prepare_inputs_for_generation`, which Bamba, Falcon-H1, Gemma 3 and others lack.
    """
    prepare = model.prepare_inputs_for_generation
    if "inputs_embeds" in inspect.signature(prepare).parameters:
        return

    def prepare_inputs_for_generation(
        input_ids: Tensor, inputs_embeds: Tensor | None = None, **kwargs: Any
    ) -> Any:
        return prepare(input_ids, inputs_embeds=inputs_embeds, **kwargs)

    model.prepare_inputs_for_generation = prepare_inputs_for_generation


def unusable(name: str, reason: str) -> InputError:
    """The error for a language model that cannot be used."""
    return InputError(
        f"language model {name} cannot be used: {reason}. Choose another causal language model."
    )


@contextmanager
def describe_unusable(name: str, reason: str) -> Iterator[None]:
    """Describe any error of a block as one about the language model."""
    try:
        yield
    except Exception as error:  # families raise what they like
        text = f"it {reason} ({type(error).__name__}: {str(error)[:200]})"
        raise unusable(name, text) from error


def allowed_difference(model: Any) -> float:
    """How far log-probabilities may differ in the precision of a model, in nats."""
    if model.dtype in (torch.float32, torch.float64):
        return TOLERANCE_NATS
    return HALF_PRECISION_STEPS * torch.finfo(model.dtype).eps


def make_probe(model: Any, tokenizer: Any) -> Probe:
    """Read the two rows of the probe as token ids, one at a time."""
    n_embeddings = model.get_input_embeddings().num_embeddings
    ids = [i for i in tokenizer(PROBE, add_special_tokens=False)["input_ids"] if i < n_embeddings]
    first, second = BRANCH_LENGTHS
    ids = list(islice(cycle(ids or [0]), PREFIX_LENGTH + first + second - 1))
    shared = ids[: PREFIX_LENGTH + 1]
    rows = [ids[: PREFIX_LENGTH + first], shared + ids[PREFIX_LENGTH + first :]]
    return Probe(rows, [read_row(model, row) for row in rows])


def read_row(model: Any, row: Sequence[int]) -> Tensor:
    """Log-probabilities (length, vocab_size) of one text, by the model's own forward."""
    logits = model(input_ids=torch.tensor([row], device=model.device)).logits
    return logits[0].float().log_softmax(-1)


def embed_rows(
    model: Any, rows: Sequence[Sequence[int]], shared: int | None = None
) -> tuple[Tensor, Tensor]:
    """Embeddings (n, L, hidden_size) and attention mask (n, L) of rows that are padded.

    On the right, or after `shared` tokens.
    """
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for number, row in enumerate(rows):
        columns = torch.arange(len(row))
        columns[len(row) if shared is None else shared :] += ids.shape[1] - len(row)
        ids[number, columns], mask[number, columns] = torch.tensor(row), 1
    embeds = model.get_input_embeddings()(ids.to(model.device))
    return embeds, mask.to(model.device)


def largest_difference(logits: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Largest difference of log-probabilities, in nats; of each row as many as there are."""
    return max(
        float((row.float().log_softmax(-1)[: len(log_probs)] - log_probs).abs().max())
        for row, log_probs in zip(logits, expected, strict=True)
    )


def causal_deviation(model: Any, probe: Probe) -> float:
    """Difference that later tokens make to earlier ones."""
    start = read_row(model, probe.rows[0][:PREFIX_LENGTH])
    return largest_difference([probe.log_probs[0][:PREFIX_LENGTH]], [start])


def padded_deviation(model: Any, probe: Probe) -> float:
    """Difference of a padded batch of embeddings."""
    embeds, mask = embed_rows(model, probe.rows)
    positions = torch.arange(embeds.shape[1], device=model.device)
    logits, _ = forward_logits(model, positions, inputs_embeds=embeds, attention_mask=mask)
    return largest_difference(list(logits), probe.log_probs)


def generation_deviation(model: Any, rows: Sequence[Sequence[int]], shared: int = 0) -> float:
    """Difference of the first two generated tokens of rows that are padded on the left.

    Their first `shared` tokens stand before the padding, and are read once.
    """
    embeds, mask = embed_rows(model, rows, shared)
    prefix = {"past_key_values": read_prefix(model, embeds, shared)} if shared else {}
    generated = model.generate(
        inputs_embeds=embeds,
        attention_mask=mask,
        max_new_tokens=2,
        min_new_tokens=2,
        do_sample=False,
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
        **prefix,
    )
    first = generated.sequences[:, 0].tolist()
    expected = [read_row(model, [*row, token])[-2:] for row, token in zip(rows, first, strict=True)]
    return largest_difference(list(torch.stack(generated.logits, 1)), expected)


def prefix_deviation(model: Any, probe: Probe) -> float:
    """Difference of the rest of both rows after their common beginning, which is read once."""
    embeds, mask = embed_rows(model, probe.rows)
    logits, _ = forward_logits(
        model,
        torch.arange(embeds.shape[1] - PREFIX_LENGTH, device=model.device),
        inputs_embeds=embeds[:, PREFIX_LENGTH:],
        attention_mask=mask,
        past_key_values=read_prefix(model, embeds, PREFIX_LENGTH),
    )
    return largest_difference(list(logits), [rest[PREFIX_LENGTH:] for rest in probe.log_probs])


def row_logits_deviation(model: Any, probe: Probe) -> float:
    """Difference of the logits at other positions in each row."""
    embeds, mask = embed_rows(model, probe.rows)
    selected = mask.bool()
    selected[0, ::2] = False
    logits = selected_logits(model, selected, inputs_embeds=embeds, attention_mask=mask)
    parts = logits.split(selected.sum(1).tolist())
    rows = zip(probe.log_probs, selected, strict=True)
    return largest_difference(parts, [row[s[: len(row)]] for row, s in rows])


def tree_deviation(model: Any, probe: Probe) -> float:
    """Difference of the log-probability of each row's rest, read as a tree."""
    limit = unwindowed_length(model)
    trie = TokenTrie([row[PREFIX_LENGTH:] for row in probe.rows]).to(model.device)
    if limit and PREFIX_LENGTH + len(trie.tokens) > limit:
        return math.inf  # prompts are longer than the probe
    embeds, _ = embed_rows(model, probe.rows[:1])
    logits, cache = read_prompt(model, embeds[:, :PREFIX_LENGTH].repeat(2, 1, 1))
    scores = score_tree(model, trie, logits, cache)
    differences = []
    for row, path, log_probs in zip(probe.rows, trie.paths, probe.log_probs, strict=True):
        targets = torch.tensor(row[PREFIX_LENGTH:], device=model.device)
        expected = log_probs[PREFIX_LENGTH - 1 : -1].gather(1, targets[:, None])[:, 0]
        differences.append(float((scores[:, path] - expected).abs().max()))
    return max(differences)
