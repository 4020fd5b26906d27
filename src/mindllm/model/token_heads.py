"""Query outputs to an fMRI embedding, and the fMRI embedding to fMRI tokens."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mindllm.model.configuration import MindLLMConfig

INIT_LOGIT_SCALE = 60.0  # of the cosine of an fMRI embedding and a key


class MLPTokenHead(nn.Module):
    """A head that mixes all queries: an MLP makes one fMRI embedding, and that all tokens.

    Parameters
    ----------
    config : MindLLMConfig
    """

    def __init__(self, config: MindLLMConfig) -> None:
        super().__init__()
        c = config
        self.shape = (c.num_fmri_tokens, c.token_dim)
        self.embedding_dim = c.embedding_dim or c.hidden_size
        self.input_block = nn.Sequential(*input_layers(c), nn.GELU(), nn.Dropout(c.dropout))
        self.residual_blocks = nn.ModuleList(
            nn.Sequential(
                nn.Linear(c.hidden_size, c.hidden_size),
                nn.LayerNorm(c.hidden_size),
                nn.GELU(),
                nn.Dropout(c.residual_dropout),
            )
            for _ in range(c.num_residual_layers)
        )
        self.bottleneck = (
            nn.Linear(c.hidden_size, c.embedding_dim) if c.embedding_dim else nn.Identity()
        )
        out_dim = c.num_fmri_tokens * c.token_dim
        self.token_proj = (
            AssociativeMemory(c.memory_size, self.embedding_dim, out_dim)
            if c.memory_size
            else nn.Linear(self.embedding_dim, out_dim)
        )

    def embed(self, query_outputs: Tensor) -> Tensor:
        """fMRI embedding (B, embedding_dim) from query outputs (B, num_queries)."""
        x = self.input_block(query_outputs)
        for block in self.residual_blocks:
            x = x + block(x)
        return self.bottleneck(x)

    def tokens(self, embedding: Tensor) -> Tensor:
        """fMRI tokens (B, num_fmri_tokens, token_dim) from an fMRI embedding."""
        return self.token_proj(embedding).unflatten(-1, self.shape)


def input_layers(config: MindLLMConfig) -> list[nn.Module]:
    """Normalization of the query outputs, and a linear layer where there is one."""
    c = config
    layers: list[nn.Module] = [
        nn.BatchNorm1d(c.num_queries, affine=False)
        if c.token_head_norm == "batch"
        else nn.LayerNorm(c.num_queries)
    ]
    if c.token_head_input_layer:
        layers += [
            nn.Dropout(c.dropout),
            nn.Linear(c.num_queries, c.hidden_size),
            nn.LayerNorm(c.hidden_size),
        ]
    return layers


class AssociativeMemory(nn.Module):
    """Softmax key-value memory: fMRI embedding to flattened fMRI tokens.

    Parameters
    ----------
    num_entries : int
        Number M of key-value pairs.
    embedding_dim : int
        Size of the fMRI embedding. Only its direction counts, as in its alignment with text.
    out_dim : int
        Size of a value: num_fmri_tokens * token_dim.

    References
    ----------
    Modern Hopfield layer: Ramsauer et al. 2021, Hopfield networks is all you need,
    arXiv 2008.02217.

    Examples
    --------
    >>> AssociativeMemory(num_entries=4, embedding_dim=3, out_dim=6)(torch.ones(2, 3)).shape
    torch.Size([2, 6])
    """

    def __init__(self, num_entries: int, embedding_dim: int, out_dim: int) -> None:
        super().__init__()
        self.keys = nn.Parameter(F.normalize(torch.randn(num_entries, embedding_dim), dim=-1))
        self.values = nn.Parameter(torch.randn(num_entries, out_dim) * 3**-0.5)
        self.logit_scale = nn.Parameter(torch.tensor(INIT_LOGIT_SCALE).log())

    def forward(self, embedding: Tensor) -> Tensor:
        """Flattened fMRI tokens (B, out_dim) from fMRI embeddings (B, embedding_dim)."""
        similarity = F.normalize(embedding, dim=-1) @ F.normalize(self.keys, dim=-1).T
        return torch.softmax(similarity * self.logit_scale.exp(), -1) @ self.values


class PerQueryTokenHead(nn.Module):
    """A head that makes each query output a token of its own.

    The value projection is affine and attention weights sum to one, so it may follow attention.

    Parameters
    ----------
    config : MindLLMConfig
        With value_dim.
    """

    def __init__(self, config: MindLLMConfig) -> None:
        super().__init__()
        value_dim = config.value_dim or 1
        self.shape = (config.num_queries, value_dim)
        self.embedding_dim = config.num_queries * value_dim
        self.value_proj = nn.Linear(1, value_dim)
        self.token_proj = nn.Linear(value_dim, config.token_dim)

    def embed(self, query_outputs: Tensor) -> Tensor:
        """fMRI embedding (B, num_queries * value_dim) from query outputs (B, num_queries)."""
        return self.value_proj(query_outputs[..., None]).flatten(1)

    def tokens(self, embedding: Tensor) -> Tensor:
        """fMRI tokens (B, num_queries, token_dim) from an fMRI embedding."""
        return self.token_proj(embedding.unflatten(-1, self.shape))
