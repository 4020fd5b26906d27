"""The method step by step on two made-up subjects: what every step computes, and its checks."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mindllm.fmri.masker import VoxelMasker
from mindllm.fmri.scaling import standardize_betas
from mindllm.fmri.templates import (
    grey_matter_probability,
    load_bundled_atlas,
    sample_nearest_voxel,
)
from mindllm.model.configuration import PRESETS
from mindllm.model.encoder import FMRIEncoder, VoxelFeatures
from mindllm.model.token_heads import PerQueryTokenHead
from mindllm.simulate.random_fields import RandomFourierField

ATLAS = "HCPEx"
N_VOXELS = {"sub-01": 12_000, "sub-02": 15_000}
RESOLUTION_MM = 2.0
MIN_GREY_MATTER = 0.3
FRONT_MM = -30.0  # of the back of the brain, which the subjects' voxels are in
N_STIMULI = 8
N_WAVES = 200  # of a random field
PATCH_FWHM_MM, SIGNAL_FWHM_MM = 20.0, 40.0
NOISE_SD = 1.0  # of a voxel, as large as the signal
SEED = 0


@dataclass(frozen=True)
class SubjectSteps:
    """What the encoder computes for one subject, with V voxels, T trials and N queries.

    Parameters
    ----------
    masker : VoxelMasker
        The V voxels.
    betas : ndarray of shape (T, V)
        Standardized; trial t is stimulus t.
    features : ndarray of shape (V, 35)
        Sines and cosines, coordinates / 100 mm, and the embedding of the voxel's region.
    keys : ndarray of shape (V, key_dim)
    attention : ndarray of shape (N, V)
        Rows sum to one.
    query_outputs : ndarray of shape (T, N)
    tokens : ndarray of shape (T, N, token_dim)
    key_error, value_error, attention_error : float
        Largest difference between what the encoder computes and the same in other words: one
        linear layer of the 35 numbers; values projected before the attention; query outputs by
        the stored attention weights.
    """

    masker: VoxelMasker
    betas: np.ndarray
    features: np.ndarray
    keys: np.ndarray
    attention: np.ndarray
    query_outputs: np.ndarray
    tokens: np.ndarray
    key_error: float
    value_error: float
    attention_error: float


@dataclass(frozen=True)
class CoordinateSlip:
    """Coordinates that are concatenated twice.

    Parameters
    ----------
    n_features : int
        Numbers of a voxel: 38 for 35.
    rank : int
        How many of the 38 columns are linearly independent.
    message : str
        What a layer of 35 inputs says to 38.
    key_error : float
        Largest difference between keys of the 38 numbers and of the 35 with added weights.
    n_weights, n_weights_twice : int
        Weights of the layer with 35 and with 38 inputs.
    step_ratio : float
        How far a step of gradient descent moves the weights of the coordinates, relative to the
        layer of 35 inputs.
    """

    n_features: int
    rank: int
    message: str
    key_error: float
    n_weights: int
    n_weights_twice: int
    step_ratio: float


@dataclass(frozen=True)
class RegionSlip:
    """A region embedding that is made anew in every forward pass, in comparison with a learned one.

    Parameters
    ----------
    n_weights : int
        Numbers of the embedding that no optimizer and no checkpoint holds.
    cosine : float
        Mean cosine of a region's embedding in two passes.
    new_passes, kept_passes : tuple of two ndarrays of shape (num_numbers,)
        fMRI tokens of one trial in two passes: made anew, and kept.
    attention_moved : float
        Fraction of the attention that is on other voxels in the second pass, mean over queries.
    new_change, kept_change : float
        Norm of the difference of the tokens' departures from their mean over trials, relative to
        the norm of the departures in the first pass.
    """

    n_weights: int
    cosine: float
    new_passes: tuple[np.ndarray, np.ndarray]
    kept_passes: tuple[np.ndarray, np.ndarray]
    attention_moved: float
    new_change: float
    kept_change: float


@dataclass(frozen=True)
class Walkthrough:
    """All steps for two subjects, and what two slips do.

    Parameters
    ----------
    encoder : FMRIEncoder
        Of the preset `walkthrough`, with random weights.
    subjects : tuple of SubjectSteps
    n_common : int
        Voxels that both subjects have.
    common_key_error : float
        Largest difference of the keys of these voxels.
    same_stimulus, other_stimulus : float
        Mean correlation over queries of one subject's query outputs with the other's, of the same
        stimulus and of another one.
    coordinate_slip : CoordinateSlip
    region_slip : RegionSlip
    """

    encoder: FMRIEncoder
    subjects: tuple[SubjectSteps, ...]
    n_common: int
    common_key_error: float
    same_stimulus: float
    other_stimulus: float
    coordinate_slip: CoordinateSlip
    region_slip: RegionSlip


@torch.no_grad()
def compute_walkthrough() -> Walkthrough:
    """Compute all steps of the method for two made-up subjects; the result is always the same.

    Returns
    -------
    Walkthrough

    Raises
    ------
    InputError
        If the package of the atlas is not installed.
    """
    maskers, betas = make_subjects()
    encoder = make_encoder(maskers[0])
    subjects = tuple(compute_steps(encoder, *pair) for pair in zip(maskers, betas, strict=True))
    first, second = subjects
    common, rows, columns = common_voxels(first.masker, second.masker)
    same, other = mean_correlations(first.query_outputs, second.query_outputs)
    return Walkthrough(
        encoder=encoder,
        subjects=subjects,
        n_common=len(common),
        common_key_error=float(np.abs(first.keys[rows] - second.keys[columns]).max()),
        same_stimulus=same,
        other_stimulus=other,
        coordinate_slip=check_coordinate_slip(encoder, first),
        region_slip=check_region_slip(encoder, first),
    )


def make_subjects() -> tuple[list[VoxelMasker], list[np.ndarray]]:
    """Make two subjects of 12,000 and 15,000 voxels, and their standardized betas.

    A voxel's beta is a smooth random field of MNI space, one per stimulus and the same for both
    subjects, and noise of the voxel.
    """
    grid, coords_mm, labels, names = load_grid()
    signal_rng = np.random.default_rng([SEED, 0])
    field = RandomFourierField.draw(signal_rng, SIGNAL_FWHM_MM, N_WAVES)
    weights = signal_rng.normal(size=(N_STIMULI, N_WAVES))
    maskers, betas = [], []
    for number, (subject, n_voxels) in enumerate(N_VOXELS.items()):
        rng = np.random.default_rng([SEED, 1, number])
        patches = RandomFourierField.draw(rng, PATCH_FWHM_MM, N_WAVES).evaluate(coords_mm)
        order = np.argsort(-(rng.normal(size=N_WAVES) @ patches), kind="stable")
        kept = np.sort(order[:n_voxels])
        maskers.append(
            VoxelMasker(
                subject=subject,
                shape=grid.shape,
                affine=grid.affine,
                voxel_indices=grid.voxel_indices[kept],
                coords_mm=coords_mm[kept].astype(np.float32),
                parcel_labels={ATLAS: labels[kept]},
                parcel_names={ATLAS: names},
            )
        )
        signal = weights @ field.evaluate(coords_mm[kept])
        betas.append(standardize_betas(signal + rng.normal(0, NOISE_SD, signal.shape)))
    return maskers, betas


@dataclass(frozen=True)
class Grid:
    """A 2 mm grid in MNI space, and the voxels (G, 3) of it that a subject may have."""

    shape: tuple[int, int, int]
    affine: np.ndarray
    voxel_indices: np.ndarray


def load_grid() -> tuple[Grid, np.ndarray, np.ndarray, dict[int, str]]:
    """Load gray-matter voxels of the back of the brain: grid, coordinates, labels and names."""
    volume, atlas_affine, names = load_bundled_atlas(ATLAS)
    affine = atlas_affine @ np.diag([RESOLUTION_MM, RESOLUTION_MM, RESOLUTION_MM, 1])
    step = int(RESOLUTION_MM)
    voxel_indices = np.argwhere(volume[::step, ::step, ::step] > 0)
    coords_mm = voxel_indices @ affine[:3, :3].T + affine[:3, 3]
    kept = (coords_mm[:, 1] < FRONT_MM) & (grey_matter_probability(coords_mm) > MIN_GREY_MATTER)
    labels = sample_nearest_voxel(volume, atlas_affine, coords_mm[kept]).astype(np.int32)
    i, j, k = (math.ceil(size / step) for size in volume.shape)
    return Grid((i, j, k), affine, voxel_indices[kept]), coords_mm[kept], labels, names


def make_encoder(masker: VoxelMasker) -> FMRIEncoder:
    """Make the encoder of the preset `walkthrough`, with random weights, always the same."""
    names = masker.parcel_names[ATLAS]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        parcels = {ATLAS: [names[label] for label in sorted(names)]}
        return FMRIEncoder(PRESETS["walkthrough"], parcels).eval()


def voxel_features(encoder: FMRIEncoder, voxels: VoxelFeatures) -> Tensor:
    """Concatenate what a key is computed from: 24 + 3 + 8 = 35 numbers a voxel, (V, 35)."""
    phase = 2 * math.pi * voxels.coords @ encoder.frequencies.T
    regions = region_embedding(encoder)(voxels.parcel_ids[:, 0])
    return torch.cat([phase.sin(), phase.cos(), voxels.coords, regions], -1)


def region_embedding(encoder: FMRIEncoder) -> nn.Embedding:
    """Return the embedding of the atlas's regions."""
    embedding = encoder.parcel_embeddings[ATLAS]
    assert isinstance(embedding, nn.Embedding)
    return embedding


def key_layer(encoder: FMRIEncoder) -> tuple[Tensor, Tensor]:
    """Return weights (64, 35) and bias (64,) of the linear layer from the 35 numbers to a key."""
    assert encoder.coord_proj is not None
    assert encoder.parcel_proj is not None
    first = encoder.coord_proj[0]
    assert isinstance(first, nn.Linear)
    return torch.cat([first.weight, encoder.parcel_proj.weight], 1), first.bias


def compute_steps(encoder: FMRIEncoder, masker: VoxelMasker, betas: np.ndarray) -> SubjectSteps:
    """Compute every step for one subject, and that other words for a step give the same."""
    voxels, x = encoder.prepare_voxels(masker), torch.from_numpy(betas)
    keys, attention = encoder.compute_keys(voxels), encoder.attention_weights(voxels)
    features = voxel_features(encoder, voxels)
    query_outputs = encoder.attend(voxels, x)
    head = encoder.head
    assert isinstance(head, PerQueryTokenHead)
    values = head.value_proj(x[0, :, None])  # (V, 64): of the first trial
    projected_after = head.value_proj(query_outputs[0, :, None])
    return SubjectSteps(
        masker=masker,
        betas=betas,
        features=features.numpy(),
        keys=keys.numpy(),
        attention=attention.numpy(),
        query_outputs=query_outputs.numpy(),
        tokens=head.tokens(head.embed(query_outputs)).numpy(),
        key_error=largest_difference(F.linear(features, *key_layer(encoder)), keys),
        value_error=largest_difference(attention @ values, projected_after),
        attention_error=largest_difference(x @ attention.T, query_outputs),
    )


def largest_difference(first: Tensor, second: Tensor) -> float:
    """Return the largest absolute difference of two tensors of one shape."""
    return float((first - second).abs().max())


def common_voxels(
    first: VoxelMasker, second: VoxelMasker
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find voxels that two maskers on one grid share, and their rows in both."""
    first_numbers, second_numbers = (
        np.ravel_multi_index(tuple(masker.voxel_indices.T), masker.shape)
        for masker in (first, second)
    )
    return np.intersect1d(first_numbers, second_numbers, assume_unique=True, return_indices=True)


def mean_correlations(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """Correlate rows (T, N) of two subjects: mean of the same trials, and of different ones."""
    n_trials = len(first)
    correlations = np.corrcoef(first, second)[:n_trials, n_trials:]
    same = np.eye(n_trials, dtype=bool)
    return float(correlations[same].mean()), float(correlations[~same].mean())


def check_coordinate_slip(encoder: FMRIEncoder, steps: SubjectSteps) -> CoordinateSlip:
    """Concatenate the coordinates twice, and measure what that does."""
    weight, bias = key_layer(encoder)
    features = torch.from_numpy(steps.features)
    n_waves = 2 * len(encoder.frequencies)
    coords = slice(n_waves, n_waves + 3)
    twice = torch.cat([features[:, coords], features], 1)  # (V, 38)
    try:
        F.linear(twice, weight, bias)
        message = ""
    except RuntimeError as error:
        message = str(error)
    # Weights of both copies that add up to those of the single one: the same keys.
    half = weight.clone()
    half[:, coords] /= 2
    weight_twice = torch.cat([half[:, coords], half], 1)
    keys = F.linear(twice, weight_twice, bias)
    step = descend(weight, bias, features)[:, coords]
    steps_twice = descend(weight_twice, bias, twice)
    both = steps_twice[:, :3] + steps_twice[:, n_waves + 3 : n_waves + 6]
    return CoordinateSlip(
        n_features=twice.shape[1],
        rank=int(np.linalg.matrix_rank(twice.double().numpy())),
        message=message,
        key_error=largest_difference(keys, torch.from_numpy(steps.keys)),
        n_weights=weight.numel(),
        n_weights_twice=weight_twice.numel(),
        step_ratio=float(both.norm() / step.norm()),
    )


def descend(weight: Tensor, bias: Tensor, features: Tensor) -> Tensor:
    """Return a step of gradient descent, of rate 1, on the mean square of the keys."""
    with torch.enable_grad():
        leaf = weight.clone().requires_grad_()
        F.linear(features, leaf, bias).square().mean().backward()
    assert leaf.grad is not None
    return -leaf.grad


def check_region_slip(encoder: FMRIEncoder, steps: SubjectSteps) -> RegionSlip:
    """Make the region embedding anew in each of two passes, and measure what that does."""
    voxels = encoder.prepare_voxels(steps.masker)
    embedding = region_embedding(encoder)
    n_rows, size = embedding.weight.shape
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED + 1)
        new = [nn.Embedding(n_rows, size, padding_idx=0).weight for _ in range(2)]
    kept_tokens = [forward(encoder, voxels, steps.betas, embedding.weight)[1] for _ in range(2)]
    passes = [forward(encoder, voxels, steps.betas, weight) for weight in new]
    new_tokens = [tokens for _, tokens in passes]
    moved = (passes[0][0] - passes[1][0]).abs().sum(1).mean() / 2
    return RegionSlip(
        n_weights=embedding.weight.numel(),
        cosine=float(F.cosine_similarity(new[0][1:], new[1][1:]).mean()),
        new_passes=(new_tokens[0][0].flatten().numpy(), new_tokens[1][0].flatten().numpy()),
        kept_passes=(kept_tokens[0][0].flatten().numpy(), kept_tokens[1][0].flatten().numpy()),
        attention_moved=float(moved),
        new_change=relative_change(new_tokens),
        kept_change=relative_change(kept_tokens),
    )


def forward(
    encoder: FMRIEncoder, voxels: VoxelFeatures, betas: np.ndarray, regions: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute attention (N, V) and centred tokens (T, N, token_dim) with a region embedding."""
    weight, bias = key_layer(encoder)
    features = voxel_features(encoder, voxels)
    features = torch.cat([features[:, : -regions.shape[1]], regions[voxels.parcel_ids[:, 0]]], 1)
    attention = torch.softmax(
        encoder.queries @ F.linear(features, weight, bias).T * encoder.scale, -1
    )
    tokens = encoder.head.tokens(encoder.head.embed(torch.from_numpy(betas) @ attention.T))
    return attention, tokens - tokens.mean(0)


def relative_change(passes: list[Tensor]) -> float:
    """Return the norm of the difference of two passes, relative to that of the first."""
    return float((passes[0] - passes[1]).norm() / passes[0].norm())
