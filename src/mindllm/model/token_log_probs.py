"""Log-probabilities of tokens from logits, in single precision or more, part by part."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK_SIZE = 2**19  # logits that are computed with at once, in single precision: 2 MiB


def token_log_probs(logits: Tensor, token_ids: Tensor) -> Tensor:
    """Log-probability of one token per row of logits.

    What is kept for the gradient are the logits themselves and a number per row; neither the
    log-probabilities nor a copy of the logits in single precision are stored.

    Parameters
    ----------
    logits : Tensor of shape (n, vocab_size)
    token_ids : Tensor of shape (n,), int64

    Returns
    -------
    Tensor of shape (n,)
        Nats; float64 where the logits are, else float32.

    Examples
    --------
    >>> token_log_probs(torch.zeros(1, 4), torch.tensor([2])).exp()
    tensor([0.2500])
    """
    return TokenLogProbs.apply(logits, token_ids)


class TokenLogProbs(torch.autograd.Function):
    """Autograd function of `token_log_probs`: the gradient is the token less the softmax."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, token_ids: Tensor) -> Tensor:
        norms = log_normalizers(logits)
        ctx.save_for_backward(logits, token_ids, norms)
        return logits.gather(1, token_ids[:, None])[:, 0].to(norms.dtype) - norms

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        logits, token_ids, norms = ctx.saved_tensors
        result = torch.empty_like(logits)
        row = 0
        for part in split_rows(logits):
            rows = slice(row, row + len(part))
            scale = gradient[rows, None]
            values = torch.sub(part.to(norms.dtype), norms[rows, None]).exp_().mul_(-scale)
            result[rows] = values.scatter_add_(1, token_ids[rows, None], scale)
            row += len(part)
        return result, None


def log_normalizers(logits: Tensor) -> Tensor:
    """Log of the sum of exponents (n,) of each row of logits (n, vocab_size), in nats.

    In single precision, or in double if the logits are; a few rows at a time, which stay in a
    processor's cache.

    Parameters
    ----------
    logits : Tensor of shape (n, vocab_size)

    Returns
    -------
    Tensor of shape (n,)

    Examples
    --------
    >>> log_normalizers(torch.zeros(1, 4)).exp()
    tensor([4.])
    """
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return torch.cat([part.to(dtype).logsumexp(-1) for part in split_rows(logits)])


def split_rows(logits: Tensor) -> tuple[Tensor, ...]:
    """Consecutive rows with about `CHUNK_SIZE` logits in all; one part where there is no row."""
    return logits.split(max(1, CHUNK_SIZE // logits.shape[1]))
