"""Every option of the encoder, its default and its meaning; three presets."""

from typing import Annotated, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

Share = Annotated[float, Field(ge=0, lt=1)]


class MindLLMConfig(BaseModel):
    """Sizes and variants of the encoder; PRESETS names three of them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    num_queries: PositiveInt = 1024
    """N: places where the encoder looks."""
    key_dim: PositiveInt = 32
    """d: numbers per key and query."""
    num_key_layers: PositiveInt = 1
    """Linear layers from a voxel's position features to its key."""
    coordinate_system: Literal["mni_mm", "voxel"] = "mni_mm"
    """MNI millimetres / 100, or voxel indices of the person's own grid (the published checkpoints)."""
    append_coordinates: bool = False
    """Whether the coordinates themselves stand beside their Fourier features."""
    fourier_features: Literal["axis", "gaussian"] = "axis"
    """Sines along each axis with wavelengths in octaves, or along random directions (the published checkpoints)."""
    num_frequencies: PositiveInt = 4
    """Wavelengths per axis (axis) or directions (gaussian)."""
    max_wavelength_mm: PositiveFloat = 400.0
    """The longest wavelength of `axis`; each next one is half as long."""
    fourier_scale: PositiveFloat = 5.0
    """Standard deviation of the frequencies of `gaussian`, in cycles per unit."""
    receptive_field_sd_mm: PositiveFloat | None = 4.0
    """Queries start as Gaussian receptive fields of this standard deviation, spread over the brain; None: at random."""
    parcel_embedding_dim: PositiveInt = 8
    """Numbers per region embedding; each parcellation has a table of its own."""
    value_dim: PositiveInt | None = None
    """Numbers that one query's value is projected to, each query then being a token; None: a head mixes the queries."""
    token_head_norm: Literal["batch", "layer"] = "batch"
    """What normalizes what the queries see, before the head mixes it."""
    token_head_input_layer: bool = True
    """Whether a linear layer leads from the queries to the head's width (which must else be equal)."""
    hidden_size: PositiveInt = 1024
    """Width of the head that mixes the queries."""
    num_residual_layers: NonNegativeInt = 0
    """Residual layers in that head."""
    dropout: Share = 0.5
    """Share of what the queries see that is dropped in training, where the head begins."""
    residual_dropout: Share = 0.15
    """Share of the numbers dropped in training in each residual layer."""
    embedding_dim: PositiveInt | None = 256
    """Numbers of the code that is aligned with text and that all tokens are made from; None: the head's whole width."""
    memory_size: NonNegativeInt = 1024
    """Entries, at most, of the softmax layer that makes tokens of a code, begun as training answers; 0: a linear layer."""
    num_fmri_tokens: PositiveInt = 12
    """T: fMRI tokens per trial."""
    token_dim: PositiveInt = 256
    """Numbers per fMRI token."""

    @model_validator(mode="after")
    def consistent(self) -> Self:
        """Refuse options that do not go together."""
        features = 6 * self.num_frequencies + 3 * self.append_coordinates
        if self.receptive_field_sd_mm and (
            self.num_key_layers > 1 or self.fourier_features != "axis" or self.key_dim < features
        ):
            raise ValueError(
                f"receptive_field_sd_mm needs fourier_features=axis, num_key_layers=1 and key_dim >= {features}; else set receptive_field_sd_mm to null for random queries"
            )
        if self.value_dim and self.num_fmri_tokens != self.num_queries:
            raise ValueError(
                f"with value_dim each query is one token: num_fmri_tokens={self.num_fmri_tokens} must equal num_queries={self.num_queries}"
            )
        if self.value_dim and self.memory_size:
            raise ValueError(
                f"with value_dim tokens are made of values, not of a memory: set memory_size to 0, found {self.memory_size}"
            )
        if (
            not self.value_dim
            and not self.token_head_input_layer
            and self.hidden_size != self.num_queries
        ):
            raise ValueError(
                f"without token_head_input_layer the head is as wide as the queries: hidden_size={self.hidden_size}, num_queries={self.num_queries}"
            )
        return self


PRESETS: dict[str, MindLLMConfig] = {
    "default": MindLLMConfig(),
    # The method's walk-through: 3 coordinates + 24 Fourier + 8 region numbers = 35 -> keys of 64; 16 tokens of 128.
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
