"""From what the queries see to fMRI tokens: a head that mixes all queries, and one that makes each query a token."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mindllm.model.configuration import EncoderConfig

SHARPNESS = 60.0  # of a cosine between a code and what it is compared with


class MixingHead(nn.Module):
    """z (B, N) -> a code of all queries together (B, code width) -> T tokens at once."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        c = config
        self.shape, self.code_width = (c.n_tokens, c.token_width), c.code_width or c.hidden
        norm = nn.BatchNorm1d(c.n_queries, affine=False) if c.head_norm == "batch" else nn.LayerNorm(c.n_queries)
        entry = (
            [nn.Dropout(c.dropout), nn.Linear(c.n_queries, c.hidden), nn.LayerNorm(c.hidden)] if c.head_entry else []
        )
        self.enter = nn.Sequential(norm, *entry, nn.GELU(), nn.Dropout(c.dropout))
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(c.hidden, c.hidden), nn.LayerNorm(c.hidden), nn.GELU(), nn.Dropout(c.layer_dropout))
            for _ in range(c.residual_layers)
        )
        wide = c.n_tokens * c.token_width
        self.narrow = nn.Linear(c.hidden, c.code_width) if c.code_width else nn.Identity()
        self.leave = Recall(c.memory, self.code_width, wide) if c.memory else nn.Linear(self.code_width, wide)

    def code(self, seen: Tensor) -> Tensor:
        """(B, code width) from z (B, N)."""
        x = self.enter(seen)
        for layer in self.layers:
            x = x + layer(x)
        return self.narrow(x)

    def tokens(self, code: Tensor) -> Tensor:
        """fMRI tokens (B, T, width) from a code."""
        return self.leave(code).unflatten(-1, self.shape)


class Recall(nn.Module):
    """Two linear layers with a softmax between them: what a code is like, then what goes with that.

    Only the direction of a code counts, as in its alignment with text.
    """

    def __init__(self, entries: int, code_width: int, width: int) -> None:
        super().__init__()
        self.keys = nn.Parameter(F.normalize(torch.randn(entries, code_width), dim=-1))
        self.values = nn.Parameter(torch.randn(entries, width) * 3**-0.5)
        self.log_sharpness = nn.Parameter(torch.tensor(SHARPNESS).log())

    def forward(self, code: Tensor) -> Tensor:
        likeness = F.normalize(code, dim=-1) @ F.normalize(self.keys, dim=-1).T
        return torch.softmax(likeness * self.log_sharpness.exp(), -1) @ self.values


class QueryHead(nn.Module):
    """z (B, N) -> one token per query. The value projection is affine and A's rows sum to one, so it may come after A."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        c = config
        self.shape, self.code_width = (c.n_queries, c.value_width or 1), c.n_queries * (c.value_width or 1)
        self.value = nn.Linear(1, c.value_width or 1)
        self.leave = nn.Linear(c.value_width or 1, c.token_width)

    def code(self, seen: Tensor) -> Tensor:
        """(B, N * value width) from z (B, N)."""
        return self.value(seen[..., None]).flatten(1)

    def tokens(self, code: Tensor) -> Tensor:
        """fMRI tokens (B, T, width) from a code."""
        return self.leave(code.unflatten(-1, self.shape))
