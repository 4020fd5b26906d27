"""Log-likelihood of texts given fMRI tokens; many candidates are read as one tree."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mindllm.model.length_groups import (
    MAX_TOKENS_WITHOUT_GRADIENT,
    batch_overhead,
    group_by_length,
)
from mindllm.model.logits import (
    PrefixCache,
    TokenTrie,
    forward_logits,
    read_beginning,
    read_prompt,
    repeat_cache,
    score_tree,
    selected_logits,
    unwindowed_length,
)
from mindllm.model.processing import IGNORE_INDEX, EncodedPrompt
from mindllm.model.token_log_probs import token_log_probs

if TYPE_CHECKING:
    from mindllm.model.modeling import MindLLM

MAX_LOGITS = 2**27  # that are in memory at once
NODES_AT_ONCE = 128  # of a tree: attention is quadratic in them
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

    The beginning of the prompt, up to the fMRI tokens, is read once; the rest once per trial. The
    candidates are read as trees: a node attends to the
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
    length = count_shared_tokens(prompts, min(map(context_length, prompts)))
    # Neighbours in sorted order share the longest beginnings, so each is read in one tree.
    order = sorted(range(len(prompts)), key=lambda i: prompts[i].input_ids.tolist())
    in_order = [prompts[i] for i in order]
    trees = plan_trees(model, in_order, length, min(batch_size, len(fmri_tokens)))
    if trees is None:
        return score_rows(model, fmri_tokens, prompts)
    ids = torch.as_tensor(prompts[0].input_ids[:length], device=model.device)[None]
    positions = torch.as_tensor(prompts[0].fmri_token_positions, device=model.device)[None]
    scores = []
    for batch in fmri_tokens.split(batch_size):
        n = len(batch)
        inputs = model.prepare_inputs_embeds(ids.expand(n, -1), positions.expand(n, -1), batch)
        shared = count_prefix_tokens(model, prompts[:1] * n, batch)
        logits, cache = read_prompt(model.language_model.model, inputs, min(shared, length - 1))
        parts = []
        for trie, weights in trees:
            cache_of_tree = cache if len(trees) == 1 else copy.deepcopy(cache)
            log_probs = score_tree(model.language_model.model, trie, logits, cache_of_tree)
            parts.append((log_probs @ weights.T).cpu())
        scores.append(torch.cat(parts, 1))
    return torch.cat(scores)[:, torch.tensor(order).argsort()]


def is_sharded(model: Any) -> bool:
    """Whether processes share the weights, and so must call the model equally often (FSDP2)."""
    return any(hasattr(parameter, "device_mesh") for parameter in model.parameters())


def is_checkpointed(model: Any) -> bool:
    """Whether layers are computed again for their gradient."""
    return any(getattr(m, "gradient_checkpointing", False) and m.training for m in model.modules())


def context_length(prompt: EncodedPrompt) -> int:
    """Number of tokens before the first that counts."""
    return int(np.append(prompt.labels != IGNORE_INDEX, True).argmax())


def count_shared_tokens(prompts: Sequence[EncodedPrompt], longest: int) -> int:
    """Number of tokens, `longest` at most, that all prompts begin with."""
    beginnings = np.stack([p.input_ids[:longest] for p in prompts])
    return int((beginnings == beginnings[0]).all(0).cumprod().sum())


def count_prefix_tokens(
    model: MindLLM, prompts: Sequence[EncodedPrompt], fmri_tokens: Tensor, min_prompts: int = 2
) -> int:
    """Number of tokens that are read once for all prompts, where the language model can do so.

    They end before the fMRI tokens, unless these are the same in all rows and have no gradients.
    A layer that is computed again for its gradient cannot read a cache.
    """
    language_model = model.language_model
    if (
        len(prompts) < min_prompts
        or not language_model.shortcuts.prefix_cache
        or is_sharded(language_model.model)
        or (torch.is_grad_enabled() and is_checkpointed(language_model.model))
    ):
        return 0
    longest = [context_length(p) - 1 for p in prompts]
    if torch.is_grad_enabled() or (fmri_tokens != fmri_tokens[:1]).any():
        longest += [int(p.fmri_token_positions.min(initial=longest[0])) for p in prompts]
    return count_shared_tokens(prompts, min(longest))


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
    limit = unwindowed_length(language_model.model)
    max_nodes = MAX_LOGITS // (language_model.num_embeddings * max(n_trials, 1))
    if limit is not None:
        max_nodes = min(max_nodes, limit - length)
    trees = []
    sequences = [answer_tokens(p, length) for p in prompts]
    for group in group_sequences(sequences, min(max_nodes, NODES_AT_ONCE)):
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
    model: MindLLM,
    fmri_tokens: Tensor,
    prompts: Sequence[EncodedPrompt],
    prefixes: PrefixCache | None = None,
) -> tuple[Tensor, Tensor]:
    """Log-likelihood of the assistant's turns of each prompt; gradients reach the fMRI tokens.

    The beginning that all prompts share is read once, where the language model can do so. Prompts
    of similar length are read together, up to the last token that counts, and logits are computed
    before the tokens that count alone.

    Parameters
    ----------
    model : MindLLM
    fmri_tokens : Tensor of shape (n_prompts, num_fmri_tokens, token_dim)
    prompts : sequence of EncodedPrompt
    prefixes : PrefixCache, optional
        Of a language model whose weights do not change, for the next call.

    Returns
    -------
    log_likelihoods : Tensor of shape (n_prompts,)
        Nats, summed over tokens.
    counts : Tensor of shape (n_prompts,)
        Number of tokens summed over.
    """
    prompts = [trim_prompt(prompt) for prompt in prompts]
    shared, beginning = read_shared_beginning(model, fmri_tokens, prompts, prefixes)
    sums = torch.zeros(len(prompts), device=model.device)
    for rows in group_prompts(model, [len(p.input_ids) - shared for p in prompts]):
        part, index = [prompts[row] for row in rows], torch.tensor(rows, device=model.device)
        cache = repeat_cache(beginning, len(rows)) if shared else None
        log_probs, row_of = read_prompts(model, fmri_tokens[index], part, shared, cache)
        sums = sums.to(log_probs.dtype).index_add(0, index[row_of], log_probs)
    counts = [int((prompt.labels[1:] != IGNORE_INDEX).sum()) for prompt in prompts]
    return sums, torch.tensor(counts, device=model.device)


def trim_prompt(prompt: EncodedPrompt) -> EncodedPrompt:
    """Cut what follows the last token that counts, and the fMRI tokens: nothing depends on it."""
    counted = np.flatnonzero(prompt.labels != IGNORE_INDEX)
    stop = 1 + max(counted[-1:].sum(), prompt.fmri_token_positions.max(initial=0))
    return EncodedPrompt(prompt.input_ids[:stop], prompt.labels[:stop], prompt.fmri_token_positions)


def group_prompts(model: MindLLM, lengths: Sequence[int]) -> list[list[int]]:
    """Rows that are read together; all where processes share the weights, and read in step."""
    language_model = model.language_model.model
    if is_sharded(language_model):
        return [list(range(len(lengths)))]
    max_tokens = None if torch.is_grad_enabled() else MAX_TOKENS_WITHOUT_GRADIENT
    return group_by_length(lengths, batch_overhead(language_model), max_tokens)


def read_shared_beginning(
    model: MindLLM,
    fmri_tokens: Tensor,
    prompts: Sequence[EncodedPrompt],
    prefixes: PrefixCache | None,
) -> tuple[int, Any]:
    """Number of tokens that all prompts begin with, and their key-value cache of one row."""
    shared = count_prefix_tokens(model, prompts, fmri_tokens, 2 if prefixes is None else 1)
    if not shared:
        return 0, None
    first, language_model = prompts[0], model.language_model.model
    if prefixes is not None and shared <= first.fmri_token_positions.min(initial=shared):
        return shared, prefixes.read(language_model, first.input_ids[:shared].tolist())
    batch = model.processor.pad([first]).to(model.device)
    inputs = model.prepare_inputs_embeds(
        batch["input_ids"], batch["fmri_token_positions"], fmri_tokens[:1]
    )
    return shared, read_beginning(language_model, inputs[:, :shared])


def read_prompts(
    model: MindLLM, fmri_tokens: Tensor, prompts: Sequence[EncodedPrompt], shared: int, cache: Any
) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the tokens that count, and the prompt that each is in.

    The first `shared` tokens of all prompts are in the cache.
    """
    batch = model.processor.pad(prompts).to(model.device)
    inputs = model.prepare_inputs_embeds(
        batch["input_ids"], batch["fmri_token_positions"], fmri_tokens
    )
    labels = batch["labels"][:, shared + 1 :]
    counted = labels != IGNORE_INDEX
    language_model = model.language_model
    reading: dict[str, object] = {
        "inputs_embeds": inputs[:, shared:-1],  # nothing follows the last token
        "attention_mask": batch["attention_mask"][:, :-1],
        "past_key_values": cache,
        "use_cache": cache is not None,
    }
    if language_model.shortcuts.row_logits:
        logits = selected_logits(language_model.model, counted, **reading)
    else:
        columns = counted.any(0).nonzero()[:, 0]
        all_logits, _ = forward_logits(language_model.model, columns, **reading)
        logits = all_logits[counted[:, columns]]
    return token_log_probs(logits, labels[counted]), counted.nonzero()[:, 0]
