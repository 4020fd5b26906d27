"""Log-likelihood of texts given fMRI tokens; many candidates are read as one tree."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mindllm.model.logits import (
    TokenTrie,
    forward_logits,
    max_tree_length,
    read_prompt,
    score_tree,
)
from mindllm.model.processing import IGNORE_INDEX, EncodedPrompt

if TYPE_CHECKING:
    from mindllm.model.modeling import MindLLM

MAX_LOGITS = 2**27  # that are in memory at once
ROWS_AT_ONCE = 32  # candidates that are read at once where they are not read as a tree


@torch.no_grad()
def score_candidates(
    model: MindLLM,
    fmri_tokens: Tensor,
    candidates: Sequence[str],
    question: str | None = None,
    batch_size: int = 8,
) -> Tensor:
    """Log-likelihood of every candidate answer given every trial's fMRI tokens.

    The prompt is read once per trial. The candidates are read as trees: a node attends to the
    prompt and its ancestors, and an answer's log-likelihood is the sum along its path. Where the
    language model cannot read trees, each candidate is read with its prompt.

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
    length = shared_length(prompts)
    trees = plan_trees(model, prompts, length, min(batch_size, len(fmri_tokens)))
    if trees is None:
        return score_rows(model, fmri_tokens, prompts)
    ids = torch.as_tensor(prompts[0].input_ids[:length], device=model.device)[None]
    positions = torch.as_tensor(prompts[0].fmri_token_positions, device=model.device)[None]
    scores = []
    for batch in fmri_tokens.split(batch_size):
        n = len(batch)
        inputs = model.prepare_inputs_embeds(ids.expand(n, -1), positions.expand(n, -1), batch)
        logits, cache = read_prompt(model.language_model.model, inputs)
        parts = []
        for trie, weights in trees:
            cache_of_tree = cache if len(trees) == 1 else copy.deepcopy(cache)
            log_probs = score_tree(model.language_model.model, trie, logits, cache_of_tree)
            parts.append((log_probs @ weights.T).cpu())
        scores.append(torch.cat(parts, 1))
    return torch.cat(scores)


def shared_length(prompts: Sequence[EncodedPrompt]) -> int:
    """Number of tokens that all prompts begin with and of which none counts."""
    longest = min(int((p.labels != IGNORE_INDEX).argmax()) for p in prompts)
    beginnings = np.stack([p.input_ids[:longest] for p in prompts])
    return int((beginnings == beginnings[0]).all(0).cumprod().sum())


def plan_trees(
    model: MindLLM, prompts: Sequence[EncodedPrompt], length: int, n_trials: int
) -> list[tuple[TokenTrie, Tensor]] | None:
    """Trees of what follows `length` shared tokens, with the nodes that count in each prompt.

    The weights of a tree are (n_prompts_of_the_tree, n_nodes). None where the language model
    cannot read trees, or not such long ones.
    """
    language_model = model.language_model
    if not language_model.shortcuts.token_tree or not length:
        return None
    limit = max_tree_length(language_model.model)
    max_nodes = MAX_LOGITS // (language_model.num_embeddings * max(n_trials, 1))
    if limit is not None:
        max_nodes = min(max_nodes, limit - length)
    trees = []
    for group in group_sequences([answer_tokens(p, length) for p in prompts], max_nodes):
        trie = TokenTrie([ids for ids, _ in group]).to(model.device)
        weights = torch.zeros(len(group), len(trie.tokens), device=model.device)
        for row, (_, counted) in enumerate(group):
            path = torch.tensor(trie.paths[row], device=model.device)
            weights[row, path] = torch.as_tensor(counted, device=model.device).float()
        trees.append((trie, weights))
        if len(trie.tokens) > max_nodes:
            return None
    return trees


def answer_tokens(prompt: EncodedPrompt, start: int) -> tuple[list[int], np.ndarray]:
    """Token ids from `start` to the last that counts, and which of them count."""
    counted = prompt.labels != IGNORE_INDEX
    stop = int(np.flatnonzero(counted)[-1]) + 1
    return prompt.input_ids[start:stop].tolist(), counted[start:stop]


def group_sequences(
    sequences: Sequence[tuple[list[int], np.ndarray]], max_nodes: int
) -> list[list[tuple[list[int], np.ndarray]]]:
    """Consecutive groups of sequences whose trees have at most `max_nodes`, or one sequence."""
    groups: list[list[tuple[list[int], np.ndarray]]] = []
    nodes: set[tuple[int, ...]] = set()
    for ids, counted in sequences:
        prefixes = {tuple(ids[:stop]) for stop in range(1, len(ids) + 1)}
        if not groups or len(nodes | prefixes) > max_nodes:
            groups.append([])
            nodes = set()
        groups[-1].append((ids, counted))
        nodes |= prefixes
    return groups


def score_rows(model: MindLLM, fmri_tokens: Tensor, prompts: Sequence[EncodedPrompt]) -> Tensor:
    """Log-likelihood (n_trials, n_prompts) of prompts, each read with every trial's tokens."""
    scores = torch.empty(len(fmri_tokens), len(prompts))
    for start in range(0, len(prompts), ROWS_AT_ONCE):
        part = prompts[start : start + ROWS_AT_ONCE]
        for trial, tokens in enumerate(fmri_tokens):
            repeated = tokens.expand(len(part), -1, -1)
            log_likelihoods, _ = prompt_log_likelihood(model, repeated, part)
            scores[trial, start : start + len(part)] = log_likelihoods.cpu()
    return scores


def prompt_log_likelihood(
    model: MindLLM, fmri_tokens: Tensor, prompts: Sequence[EncodedPrompt]
) -> tuple[Tensor, Tensor]:
    """Log-likelihood of the assistant's turns of each prompt; gradients reach the fMRI tokens.

    The beginning that all prompts share is read once, where the language model can do so.

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
    shared, past = 0, None
    if model.language_model.shortcuts.prefix_cache and positions.numel():
        shared = int((ids == ids[:1]).all(0).cumprod(0)[: int(positions.min())].sum())
    if shared:
        past = prefill_prefix(model, ids[:1, :shared], len(prompts))
    inputs = model.prepare_inputs_embeds(ids, positions, fmri_tokens)[:, shared:]
    labels = F.pad(batch["labels"], (0, 1), value=IGNORE_INDEX)[:, shared + 1 :]
    counted = labels != IGNORE_INDEX
    columns = counted.any(0).nonzero()[:, 0]  # logits are computed at these alone
    logits, _ = forward_logits(
        model.language_model.model,
        columns,
        inputs_embeds=inputs,
        attention_mask=batch["attention_mask"],
        past_key_values=past,
    )
    selected = counted[:, columns]
    log_probs = -F.cross_entropy(logits[selected].float(), labels[counted], reduction="none")
    sums = torch.zeros(len(labels), device=log_probs.device)
    return sums.index_add(0, counted.nonzero()[:, 0], log_probs), counted.sum(1)


@torch.no_grad()
def prefill_prefix(model: MindLLM, input_ids: Tensor, repeats: int) -> Any:
    """Key-value cache of a text (1, L) that begins every row of a batch of `repeats` rows."""
    language_model = model.language_model.model
    _, cache = read_prompt(language_model, language_model.get_input_embeddings()(input_ids))
    cache.batch_repeat_interleave(repeats)
    return cache
