"""Logits by a language model's own forward: at chosen positions, after a text, of a token tree."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

# Options of a configuration beyond which attention does not reach, or positions do not go.
LIMITS = (
    "max_position_embeddings",
    "max_seq_len",
    "sliding_window",
    "attention_chunk_size",
    "window_size",
)


class TokenTrie:
    """Token sequences as a prefix tree of n nodes, so that a shared beginning is read once.

    Parameters
    ----------
    sequences : sequence of sequence of int
        Token ids of each text.

    Attributes
    ----------
    tokens, depth : Tensor of shape (n,)
        Token id and depth of each node.
    parents : Tensor of shape (n,)
        Parent of each node; -1 for a first token.
    paths : list of list of int
        Nodes of each sequence.
    ancestors : Tensor of shape (n, n)
        Whether the column is an ancestor of the row; a node is its own ancestor.

    Examples
    --------
    >>> trie = TokenTrie([[5, 6], [5, 7]])
    >>> trie.tokens.tolist(), trie.parents.tolist(), trie.paths
    ([5, 6, 7], [-1, 0, 0], [[0, 1], [0, 2]])
    """

    def __init__(self, sequences: Sequence[Sequence[int]]) -> None:
        nodes: dict[tuple[int, ...], int] = {}
        self.paths = [
            [
                nodes.setdefault(tuple(sequence[:stop]), len(nodes))
                for stop in range(1, len(sequence) + 1)
            ]
            for sequence in sequences
        ]
        self.tokens = torch.tensor([prefix[-1] for prefix in nodes])
        self.depth = torch.tensor([len(prefix) - 1 for prefix in nodes])
        self.parents = torch.tensor([nodes.get(prefix[:-1], -1) for prefix in nodes])
        self.ancestors = torch.eye(len(nodes), dtype=torch.bool)
        for node, parent in enumerate(self.parents.tolist()):
            if parent >= 0:
                self.ancestors[node] |= self.ancestors[parent]

    def to(self, device: torch.device) -> TokenTrie:
        """Move all tensors in place."""
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(self, name, value.to(device))
        return self


def forward_logits(model: Any, positions: Tensor, **inputs: Any) -> tuple[Tensor, Any]:
    """Logits of the language model's own forward at some positions, and its cache.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        A causal language model.
    positions : Tensor of shape (n_positions,)
        Where logits are needed; the same in every row.
    **inputs
        Of the model's forward.

    Returns
    -------
    logits : Tensor of shape (batch_size, n_positions, vocab_size)
    cache : transformers.Cache or None
        Keys and values, if `use_cache` is passed and the model has such a cache.
    """
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        output = model(**inputs, logits_to_keep=positions)
        return output.logits, getattr(output, "past_key_values", None)
    output = model(**inputs)
    return output.logits[:, positions], getattr(output, "past_key_values", None)


def read_prompt(model: Any, inputs_embeds: Tensor) -> tuple[Tensor, Any]:
    """Read prompts (n, L, hidden_size) without padding.

    Parameters
    ----------
    model : transformers.PreTrainedModel
    inputs_embeds : Tensor of shape (n, L, hidden_size)

    Returns
    -------
    logits : Tensor of shape (n, vocab_size)
        Of the token after the prompt.
    cache : transformers.Cache
    """
    last = torch.tensor([inputs_embeds.shape[1] - 1], device=inputs_embeds.device)
    logits, cache = forward_logits(model, last, inputs_embeds=inputs_embeds, use_cache=True)
    return logits[:, 0], cache


def score_tree(model: Any, trie: TokenTrie, prompt_logits: Tensor, cache: Any) -> Tensor:
    """Log-probability of every node of a tree after prompts that were read.

    A node attends to the prompt and to its ancestors.

    Parameters
    ----------
    model : transformers.PreTrainedModel
    trie : TokenTrie
    prompt_logits, cache
        As `read_prompt` returns them; nodes are appended to the cache.

    Returns
    -------
    Tensor of shape (n, n_nodes)
        In nats.
    """
    n, n_nodes = len(prompt_logits), len(trie.tokens)
    length, device, dtype = cache.get_seq_length(), prompt_logits.device, model.dtype
    visible = torch.cat([trie.ancestors.new_ones(n_nodes, length), trie.ancestors], 1)
    # Added to attention scores, which every implementation of attention does with floats alone.
    mask = torch.zeros(visible.shape, dtype=dtype, device=device)
    mask = mask.masked_fill(~visible, torch.finfo(dtype).min)
    logits, _ = forward_logits(
        model,
        torch.arange(n_nodes, device=device),
        input_ids=trie.tokens.expand(n, -1),
        attention_mask=mask.expand(n, 1, -1, -1),
        position_ids=(length + trie.depth).expand(n, -1),
        past_key_values=cache,
    )
    losses = []
    for start, nodes in zip(prompt_logits, logits, strict=True):
        before = torch.cat([start[None], nodes])[trie.parents + 1]
        losses.append(F.cross_entropy(before.float(), trie.tokens, reduction="none"))
    return -torch.stack(losses)


def max_tree_length(model: Any) -> int | None:
    """Tokens of a prompt and a tree at most, so that no window or table of positions is left.

    Parameters
    ----------
    model : transformers.PreTrainedModel

    Returns
    -------
    int or None
        None: the configuration states no limit.
    """
    config = model.config.get_text_config(decoder=True)
    limits = [getattr(config, name, None) for name in LIMITS]
    return min((limit for limit in limits if isinstance(limit, int) and limit > 0), default=None)
