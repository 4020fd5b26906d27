"""Queries and keys of an encoder before training: each query attends to one place or parcel."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mindllm.fmri.masker import VoxelMasker
from mindllm.model.encoder import FMRIEncoder, VoxelFeatures


@torch.no_grad()
def init_queries(
    encoder: FMRIEncoder, maskers: Sequence[VoxelMasker], num_voxels: int = 8192
) -> None:
    """Initialize queries as Gaussian receptive fields of `receptive_field_sd_mm`.

    Centers are voxels spread evenly over these subjects. With orthonormal key weights, Q K^T
    is a sum of cosines of distance, whose exponential is close to a Gaussian. Where keys have no
    coordinates, queries are the keys of voxels in different parcels instead, and as sharp.

    Parameters
    ----------
    encoder : FMRIEncoder
        Changed in place; as it is, without `receptive_field_sd_mm`.
    maskers : sequence of VoxelMasker
        Maskers of the training subjects.
    num_voxels : int
        Voxels, drawn at random, among which the centers are chosen.
    """
    if encoder.config.receptive_field_sd_mm is None:
        return
    if encoder.coord_proj is None:
        init_parcel_keys(encoder)
    else:
        first = encoder.coord_proj[0]
        assert isinstance(first, nn.Linear)
        nn.init.orthogonal_(first.weight)
        nn.init.zeros_(first.bias)
        if encoder.parcel_proj is not None:
            nn.init.zeros_(encoder.parcel_proj.weight)  # parcels enter as they are learned
    voxels = draw_voxels(encoder, maskers, num_voxels)
    points = encoder.compute_keys(voxels) if encoder.coord_proj is None else voxels.coords
    centers = sample_farthest_points(points, encoder.config.num_queries)
    encoder.queries.copy_(encoder.compute_keys(voxels[centers]))


def draw_voxels(
    encoder: FMRIEncoder, maskers: Sequence[VoxelMasker], num_voxels: int
) -> VoxelFeatures:
    """Draw voxels of all subjects at random, with one subject's in memory at a time."""
    ends = torch.tensor([len(masker) for masker in maskers]).cumsum(0)
    drawn = torch.randperm(int(ends[-1]))[:num_voxels]
    numbers = torch.searchsorted(ends, drawn, right=True)  # of the subject of each voxel
    order, device = numbers.argsort(stable=True), encoder.queries.device
    parts = []
    for number in numbers.unique().tolist():
        start = int(ends[number - 1]) if number else 0
        rows = (drawn[numbers == number] - start).to(device)
        parts.append(encoder.prepare_voxels(maskers[number])[rows])
    return VoxelFeatures.join(parts)[order.argsort().to(device)]


def init_parcel_keys(encoder: FMRIEncoder) -> None:
    """Initialize parcels as unit vectors, with keys as long as those of coordinates."""
    assert encoder.parcel_proj is not None
    for embedding in encoder.parcel_embeddings.values():
        assert isinstance(embedding, nn.Embedding)
        embedding.weight.copy_(F.normalize(embedding.weight, dim=1))
    nn.init.orthogonal_(encoder.parcel_proj.weight)
    encoder.parcel_proj.weight *= math.sqrt(len(encoder.frequencies) / len(encoder.parcel_names))


def sample_farthest_points(coords: Tensor, count: int) -> Tensor:
    """Indices (count,) of spread points: the first, then always the farthest from those before."""
    indices = [0]
    distances = torch.full((len(coords),), torch.inf, device=coords.device)
    for _ in range(1, count):
        from_last = (coords - coords[indices[-1]]).square().sum(1)
        distances = torch.minimum(distances, from_last)
        indices.append(int(distances.argmax()))
    return torch.tensor(indices)
