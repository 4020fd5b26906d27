"""Attention of every query and fMRI token over voxels, and images of it in MNI space.

A query's attention is a distribution over voxels that depends on their positions and parcels, not
on the betas. A token of a head that mixes the queries attends through all of them: its attention
is the mean of theirs, weighted by how far the token moves when the query output changes by one
standard deviation.
"""

from __future__ import annotations

import nibabel as nib
import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor, nn

from mindllm.fmri.masker import VoxelMasker
from mindllm.model.evidence import Betas
from mindllm.model.modeling import MindLLM
from mindllm.model.subject_alignment import evenly_spaced
from mindllm.utils.errors import InputError

MAX_TRIALS = 8  # that the sensitivity of tokens is averaged over
QUERIES_AT_ONCE = 64
MNI_RESOLUTION_MM = 3


@torch.inference_mode()
def attention_of_queries(model: MindLLM, masker: VoxelMasker) -> np.ndarray:
    """Fraction of each query's attention that every voxel gets.

    Parameters
    ----------
    model : MindLLM
    masker : VoxelMasker

    Returns
    -------
    ndarray of shape (num_queries, n_voxels), float32
        Rows sum to one.
    """
    weights = model.encoder.attention_weights(model.encoder.prepare_voxels(masker))
    return weights.cpu().float().numpy()


def attention_of_tokens(model: MindLLM, masker: VoxelMasker, betas: Betas) -> np.ndarray:
    """Fraction of each fMRI token's attention that every voxel gets.

    Parameters
    ----------
    model : MindLLM
    masker : VoxelMasker
    betas : ndarray or Tensor of shape (n_trials, n_voxels)
        Standardized betas of trials at which the tokens' sensitivity is measured; of many trials,
        a few are taken.

    Returns
    -------
    ndarray of shape (num_fmri_tokens, n_voxels), float64
        Rows sum to one.

    Raises
    ------
    InputError
        If a token depends on no query at these trials.
    """
    outputs = model.query_outputs(betas, masker)
    weights = token_sensitivity(model, outputs).double().cpu()
    totals = weights.sum(1, keepdim=True)
    if not (totals > 0).all():
        raise InputError(
            f"{masker.subject}: fMRI token {int((totals <= 0).nonzero()[0, 0])} depends on no "
            "query at these trials, so it attends to no voxel. Take other trials."
        )
    attention = torch.from_numpy(attention_of_queries(model, masker)).double()
    return ((weights / totals) @ attention).numpy()


def token_sensitivity(model: MindLLM, outputs: Tensor) -> Tensor:
    """How far each token moves with each query output.

    Parameters
    ----------
    model : MindLLM
    outputs : Tensor of shape (n_trials, num_queries)
        Query outputs of a subject.

    Returns
    -------
    Tensor of shape (num_fmri_tokens, num_queries)
        Root mean square over trials of the length of the token's derivative, per standard
        deviation of the query output over the trials (of a single trial: per unit).
    """
    spread = outputs.std(0, correction=0) if len(outputs) > 1 else torch.ones_like(outputs[0])
    rows = outputs[evenly_spaced(len(outputs), MAX_TRIALS)]
    head: nn.Module = model.encoder.head
    directions = torch.diag(spread)
    squares = torch.zeros(())

    def move(trial: Tensor, direction: Tensor) -> Tensor:
        def tokens(z: Tensor) -> Tensor:
            return head.tokens(head.embed(z[None]))[0]  # type: ignore[operator]

        return torch.func.jvp(tokens, (trial,), (direction,))[1].square().sum(-1)

    with torch.no_grad():
        for trial in rows:
            parts = [
                torch.func.vmap(move, in_dims=(None, 0))(trial, part)
                for part in directions.split(QUERIES_AT_ONCE)
            ]
            squares = squares + torch.cat(parts).T
    return (squares / len(rows)).sqrt()


def relative_to_uniform(attention: np.ndarray) -> np.ndarray:
    """Attention relative to what uniform attention gives every voxel (1)."""
    return attention * attention.shape[-1]


class MNIGrid:
    """Puts numbers per voxel into the MNI152 grid of nilearn's template.

    Each point of the grid takes the value of the nearest voxel, where one is at most half a
    diagonal of the subject's voxels away.

    Parameters
    ----------
    masker : VoxelMasker
        The subject's voxels with their MNI coordinates, also those of a native grid.
    resolution_mm : int
        Of the grid.

    Examples
    --------
    >>> import nibabel as nib
    >>> mask_img = nib.Nifti1Image(np.ones((2, 2, 2), np.uint8), np.diag([3.0, 3, 3, 1]))
    >>> masker = VoxelMasker.from_mask_img(mask_img)
    >>> img = MNIGrid(masker).to_img(np.arange(1.0, 9.0))
    >>> np.unique(img.get_fdata())
    array([0., 1., 2., 3., 4., 5., 6., 7., 8.])
    """

    def __init__(self, masker: VoxelMasker, resolution_mm: int = MNI_RESOLUTION_MM) -> None:
        from nilearn.datasets import load_mni152_template

        template = load_mni152_template(resolution=resolution_mm)
        self.shape, self.affine = template.shape, template.affine
        points = nib.affines.apply_affine(self.affine, np.indices(self.shape).reshape(3, -1).T)
        reach = np.linalg.norm(nib.affines.voxel_sizes(masker.affine)) / 2 + resolution_mm / 2
        distances, nearest = cKDTree(masker.coords_mm).query(points, distance_upper_bound=reach)
        self.inside = np.isfinite(distances)
        self.nearest = nearest[self.inside]

    def to_img(self, values: np.ndarray) -> nib.Nifti1Image:
        """Make an image of values (n_voxels,) or (n_maps, n_voxels); 0 where no voxel is."""
        values = np.asarray(values)
        volume = np.zeros((len(self.inside), *values.shape[:-1]), np.float32)
        volume[self.inside] = np.moveaxis(values[..., self.nearest], -1, 0)
        return nib.Nifti1Image(volume.reshape(self.shape + values.shape[:-1]), self.affine)
