"""Neuroscience-informed attention: any number of voxels of any person -> a fixed number of fMRI tokens.

For one person with V voxels, values v (B x V), keys K (V x d) and learnable queries Q (N x d):

    A = softmax(Q K^T)   (N x V)   where each query looks; the activity does not enter
    z = v A^T            (B x N)   what it sees there

Keys come from where a voxel is (millimetres in MNI space) and the regions it belongs to. A depends on the person and the
weights alone, so it is computed once per person and batch, with the batch as the value dimension of the attention.
Source: MindLLM, Qiu et al., ICML 2025, arXiv 2502.15786, section 3.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mindllm.fmri.masker import VoxelSpace
from mindllm.model.configuration import EncoderConfig
from mindllm.model.token_heads import MixingHead, QueryHead

SCALE_MM = 100.0  # a brain spans about -100 to 100 mm in MNI space


@dataclass(frozen=True)
class Voxels:
    """A voxel space as the encoder reads it: `positions` (V, 3) and `regions` (V, P), numbered as in the model."""

    positions: Tensor
    regions: Tensor

    def __getitem__(self, keep: Tensor) -> "Voxels":
        return Voxels(self.positions[keep], self.regions[keep])

    @classmethod
    def join(cls, parts: "Sequence[Voxels]") -> "Voxels":
        """The voxels of several people, one after the other."""
        return cls(torch.cat([p.positions for p in parts]), torch.cat([p.regions for p in parts]))


class Encoder(nn.Module):
    """Voxels and their values -> fMRI tokens. `regions`: parcellation -> region names, in the model's own order (1, 2, ...)."""

    frequencies: Tensor

    def __init__(self, config: EncoderConfig, regions: Mapping[str, Sequence[str]]) -> None:
        super().__init__()
        self.config, self.regions = config, {p: list(names) for p, names in regions.items()}
        c, width = config, config.key_width
        self.register_buffer("frequencies", frequencies(c))
        widths = [2 * len(self.frequencies) + 3 * c.coordinates, *[width] * c.key_layers]
        layers = [layer for i, o in pairwise(widths) for layer in (nn.Linear(i, o), nn.GELU())]
        self.position_key = nn.Sequential(*layers[:-1])
        self.region_tables = nn.ModuleDict(
            {p: nn.Embedding(len(names) + 1, c.region_width, padding_idx=0) for p, names in self.regions.items()}
        )
        self.region_key = nn.Linear(c.region_width * len(self.regions), width, bias=False) if self.regions else None
        self.queries = nn.Parameter(torch.randn(c.n_queries, width))
        self.head = QueryHead(c) if c.value_width else MixingHead(c)

    @torch.no_grad()
    def place(self, spaces: Sequence[VoxelSpace], sample: int = 8192) -> None:
        """Start each query as a Gaussian receptive field of `field_mm`, around voxels spread evenly over these people.

        With orthonormal key weights, Q K^T is a sum of cosines of distance, whose exponential is close to a Gaussian.
        """
        if self.config.field_mm is None:
            return
        first = self.position_key[0]
        assert isinstance(first, nn.Linear)
        nn.init.orthogonal_(first.weight)
        nn.init.zeros_(first.bias)
        if self.region_key is not None:
            nn.init.zeros_(self.region_key.weight)  # regions come in as they are learned
        voxels = Voxels.join([self.locate(space) for space in spaces])
        voxels = voxels[torch.randperm(len(voxels.positions))[:sample]]
        centres = [0]
        distance = torch.full((len(voxels.positions),), torch.inf, device=voxels.positions.device)
        for _ in range(1, self.config.n_queries):  # farthest-point sampling
            distance = torch.minimum(distance, (voxels.positions - voxels.positions[centres[-1]]).square().sum(1))
            centres.append(int(distance.argmax()))
        self.queries.copy_(self.keys(voxels[torch.tensor(centres)]))

    def locate(self, space: VoxelSpace) -> Voxels:
        """A voxel space in the model's own terms: regions are matched by name; a parcellation it lacks is all zeros.

        Raises InputError for a region name that the model does not know.
        """
        device = self.queries.device
        if self.config.positions == "mm":
            positions = torch.tensor(space.mm, device=device) / SCALE_MM
        else:
            positions = torch.tensor(space.ijk, dtype=torch.float32, device=device)
        columns = [torch.from_numpy(space.numbers(p, names)) for p, names in self.regions.items()]
        regions = torch.stack(columns, 1) if columns else torch.zeros(len(space), 0, dtype=torch.int64)
        return Voxels(positions, regions.to(device))

    def keys(self, voxels: Voxels) -> Tensor:
        """K: (V, d) from positions and regions."""
        phase = 2 * math.pi * voxels.positions @ self.frequencies.T
        features = [phase.sin(), phase.cos()] + ([voxels.positions] if self.config.coordinates else [])
        keys = self.position_key(torch.cat(features, -1))
        if self.region_key is not None:
            found = [table(voxels.regions[:, i]) for i, table in enumerate(self.region_tables.values())]
            keys = keys + self.region_key(torch.cat(found, -1))
        return keys

    def attention(self, voxels: Voxels) -> Tensor:
        """A: (N, V), each row sums to one. A map of the brain: where each query looks."""
        return torch.softmax(self.queries @ self.keys(voxels).T * self.scale, -1)

    def look(self, voxels: Voxels, values: Tensor) -> Tensor:
        """Z = v A^T: (B, N) from values (B, V), without storing A where the backend can avoid it."""
        queries, keys = self.queries[None], self.keys(voxels)[None]
        return F.scaled_dot_product_attention(queries, keys, values.T[None], scale=self.scale)[0].T

    @property
    def scale(self) -> float:
        """What Q K^T is multiplied by: 1 / sqrt(d), or what makes a query a Gaussian of `field_mm`."""
        if self.config.field_mm is None:
            return self.config.key_width**-0.5
        curvature = (2 * math.pi * self.frequencies).square().sum().item() / 3  # of the sum of cosines, per axis
        return (SCALE_MM / self.config.field_mm) ** 2 / curvature

    def forward(self, groups: Sequence[tuple[Voxels, Tensor]]) -> Tensor:
        """fMRI tokens (B, T, width) of a batch that may mix people: one (voxels, values (b, V)) per person, in order."""
        return self.head.tokens(self.head.code(torch.cat([self.look(voxels, values) for voxels, values in groups])))


def frequencies(config: EncoderConfig) -> Tensor:
    """(F, 3) directions of the Fourier features in cycles per unit of position."""
    if config.fourier == "random":
        return config.sigma * torch.randn(config.n_frequencies, 3)
    octaves = SCALE_MM / config.longest_mm * torch.exp2(torch.arange(config.n_frequencies))
    return torch.cat([torch.eye(3) * octave for octave in octaves])
