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

from mindllm.fmri.masker import VoxelMasker
from mindllm.model.configuration import MindLLMConfig
from mindllm.model.token_heads import MLPTokenHead, PerQueryTokenHead

SCALE_MM = 100.0  # a brain spans about -100 to 100 mm in MNI space


@dataclass(frozen=True)
class VoxelFeatures:
    """A voxel space as the encoder reads it: `positions` (V, 3) and `regions` (V, P), numbered as in the model."""

    coords: Tensor
    parcel_ids: Tensor

    def __getitem__(self, keep: Tensor) -> "VoxelFeatures":
        return VoxelFeatures(self.coords[keep], self.parcel_ids[keep])

    @classmethod
    def join(cls, parts: "Sequence[VoxelFeatures]") -> "VoxelFeatures":
        """The voxels of several people, one after the other."""
        return cls(torch.cat([p.coords for p in parts]), torch.cat([p.parcel_ids for p in parts]))


class FMRIEncoder(nn.Module):
    """Voxels and their values -> fMRI tokens. `regions`: parcellation -> region names, in the model's own order (1, 2, ...)."""

    frequencies: Tensor

    def __init__(self, config: MindLLMConfig, parcel_names: Mapping[str, Sequence[str]]) -> None:
        super().__init__()
        self.config, self.parcel_names = (
            config,
            {p: list(names) for p, names in parcel_names.items()},
        )
        c, width = config, config.key_dim
        self.register_buffer("frequencies", frequencies(c))
        widths = [2 * len(self.frequencies) + 3 * c.append_coordinates, *[width] * c.num_key_layers]
        layers = [layer for i, o in pairwise(widths) for layer in (nn.Linear(i, o), nn.GELU())]
        self.coord_proj = nn.Sequential(*layers[:-1])
        self.parcel_embeddings = nn.ModuleDict(
            {
                p: nn.Embedding(len(names) + 1, c.parcel_embedding_dim, padding_idx=0)
                for p, names in self.parcel_names.items()
            }
        )
        self.parcel_proj = (
            nn.Linear(c.parcel_embedding_dim * len(self.parcel_names), width, bias=False)
            if self.parcel_names
            else None
        )
        self.queries = nn.Parameter(torch.randn(c.num_queries, width))
        self.head = PerQueryTokenHead(c) if c.value_dim else MLPTokenHead(c)

    @torch.no_grad()
    def init_queries(self, maskers: Sequence[VoxelMasker], sample: int = 8192) -> None:
        """Start each query as a Gaussian receptive field of `field_mm`, around voxels spread evenly over these people.

        With orthonormal key weights, Q K^T is a sum of cosines of distance, whose exponential is close to a Gaussian.
        """
        if self.config.receptive_field_sd_mm is None:
            return
        first = self.coord_proj[0]
        assert isinstance(first, nn.Linear)
        nn.init.orthogonal_(first.weight)
        nn.init.zeros_(first.bias)
        if self.parcel_proj is not None:
            nn.init.zeros_(self.parcel_proj.weight)  # regions come in as they are learned
        voxels = VoxelFeatures.join([self.prepare_voxels(space) for space in maskers])
        voxels = voxels[torch.randperm(len(voxels.coords))[:sample]]
        centres = [0]
        distance = torch.full((len(voxels.coords),), torch.inf, device=voxels.coords.device)
        for _ in range(1, self.config.num_queries):  # farthest-point sampling
            distance = torch.minimum(
                distance, (voxels.coords - voxels.coords[centres[-1]]).square().sum(1)
            )
            centres.append(int(distance.argmax()))
        self.queries.copy_(self.compute_keys(voxels[torch.tensor(centres)]))

    def prepare_voxels(self, masker: VoxelMasker) -> VoxelFeatures:
        """A voxel space in the model's own terms: regions are matched by name; a parcellation it lacks is all zeros.

        Raises InputError for a region name that the model does not know.
        """
        device = self.queries.device
        if self.config.coordinate_system == "mni_mm":
            positions = torch.tensor(masker.coords_mm, device=device) / SCALE_MM
        else:
            positions = torch.tensor(masker.voxel_indices, dtype=torch.float32, device=device)
        columns = [
            torch.from_numpy(masker.encode_parcels(p, names))
            for p, names in self.parcel_names.items()
        ]
        regions = (
            torch.stack(columns, 1) if columns else torch.zeros(len(masker), 0, dtype=torch.int64)
        )
        return VoxelFeatures(positions.to(self.queries.dtype), regions.to(device))

    def compute_keys(self, voxels: VoxelFeatures) -> Tensor:
        """K: (V, d) from positions and regions."""
        phase = 2 * math.pi * voxels.coords @ self.frequencies.T
        features = [phase.sin(), phase.cos()] + (
            [voxels.coords] if self.config.append_coordinates else []
        )
        keys = self.coord_proj(torch.cat(features, -1))
        if self.parcel_proj is not None:
            found = [
                table(voxels.parcel_ids[:, i])
                for i, table in enumerate(self.parcel_embeddings.values())
            ]
            keys = keys + self.parcel_proj(torch.cat(found, -1))
        return keys

    def attention_weights(self, voxels: VoxelFeatures) -> Tensor:
        """A: (N, V), each row sums to one. A map of the brain: where each query looks."""
        return torch.softmax(self.queries @ self.compute_keys(voxels).T * self.scale, -1)

    def attend(self, voxels: VoxelFeatures, betas: Tensor) -> Tensor:
        """Z = v A^T: (B, N) from values (B, V), without storing A where the backend can avoid it."""
        queries, keys = self.queries[None], self.compute_keys(voxels)[None]
        return F.scaled_dot_product_attention(queries, keys, betas.T[None], scale=self.scale)[0].T

    @property
    def scale(self) -> float:
        """What Q K^T is multiplied by: 1 / sqrt(d), or what makes a query a Gaussian of `field_mm`."""
        if self.config.receptive_field_sd_mm is None:
            return self.config.key_dim**-0.5
        curvature = (
            2 * math.pi * self.frequencies
        ).square().sum().item() / 3  # of the sum of cosines, per axis
        return (SCALE_MM / self.config.receptive_field_sd_mm) ** 2 / curvature

    def forward(self, groups: Sequence[tuple[VoxelFeatures, Tensor]]) -> Tensor:
        """fMRI tokens (B, T, width) of a batch that may mix people: one (voxels, values (b, V)) per person, in order."""
        return self.head.tokens(
            self.head.embed(torch.cat([self.attend(voxels, values) for voxels, values in groups]))
        )


def frequencies(config: MindLLMConfig) -> Tensor:
    """(F, 3) directions of the Fourier features in cycles per unit of position."""
    if config.fourier_features == "gaussian":
        return config.fourier_scale * torch.randn(config.num_frequencies, 3)
    octaves = SCALE_MM / config.max_wavelength_mm * torch.exp2(torch.arange(config.num_frequencies))
    return torch.cat([torch.eye(3) * octave for octave in octaves])
