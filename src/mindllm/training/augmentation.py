"""Random changes of a batch in training: jittered coordinates and noise."""

import torch
from torch import Tensor
from torch.nn import functional as F

from mindllm.model.encoder import SCALE_MM, VoxelFeatures


def jitter_coordinates(
    voxels: VoxelFeatures, coord_jitter_mm: float, affine_jitter_sd: float
) -> VoxelFeatures:
    """Shift and stretch a subject's coordinates a little, as they differ between subjects.

    Parameters
    ----------
    voxels : VoxelFeatures
        With coordinates in MNI mm / 100.
    coord_jitter_mm : float
        Standard deviation of the shift along each axis, in mm.
    affine_jitter_sd : float
        Standard deviation of the entries of a linear map about identity.

    Returns
    -------
    VoxelFeatures
        With the same parcels.

    Examples
    --------
    >>> voxels = VoxelFeatures(torch.rand(5, 3), torch.zeros(5, 0, dtype=torch.int64))
    >>> torch.equal(jitter_coordinates(voxels, 0.0, 0.0).coords, voxels.coords)
    True
    """
    device = voxels.coords.device
    stretch = torch.eye(3) + affine_jitter_sd * torch.randn(3, 3)
    shift = coord_jitter_mm / SCALE_MM * torch.randn(3)
    return VoxelFeatures(voxels.coords @ stretch.to(device) + shift.to(device), voxels.parcel_ids)


def add_query_noise(query_outputs: Tensor, noise_sd: float) -> Tensor:
    """Add white noise to query outputs.

    Parameters
    ----------
    query_outputs : Tensor of shape (batch_size, num_queries)
    noise_sd : float
        Standard deviation, relative to that of the query outputs.

    Returns
    -------
    Tensor of shape (batch_size, num_queries)
    """
    scale = noise_sd * query_outputs.detach().std()
    return query_outputs + scale * torch.randn_like(query_outputs)


def add_embedding_noise(embeddings: Tensor, text_embeddings: Tensor, scale: float) -> Tensor:
    """Add noise to fMRI embeddings: those of new subjects are less precise than those in training.

    The noise lies in the directions in which texts differ, not in those that no text uses.

    Parameters
    ----------
    embeddings : Tensor of shape (batch_size, embedding_dim)
        fMRI embeddings.
    text_embeddings : Tensor of shape (n_texts, embedding_dim)
        Whitened embeddings of the texts.
    scale : float
        Greatest length of the noise, relative to that of the embedding.

    Returns
    -------
    Tensor of shape (batch_size, embedding_dim)

    Examples
    --------
    >>> noisy = add_embedding_noise(torch.ones(2, 3), torch.eye(3), scale=0.5)
    >>> bool(((noisy - 1).norm(dim=1) <= 0.5 * 3**0.5).all())
    True
    """
    size, device = len(embeddings), embeddings.device
    weights = torch.randn(size, len(text_embeddings), device=device)
    directions = F.normalize(weights @ text_embeddings, dim=-1)
    lengths = embeddings.norm(dim=-1, keepdim=True) * torch.rand(size, 1, device=device)
    return embeddings + scale * lengths * directions
