"""Every option of the encoder, its default and its meaning; three presets."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

Share = Annotated[float, Field(ge=0, lt=1)]


class EncoderConfig(BaseModel):
    """Sizes and variants of the encoder; PRESETS names three of them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    n_queries: PositiveInt = 1024
    """N: places where the encoder looks."""
    key_width: PositiveInt = 32
    """d: numbers per key and query."""
    key_layers: PositiveInt = 1
    """Linear layers from a voxel's position features to its key."""
    positions: Literal["mm", "index"] = "mm"
    """MNI millimetres / 100, or voxel indices of the person's own grid (the published checkpoints)."""
    coordinates: bool = False
    """Whether the coordinates themselves stand beside their Fourier features."""
    fourier: Literal["axes", "random"] = "axes"
    """Sines along each axis with wavelengths in octaves, or along random directions (the published checkpoints)."""
    n_frequencies: PositiveInt = 4
    """Wavelengths per axis (axes) or directions (random)."""
    longest_mm: PositiveFloat = 400.0
    """The longest wavelength of `axes`; each next one is half as long."""
    sigma: PositiveFloat = 5.0
    """Standard deviation of the frequencies of `random`, in cycles per unit."""
    field_mm: PositiveFloat | None = 4.0
    """Queries start as Gaussian receptive fields of this standard deviation, spread over the brain; None: at random."""
    region_width: PositiveInt = 8
    """Numbers per region embedding; each parcellation has a table of its own."""
    value_width: PositiveInt | None = None
    """Numbers that one query's value is projected to, each query then being a token; None: a head mixes the queries."""
    head_norm: Literal["batch", "layer"] = "batch"
    """What normalizes what the queries see, before the head mixes it."""
    head_entry: bool = True
    """Whether a linear layer leads from the queries to the head's width (which must else be equal)."""
    hidden: PositiveInt = 1024
    """Width of the head that mixes the queries."""
    residual_layers: NonNegativeInt = 0
    """Residual layers in that head."""
    dropout: Share = 0.5
    """Share of what the queries see that is dropped in training, where the head begins."""
    layer_dropout: Share = 0.15
    """Share of the numbers dropped in training in each residual layer."""
    code_width: PositiveInt | None = 256
    """Numbers of the code that is aligned with text and that all tokens are made from; None: the head's whole width."""
    memory: NonNegativeInt = 1024
    """Entries, at most, of the softmax layer that makes tokens of a code, begun as training answers; 0: a linear layer."""
    n_tokens: PositiveInt = 12
    """T: fMRI tokens per trial."""
    token_width: PositiveInt = 256
    """Numbers per fMRI token."""

    @model_validator(mode="after")
    def consistent(self) -> Self:
        """Refuse options that do not go together."""
        features = 6 * self.n_frequencies + 3 * self.coordinates
        if self.field_mm and (self.key_layers > 1 or self.fourier != "axes" or self.key_width < features):
            raise ValueError(
                f"field_mm needs fourier=axes, key_layers=1 and key_width >= {features}; else set field_mm to null for random queries"
            )
        if self.value_width and self.n_tokens != self.n_queries:
            raise ValueError(
                f"with value_width each query is one token: n_tokens={self.n_tokens} must equal n_queries={self.n_queries}"
            )
        if self.value_width and self.memory:
            raise ValueError(
                f"with value_width tokens are made of values, not of a memory: set memory to 0, found {self.memory}"
            )
        if not self.value_width and not self.head_entry and self.hidden != self.n_queries:
            raise ValueError(
                f"without head_entry the head is as wide as the queries: hidden={self.hidden}, n_queries={self.n_queries}"
            )
        return self


PRESETS: dict[str, EncoderConfig] = {
    "default": EncoderConfig(),
    # The method's walk-through: 3 coordinates + 24 Fourier + 8 region numbers = 35 -> keys of 64; 16 tokens of 128.
    "walkthrough": EncoderConfig(
        n_queries=16,
        key_width=64,
        coordinates=True,
        field_mm=None,
        value_width=64,
        memory=0,
        n_tokens=16,
        token_width=128,
    ),
    # The sizes of the paper: 139 M weights, of which the last layer of the head is 134 M.
    "paper": EncoderConfig(
        n_queries=1024,
        key_width=128,
        key_layers=3,
        field_mm=None,
        region_width=32,
        head_norm="layer",
        head_entry=False,
        hidden=1024,
        residual_layers=4,
        code_width=None,
        memory=0,
        n_tokens=128,
        token_width=1024,
    ),
}
