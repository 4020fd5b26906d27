"""From what the queries see to fMRI tokens: a head that mixes all queries, and one that makes each query a token."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mindllm.model.configuration import MindLLMConfig

INIT_LOGIT_SCALE = 60.0  # of a cosine between a code and what it is compared with


class MLPTokenHead(nn.Module):
    """z (B, N) -> a code of all queries together (B, code width) -> T tokens at once."""

    def __init__(self, config: MindLLMConfig) -> None:
        super().__init__()
        c = config
        self.shape, self.embedding_dim = (
            (c.num_fmri_tokens, c.token_dim),
            c.embedding_dim or c.hidden_size,
        )
        norm = (
            nn.BatchNorm1d(c.num_queries, affine=False)
            if c.token_head_norm == "batch"
            else nn.LayerNorm(c.num_queries)
        )
        entry = (
            [
                nn.Dropout(c.dropout),
                nn.Linear(c.num_queries, c.hidden_size),
                nn.LayerNorm(c.hidden_size),
            ]
            if c.token_head_input_layer
            else []
        )
        self.input_block = nn.Sequential(norm, *entry, nn.GELU(), nn.Dropout(c.dropout))
        self.residual_blocks = nn.ModuleList(
            nn.Sequential(
                nn.Linear(c.hidden_size, c.hidden_size),
                nn.LayerNorm(c.hidden_size),
                nn.GELU(),
                nn.Dropout(c.residual_dropout),
            )
            for _ in range(c.num_residual_layers)
        )
        wide = c.num_fmri_tokens * c.token_dim
        self.bottleneck = (
            nn.Linear(c.hidden_size, c.embedding_dim) if c.embedding_dim else nn.Identity()
        )
        self.token_proj = (
            AssociativeMemory(c.memory_size, self.embedding_dim, wide)
            if c.memory_size
            else nn.Linear(self.embedding_dim, wide)
        )

    def embed(self, query_outputs: Tensor) -> Tensor:
        """(B, code width) from z (B, N)."""
        x = self.input_block(query_outputs)
        for layer in self.residual_blocks:
            x = x + layer(x)
        return self.bottleneck(x)

    def tokens(self, embedding: Tensor) -> Tensor:
        """fMRI tokens (B, T, width) from a code."""
        return self.token_proj(embedding).unflatten(-1, self.shape)


class AssociativeMemory(nn.Module):
    """Two linear layers with a softmax between them: what a code is like, then what goes with that.

    Only the direction of a code counts, as in its alignment with text.
    """

    def __init__(self, num_entries: int, embedding_dim: int, out_dim: int) -> None:
        super().__init__()
        self.keys = nn.Parameter(F.normalize(torch.randn(num_entries, embedding_dim), dim=-1))
        self.values = nn.Parameter(torch.randn(num_entries, out_dim) * 3**-0.5)
        self.logit_scale = nn.Parameter(torch.tensor(INIT_LOGIT_SCALE).log())

    def forward(self, embedding: Tensor) -> Tensor:
        likeness = F.normalize(embedding, dim=-1) @ F.normalize(self.keys, dim=-1).T
        return torch.softmax(likeness * self.logit_scale.exp(), -1) @ self.values


class PerQueryTokenHead(nn.Module):
    """z (B, N) -> one token per query. The value projection is affine and A's rows sum to one, so it may come after A."""

    def __init__(self, config: MindLLMConfig) -> None:
        super().__init__()
        c = config
        self.shape, self.embedding_dim = (
            (c.num_queries, c.value_dim or 1),
            c.num_queries * (c.value_dim or 1),
        )
        self.value_proj = nn.Linear(1, c.value_dim or 1)
        self.token_proj = nn.Linear(c.value_dim or 1, c.token_dim)

    def embed(self, query_outputs: Tensor) -> Tensor:
        """(B, N * value width) from z (B, N)."""
        return self.value_proj(query_outputs[..., None]).flatten(1)

    def tokens(self, embedding: Tensor) -> Tensor:
        """fMRI tokens (B, T, width) from a code."""
        return self.token_proj(embedding.unflatten(-1, self.shape))
