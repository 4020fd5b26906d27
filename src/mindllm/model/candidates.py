"""Log-likelihood of texts given fMRI tokens; many candidates are read as one tree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from mindllm.model.processing import IGNORE_INDEX, EncodedPrompt

if TYPE_CHECKING:
    from transformers import DynamicCache

    from mindllm.model.modeling import MindLLM


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
    ends : Tensor of shape (n_sequences,)
        Last node of each sequence.
    ancestors : Tensor of shape (n, n)
        Whether the column is an ancestor of the row; a node is its own ancestor.

    Examples
    --------
    >>> trie = TokenTrie([[5, 6], [5, 7]])
    >>> trie.tokens.tolist(), trie.parents.tolist()
    ([5, 6, 7], [-1, 0, 0])
    """

    def __init__(self, sequences: Sequence[Sequence[int]]) -> None:
        nodes: dict[tuple[int, ...], int] = {}
        for sequence in sequences:
            for stop in range(1, len(sequence) + 1):
                nodes.setdefault(tuple(sequence[:stop]), len(nodes))
        self.tokens = torch.tensor([path[-1] for path in nodes])
        self.depth = torch.tensor([len(path) - 1 for path in nodes])
        self.parents = torch.tensor([nodes.get(path[:-1], -1) for path in nodes])
        self.ends = torch.tensor([nodes[tuple(sequence)] for sequence in sequences])
        self.ancestors = torch.eye(len(nodes), dtype=torch.bool)
        for node, parent in enumerate(self.parents.tolist()):
            if parent >= 0:
                self.ancestors[node] |= self.ancestors[parent]

    def to(self, device: torch.device) -> TokenTrie:
        """Move all tensors in place."""
        for name, tensor in vars(self).items():
            setattr(self, name, tensor.to(device))
        return self


@torch.no_grad()
def score_candidates(
    model: MindLLM,
    fmri_tokens: Tensor,
    candidates: Sequence[str],
    question: str | None = None,
    batch_size: int = 8,
) -> Tensor:
    """Log-likelihood of every candidate answer given every trial's fMRI tokens.

    The prompt is read once per trial. The candidates are read as one tree: a node attends to the
    prompt and its ancestors, and an answer's log-likelihood is the sum along its path.

    Parameters
    ----------
    model : MindLLM
    fmri_tokens : Tensor of shape (n_trials, num_fmri_tokens, token_dim)
    candidates : sequence of str
    question : str, optional
        By default the question that the model was trained with.
    batch_size : int
        Trials read at once.

    Returns
    -------
    Tensor of shape (n_trials, n_candidates)
        Nats, on the CPU.
    """
    conversations = [model.build_conversation(question, text) for text in candidates]
    prompts = [model.processor(turns) for turns in conversations]
    first = min(int((p.labels != IGNORE_INDEX).argmax()) for p in prompts)
    answers = [p.labels[first:][p.labels[first:] != IGNORE_INDEX].tolist() for p in prompts]
    trie = TokenTrie(answers).to(model.device)
    ids = torch.as_tensor(prompts[0].input_ids[:first], device=model.device)[None]
    positions = torch.as_tensor(prompts[0].fmri_token_positions, device=model.device)[None]
    scores = []
    for batch in fmri_tokens.split(batch_size):
        n = len(batch)
        inputs = model.prepare_inputs_embeds(ids.expand(n, -1), positions.expand(n, -1), batch)
        log_probs = score_trie(model, inputs, trie)
        scores.append((log_probs @ trie.ancestors[trie.ends].float().T).cpu())
    return torch.cat(scores)


def score_trie(model: MindLLM, inputs_embeds: Tensor, trie: TokenTrie) -> Tensor:
    """Log-probability (n_trials, n_nodes) of every node of a tree after a prompt (n_trials, L)."""
    body = model.language_model.model.base_model
    head = model.language_model.model.get_output_embeddings()
    n, length = inputs_embeds.shape[:2]
    context = body(inputs_embeds=inputs_embeds, use_cache=True)
    visible = torch.cat([trie.ancestors.new_ones(len(trie.tokens), length), trie.ancestors], 1)
    hidden = body(
        input_ids=trie.tokens.expand(n, -1),
        attention_mask=visible.expand(n, 1, -1, -1),
        position_ids=(length + trie.depth).expand(n, -1),
        past_key_values=context.past_key_values,
    ).last_hidden_state
    before = torch.cat([context.last_hidden_state[:, -1:], hidden], 1)[:, trie.parents + 1]
    losses = [F.cross_entropy(head(row).float(), trie.tokens, reduction="none") for row in before]
    return -torch.stack(losses)


def prompt_log_likelihood(
    model: MindLLM, fmri_tokens: Tensor, prompts: Sequence[EncodedPrompt]
) -> tuple[Tensor, Tensor]:
    """Log-likelihood of the assistant's turns of each prompt; gradients reach the fMRI tokens.

    The beginning that all prompts share is read once.

    Parameters
    ----------
    model : MindLLM
    fmri_tokens : Tensor of shape (n_prompts, num_fmri_tokens, token_dim)
    prompts : sequence of EncodedPrompt

    Returns
    -------
    log_likelihoods : Tensor of shape (n_prompts,)
        Nats, summed over tokens.
    counts : Tensor of shape (n_prompts,)
        Number of tokens summed over.
    """
    batch = model.processor.pad(prompts).to(model.device)
    ids, positions = batch["input_ids"], batch["fmri_token_positions"]
    shared = int((ids == ids[:1]).all(0).cumprod(0)[: int(positions.min())].sum())
    past = prefill_prefix(model, ids[:1, :shared], len(prompts)) if shared else None
    inputs = model.prepare_inputs_embeds(ids, positions, fmri_tokens)[:, shared:]
    hidden = model.language_model.model.base_model(
        inputs_embeds=inputs, attention_mask=batch["attention_mask"], past_key_values=past
    ).last_hidden_state
    return sum_token_log_probs(model, hidden[:, :-1], batch["labels"][:, shared + 1 :])


@torch.no_grad()
def prefill_prefix(model: MindLLM, input_ids: Tensor, repeats: int) -> DynamicCache:
    """Key-value cache of a text (1, L) that begins every row of a batch of `repeats` rows."""
    body = model.language_model.model.base_model
    cache = body(input_ids=input_ids, use_cache=True).past_key_values
    cache.batch_repeat_interleave(repeats)
    return cache


def sum_token_log_probs(model: MindLLM, hidden: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probability of labels (n, L) from hidden states (n, L, hidden_size), and token counts.

    Logits are computed only where a label counts.
    """
    counted = labels != IGNORE_INDEX
    logits = model.language_model.model.get_output_embeddings()(hidden[counted]).float()
    log_probs = -F.cross_entropy(logits, labels[counted], reduction="none")
    rows = counted.nonzero()[:, 0]
    sums = torch.zeros(len(labels), device=log_probs.device).index_add(0, rows, log_probs)
    return sums, counted.sum(1)
