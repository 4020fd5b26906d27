"""Neuroscience-informed attention: voxels of any subject to a fixed number of fMRI tokens.

For a subject with V voxels, betas x (B, V), keys K (V, d) and learned queries Q (N, d):

    A = softmax(scale * Q K^T)   (N, V)   attention weights; betas do not enter
    z = x A^T                    (B, N)   query outputs

Keys are computed from a voxel's coordinates and its parcels. A depends on the subject and the
weights alone, so it is computed once per subject and batch; the batch is the value dimension of
the attention.

References
----------
Qiu et al., MindLLM, ICML 2025, arXiv 2502.15786, section 3.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from mindllm.fmri.masker import VoxelMasker
from mindllm.model.configuration import MindLLMConfig
from mindllm.model.token_heads import MLPTokenHead, PerQueryTokenHead
from mindllm.utils.errors import InputError
from mindllm.utils.memory import check_memory

SCALE_MM = 100.0  # a brain spans about -100 to 100 mm in MNI space
MAX_WEIGHTS = 2**26  # attention weights in memory at once where A is stored: 256 MiB


@dataclass(frozen=True, slots=True)
class VoxelFeatures:
    """Voxels as the encoder reads them.

    Parameters
    ----------
    coords : Tensor of shape (n_voxels, 3)
        MNI mm / 100, or voxel indices.
    parcel_ids : Tensor of shape (n_voxels, n_atlases), int64
        Parcel numbers in the model's numbering; 0 is no parcel.
    """

    coords: Tensor
    parcel_ids: Tensor

    def __getitem__(self, index: Tensor) -> "VoxelFeatures":
        return VoxelFeatures(self.coords[index], self.parcel_ids[index])

    @classmethod
    def join(cls, parts: "Sequence[VoxelFeatures]") -> "VoxelFeatures":
        """Concatenate the voxels of several subjects."""
        return cls(torch.cat([p.coords for p in parts]), torch.cat([p.parcel_ids for p in parts]))


class FMRIEncoder(nn.Module):
    """Betas and voxels to fMRI tokens.

    Parameters
    ----------
    config : MindLLMConfig
        Sizes and variants.
    parcel_names : mapping from str to sequence of str
        Atlas name to parcel names; parcel number n is the n-th name, 0 is no parcel.
    """

    frequencies: Tensor

    def __init__(self, config: MindLLMConfig, parcel_names: Mapping[str, Sequence[str]]) -> None:
        super().__init__()
        self.config = c = config
        self.parcel_names = {atlas: list(names) for atlas, names in parcel_names.items()}
        self.register_buffer("frequencies", fourier_frequencies(c))
        self.coord_proj = self.build_coord_proj() if c.coordinates_in_keys else None
        self.parcel_embeddings = nn.ModuleDict()
        for atlas, names in self.parcel_names.items():
            embedding = nn.Embedding(len(names) + 1, c.parcel_embedding_dim, padding_idx=0)
            try:
                self.parcel_embeddings[atlas] = embedding
            except KeyError as error:
                raise InputError(
                    f"an atlas cannot be called {atlas!r} in a model ({error.args[0]}). Give the "
                    "atlas another name."
                ) from error
        parcel_dim = c.parcel_embedding_dim * len(self.parcel_names)
        self.parcel_proj = nn.Linear(parcel_dim, c.key_dim, bias=False) if parcel_dim else None
        if self.parcel_proj is None and self.coord_proj is None:
            raise InputError(
                "coordinates_in_keys is false and there is no atlas to compute keys from. "
                "Prepare the store with an atlas, or leave coordinates_in_keys out."
            )
        self.queries = nn.Parameter(torch.randn(c.num_queries, c.key_dim))
        self.head = PerQueryTokenHead(c) if c.value_dim else MLPTokenHead(c)

    def build_coord_proj(self) -> nn.Sequential:
        """Layers from coordinate features to keys."""
        c = self.config
        num_features = 2 * len(self.frequencies) + 3 * c.append_coordinates
        dims = [num_features, *[c.key_dim] * c.num_key_layers]
        layers = [layer for i, o in pairwise(dims) for layer in (nn.Linear(i, o), nn.GELU())]
        return nn.Sequential(*layers[:-1])

    def prepare_voxels(self, masker: VoxelMasker) -> VoxelFeatures:
        """Convert a masker to the model's coordinates and parcel numbers.

        Parameters
        ----------
        masker : VoxelMasker
            Parcels are matched by name; an atlas that it lacks is all zeros.

        Returns
        -------
        VoxelFeatures

        Raises
        ------
        InputError
            If the masker has a parcel name that the model does not know.
        """
        device = self.queries.device
        if self.config.coordinate_system == "mni_mm":
            coords = torch.tensor(masker.coords_mm, device=device) / SCALE_MM
        else:
            coords = torch.tensor(masker.voxel_indices, dtype=torch.float32, device=device)
        columns = [
            torch.from_numpy(masker.encode_parcels(atlas, names))
            for atlas, names in self.parcel_names.items()
        ]
        empty = torch.zeros(len(masker), 0, dtype=torch.int64)
        parcel_ids = torch.stack(columns, 1) if columns else empty
        return VoxelFeatures(coords.to(self.queries.dtype), parcel_ids.to(device))

    def compute_keys(self, voxels: VoxelFeatures) -> Tensor:
        """Compute K, (n_voxels, key_dim), from coordinates and parcels."""
        keys = torch.zeros(()).to(self.queries)
        if self.coord_proj is not None:
            phase = 2 * math.pi * voxels.coords @ self.frequencies.T
            features = [phase.sin(), phase.cos()]
            if self.config.append_coordinates:
                features.append(voxels.coords)
            keys = self.coord_proj(torch.cat(features, -1))
        if self.parcel_proj is not None:
            embeddings = [
                embedding(voxels.parcel_ids[:, i])
                for i, embedding in enumerate(self.parcel_embeddings.values())
            ]
            keys = keys + self.parcel_proj(torch.cat(embeddings, -1))
        return keys

    def attention_weights(self, voxels: VoxelFeatures) -> Tensor:
        """Compute A, (num_queries, n_voxels); each row sums to one."""
        return torch.softmax(self.queries @ self.compute_keys(voxels).T * self.scale, -1)

    def attend(self, voxels: VoxelFeatures, betas: Tensor) -> Tensor:
        """Compute query outputs z = x A^T, without storing A where the backend can avoid it.

        Elsewhere than on a GPU, a part of the rows of A is in memory at a time, if A is large, and
        it is computed again for gradients.

        Parameters
        ----------
        voxels : VoxelFeatures
        betas : Tensor of shape (n_trials, n_voxels)
            Standardized betas.

        Returns
        -------
        Tensor of shape (n_trials, num_queries)
        """
        queries, keys, values = self.queries[None], self.compute_keys(voxels)[None], betas.T[None]

        def attend_rows(rows: Tensor, keys: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(rows, keys, values, scale=self.scale)

        num_rows = max(1, MAX_WEIGHTS // max(1, len(voxels.coords)))
        if queries.is_cuda or len(self.queries) <= num_rows:
            return attend_rows(queries, keys)[0].T
        parts = [
            checkpoint(attend_rows, rows, keys, use_reentrant=False, preserve_rng_state=False)
            for rows in queries.split(num_rows, 1)
        ]
        return torch.cat(parts, 1)[0].T

    @property
    def scale(self) -> float:
        """Factor of Q K^T.

        1 / sqrt(key_dim), or the factor that makes queries Gaussians of `receptive_field_sd_mm`.
        """
        if self.config.receptive_field_sd_mm is None:
            return self.config.key_dim**-0.5
        # Curvature of the sum of cosines, per axis.
        curvature = sum((2 * math.pi * octave) ** 2 for octave in octave_frequencies(self.config))
        return (SCALE_MM / self.config.receptive_field_sd_mm) ** 2 / curvature

    def forward(self, groups: Sequence[tuple[VoxelFeatures, Tensor]]) -> Tensor:
        """Encode a batch that may mix subjects.

        Parameters
        ----------
        groups : sequence of (VoxelFeatures, Tensor)
            For each subject the voxels and standardized betas (n_trials, n_voxels).

        Returns
        -------
        Tensor of shape (n_trials_in_all, num_fmri_tokens, token_dim)
            fMRI tokens, in the order of the groups.
        """
        query_outputs = torch.cat([self.attend(voxels, betas) for voxels, betas in groups])
        return self.head.tokens(self.head.embed(query_outputs))


def plan_encoder(
    config: MindLLMConfig, parcel_names: Mapping[str, Sequence[str]]
) -> dict[str, Tensor]:
    """Plan the tensors of an encoder, for which no room is made.

    Parameters
    ----------
    config : MindLLMConfig
    parcel_names : mapping from str to sequence of str

    Returns
    -------
    dict of str to Tensor
        Name to shape and type, as the state dict of the encoder has them.

    Raises
    ------
    InputError
        If they are larger than all memory, or an atlas cannot have its name.
    """
    with torch.device("meta"):
        tensors: dict[str, Tensor] = FMRIEncoder(config, parcel_names).state_dict()
    largest = max(tensors, key=lambda name: tensors[name].numel())
    check_memory(
        sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()),
        f"an encoder of these sizes, with {largest} of {tuple(tensors[largest].shape)},",
        "Take smaller sizes.",
    )
    return tensors


def fourier_frequencies(config: MindLLMConfig) -> Tensor:
    """Frequencies (F, 3) of the Fourier features, in cycles per unit of the coordinates.

    References
    ----------
    Tancik et al. 2020, Fourier features let networks learn high frequency functions in low
    dimensional domains, arXiv 2006.10739.
    """
    if config.fourier_features == "gaussian":
        return config.fourier_scale * torch.randn(config.num_frequencies, 3)
    return torch.cat([torch.eye(3) * octave for octave in octave_frequencies(config)])


def octave_frequencies(config: MindLLMConfig) -> list[float]:
    """Frequencies of the Fourier features along an axis, in cycles per unit of the coordinates."""
    first = SCALE_MM / config.max_wavelength_mm
    return [first * 2**octave for octave in range(config.num_frequencies)]
