"""Logits by a language model's own forward: at chosen positions, after a text, of a token tree."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mindllm.model.token_log_probs import log_normalizers

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


def selected_logits(model: Any, selected: Tensor, **inputs: Any) -> Tensor:
    """Logits of the language model's own forward at other positions in each row.

    Its output layer is told to read these positions alone.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        A causal language model.
    selected : Tensor of shape (batch_size, L), bool
    **inputs
        Of the model's forward.

    Returns
    -------
    Tensor of shape (n_selected, vocab_size)
        Row by row.

    Raises
    ------
    ValueError
        If the model does not compute its logits by its output layer, from L positions.
    """

    def select(layer: Any, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden, *others = arguments
        if hidden.shape[:2] != selected.shape:
            raise ValueError(f"the output layer reads {tuple(hidden.shape)}")
        return (hidden[selected][None], *others)

    hook = model.get_output_embeddings().register_forward_pre_hook(select)
    try:
        logits: Tensor = model(**inputs).logits
    finally:
        hook.remove()
    if logits.shape[:2] != (1, int(selected.sum())):
        raise ValueError(f"the output layer gives {tuple(logits.shape)}")
    return logits[0]


def read_prefix(model: Any, inputs_embeds: Tensor, length: int) -> Any:
    """Key-value cache of the first `length` embeddings, which are the same in all rows.

    Gradients pass through it where the model is trained.

    Parameters
    ----------
    model : transformers.PreTrainedModel
    inputs_embeds : Tensor of shape (n, L, hidden_size)
    length : int

    Returns
    -------
    transformers.Cache or None
        Of n rows; None: of no length.
    """
    if not length:
        return None
    return repeat_cache(read_beginning(model, inputs_embeds[:1, :length]), len(inputs_embeds))


def read_beginning(model: Any, inputs_embeds: Tensor) -> Any:
    """Key-value cache of embeddings, with gradients where the model is trained.

    Parameters
    ----------
    model : transformers.PreTrainedModel
    inputs_embeds : Tensor of shape (1, L, hidden_size)

    Returns
    -------
    transformers.Cache
        Of one row; `repeat_cache` makes copies of it that can be appended to.
    """
    is_trained = torch.is_grad_enabled() and any(p.requires_grad for p in model.parameters())
    with torch.set_grad_enabled(is_trained):
        _, cache = read_prompt(model, inputs_embeds)
    return cache


def repeat_cache(cache: Any, count: int) -> Any:
    """Copy a cache of one row to `count` rows; gradients pass to the one row.

    Parameters
    ----------
    cache : transformers.Cache
        It does not change.
    count : int

    Returns
    -------
    transformers.Cache
    """
    # Tensors are not copied, which those with gradients cannot be: the repetition makes new ones.
    tensors = [v for layer in cache.layers for v in vars(layer).values() if isinstance(v, Tensor)]
    repeated = copy.deepcopy(cache, {id(tensor): tensor for tensor in tensors})
    repeated.batch_repeat_interleave(count)
    return repeated


class PrefixCache:
    """Keys and values of the beginnings of prompts, kept while the language model is frozen.

    Parameters
    ----------
    max_prefixes : int
        Beginnings that are kept; the one that was not used for longest is dropped.
    """

    def __init__(self, max_prefixes: int = 4) -> None:
        self.max_prefixes = max_prefixes
        self.caches: dict[tuple[object, ...], Any] = {}

    def read(self, model: Any, token_ids: Sequence[int]) -> Any:
        """Key-value cache of one row of a beginning without fMRI tokens.

        Parameters
        ----------
        model : transformers.PreTrainedModel
            Always the same one, whose weights do not change.
        token_ids : sequence of int

        Returns
        -------
        transformers.Cache
        """
        device = model.device
        is_mixed = torch.is_autocast_enabled(device.type)
        key = (tuple(token_ids), device, model.dtype, is_mixed)
        cache = self.caches.pop(key, None)
        if cache is None:
            ids = torch.tensor([list(token_ids)], device=device)
            with torch.no_grad():
                cache = read_beginning(model, model.get_input_embeddings()(ids))
        self.caches[key] = cache
        if len(self.caches) > self.max_prefixes:
            del self.caches[next(iter(self.caches))]
        return cache


def read_prompt(model: Any, inputs_embeds: Tensor, shared: int = 0) -> tuple[Tensor, Any]:
    """Read prompts (n, L, hidden_size) without padding.

    Parameters
    ----------
    model : transformers.PreTrainedModel
    inputs_embeds : Tensor of shape (n, L, hidden_size)
    shared : int
        Embeddings that are the same in all rows, which are read once.

    Returns
    -------
    logits : Tensor of shape (n, vocab_size)
        Of the token after the prompt.
    cache : transformers.Cache
    """
    inputs: dict[str, object] = {"inputs_embeds": inputs_embeds[:, shared:]}
    if shared:
        inputs["past_key_values"] = read_prefix(model, inputs_embeds, shared)
        inputs["attention_mask"] = torch.ones_like(inputs_embeds[:, :, 0], dtype=torch.int64)
    last = torch.tensor([inputs_embeds.shape[1] - shared - 1], device=inputs_embeds.device)
    logits, cache = forward_logits(model, last, use_cache=True, **inputs)
    return logits[:, 0], cache


def score_tree(model: Any, trie: TokenTrie, prompt_logits: Tensor, cache: Any) -> Tensor:
    """Log-probability of every node of a tree after prompts that were read.

    A node attends to the prompt and to its ancestors. Leaves are not read: nothing follows them.

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
    parents = trie.parents.clamp(min=0)
    inner = parents.unique()  # sorted; with the first node
    n, length = len(prompt_logits), cache.get_seq_length()
    device, dtype = prompt_logits.device, model.dtype
    ancestors = trie.ancestors[inner][:, inner]
    visible = torch.cat([ancestors.new_ones(len(inner), length), ancestors], 1)
    # Added to attention scores, which every implementation of attention does with floats alone.
    mask = torch.zeros(visible.shape, dtype=dtype, device=device)
    mask = mask.masked_fill(~visible, torch.finfo(dtype).min)
    logits, _ = forward_logits(
        model,
        torch.arange(len(inner), device=device),
        input_ids=trie.tokens[inner].expand(n, -1),
        attention_mask=mask.expand(n, 1, -1, -1),
        position_ids=(length + trie.depth[inner]).expand(n, -1),
        past_key_values=cache,
    )
    is_first, row = trie.parents < 0, torch.searchsorted(inner, parents)
    selected = torch.where(is_first, prompt_logits[:, trie.tokens], logits[:, row, trie.tokens])
    norms = log_normalizers(logits.flatten(0, 1)).view(n, -1)
    start_norms = prompt_logits.float().logsumexp(-1, keepdim=True)
    return selected.float() - torch.where(is_first, start_norms, norms[:, row])


def unwindowed_length(model: Any) -> int | None:
    """Tokens at most, padding and nodes of trees included, that fit all windows and positions.

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
