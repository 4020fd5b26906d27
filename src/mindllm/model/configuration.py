"""Every option of the encoder, its default and its meaning; three presets."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.types import PositiveFloat

Fraction = Annotated[float, Field(ge=0, lt=1)]
Size = Annotated[int, Field(gt=0, le=1_000_000)]
Layers = Annotated[int, Field(ge=0, le=1000)]


class MindLLMConfig(BaseModel):
    """Sizes and variants of the encoder; PRESETS names three of them.

    Every option is described below it; an unknown option or a value out of range is an error.

    Examples
    --------
    >>> MindLLMConfig(num_fmri_tokens=4).token_dim
    256
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    num_queries: Size = 1024
    """N: queries of the attention over voxels."""
    key_dim: Size = 32
    """d: size of a key and of a query."""
    num_key_layers: Annotated[Layers, Field(gt=0)] = 1
    """Linear layers from a voxel's coordinate features to its key."""
    coordinate_system: Literal["mni_mm", "voxel"] = "mni_mm"
    """MNI mm / 100, or voxel indices of the subject's own grid (the published checkpoints)."""
    append_coordinates: bool = False
    """Whether the coordinates themselves are appended to their Fourier features."""
    fourier_features: Literal["axis", "gaussian"] = "axis"
    """Along each axis, wavelengths in octaves, or in random directions (published checkpoints)."""
    num_frequencies: Annotated[Size, Field(le=1000)] = 4
    """Wavelengths per axis (axis) or directions (gaussian)."""
    max_wavelength_mm: PositiveFloat = 400.0
    """The longest wavelength of `axis`; each next one is half as long."""
    fourier_scale: PositiveFloat = 5.0
    """Standard deviation of the frequencies of `gaussian`, in cycles per unit of coordinates."""
    receptive_field_sd_mm: PositiveFloat | None = 4.0
    """Standard deviation of the Gaussian receptive fields that queries start as; null: random."""
    coordinates_in_keys: bool = True
    """Whether keys are computed from coordinates; without them, from parcels alone."""
    atlases: tuple[str, ...] | None = None
    """Atlases of the store whose parcels keys are computed from; null: all of them."""
    parcel_embedding_dim: Size = 8
    """Size of a parcel embedding; each atlas has a table of its own."""
    value_dim: Size | None = None
    """Size that a query output is projected to, each being a token; null: an MLP mixes them."""
    token_head_norm: Literal["batch", "layer"] = "batch"
    """Normalization of the query outputs at the beginning of the token head."""
    token_head_input_layer: bool = True
    """Whether a linear layer leads from num_queries to hidden_size (else they must be equal)."""
    hidden_size: Size = 1024
    """Hidden size of the token head that mixes the queries."""
    num_residual_layers: Layers = 0
    """Residual layers in that head."""
    dropout: Fraction = 0.5
    """Fraction of the query outputs that is dropped in training, at the beginning of the head."""
    residual_dropout: Fraction = 0.15
    """Fraction that is dropped in training in each residual layer."""
    embedding_dim: Size | None = 256
    """Size of the fMRI embedding, which is aligned with text; null: hidden_size."""
    memory_size: Annotated[int, Field(ge=0, le=1_000_000)] = 1024
    """Most entries of the softmax memory of training answers; 0: a linear layer instead."""
    num_fmri_tokens: Size = 12
    """T: fMRI tokens per trial."""
    token_dim: Size = 256
    """Size of an fMRI token."""

    @model_validator(mode="after")
    def consistent(self) -> Self:
        """Refuse options that do not go together.

        Returns
        -------
        MindLLMConfig
        """
        features = 6 * self.num_frequencies + 3 * self.append_coordinates
        if self.receptive_field_sd_mm and (
            self.num_key_layers > 1 or self.fourier_features != "axis" or self.key_dim < features
        ):
            raise ValueError(
                "receptive_field_sd_mm needs fourier_features=axis, num_key_layers=1 and "
                f"key_dim >= {features}; else set receptive_field_sd_mm to null for random queries"
            )
        if self.atlases == () and not self.coordinates_in_keys:
            raise ValueError(
                "atlases=[] and coordinates_in_keys=false leave nothing to compute keys from; "
                "give atlases, or coordinates"
            )
        if self.value_dim and self.num_fmri_tokens != self.num_queries:
            raise ValueError(
                "with value_dim each query is one token: "
                f"num_fmri_tokens={self.num_fmri_tokens} must equal num_queries={self.num_queries}"
            )
        if self.value_dim and self.memory_size:
            raise ValueError(
                "with value_dim tokens are made of values, not of a memory: set memory_size to 0, "
                f"found {self.memory_size}"
            )
        if not (self.value_dim or self.token_head_input_layer) and (
            self.hidden_size != self.num_queries
        ):
            raise ValueError(
                "without token_head_input_layer the head is as wide as the queries: "
                f"hidden_size={self.hidden_size}, num_queries={self.num_queries}"
            )
        return self


PRESETS: dict[str, MindLLMConfig] = {
    "default": MindLLMConfig(),
    # The method's walk-through: 3 coordinates + 24 Fourier features + 8 numbers of a parcel = 35,
    # keys of 64, and 16 tokens of 128.
    "walkthrough": MindLLMConfig(
        num_queries=16,
        key_dim=64,
        append_coordinates=True,
        receptive_field_sd_mm=None,
        value_dim=64,
        memory_size=0,
        num_fmri_tokens=16,
        token_dim=128,
    ),
    # The sizes of the paper: 139 M weights, of which the last layer of the head is 134 M.
    "paper": MindLLMConfig(
        num_queries=1024,
        key_dim=128,
        num_key_layers=3,
        receptive_field_sd_mm=None,
        parcel_embedding_dim=32,
        token_head_norm="layer",
        token_head_input_layer=False,
        hidden_size=1024,
        num_residual_layers=4,
        embedding_dim=None,
        memory_size=0,
        num_fmri_tokens=128,
        token_dim=1024,
    ),
}
