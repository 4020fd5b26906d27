"""Every option of the encoder and of training, its default and its meaning."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from mindllm.errors import InputError

Model = TypeVar("Model", bound=BaseModel)
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


class StageConfig(BaseModel):
    """One stage of training."""

    model_config = ConfigDict(extra="forbid")

    steps: NonNegativeInt
    """Optimizer steps; 0 leaves the stage out."""
    batch_size: PositiveInt
    """Samples per step."""
    people: PositiveInt = 4
    """People per step: a person's attention is computed once, however many trials are taken."""
    learning_rate: PositiveFloat = 1e-3
    weight_decay: float = 0.05


class TrainConfig(BaseModel):
    """Everything that a training depends on; saved with the model."""

    model_config = ConfigDict(extra="forbid")

    preset: str = "default"
    """Sizes of the encoder: default, walkthrough or paper."""
    encoder: dict[str, Any] = Field(default_factory=dict)
    """Encoder options that differ from the preset."""
    llm: str | None = None
    """Hub id, folder or .gguf file; null: the small default."""
    template: Literal["vicuna"] | None = None
    """A named conversation format, for tokenizers without a chat template of their own."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """What the language model computes in; auto: float32 on a CPU, bfloat16 elsewhere."""
    start: str | None = None
    """A model folder to go on from, which brings its own encoder; null: a new encoder. Without options for `align`, that
    stage is left out, since what the model's codes mean is settled, and the language stage trains the whole encoder."""
    seed: int = 0
    align: StageConfig = StageConfig(steps=200, batch_size=480)
    """First stage: the encoder's code is drawn to the text of the answer."""
    language: StageConfig = StageConfig(steps=150, batch_size=16, learning_rate=5e-4)
    """Second stage: the tokens stand before the language model."""
    sources: dict[str, PositiveFloat] = Field(default_factory=dict)
    """Sources of conversations to train on, with weights: for each sample a source is drawn by weight among those that tell
    of it, then one of its conversations. Empty: all sources alike."""
    voxel_dropout: tuple[Share, Share] = (0.1, 0.6)
    """Least and greatest share of a person's voxels left out in a step."""
    mix: Share = 0.5
    """Share of samples that mix two responses to one stimulus, of two people or of one."""
    disagree: float = 2.0
    """Greatest share of the difference between two responses to another stimulus, added to a sample as noise."""
    jitter_mm: float = 2.0
    """Standard deviation of a shift of a person's brain, drawn each step."""
    stretch: float = 0.02
    """Standard deviation of the entries of a random linear map about identity, likewise."""
    noise: float = 0.3
    """Standard deviation of noise on what the queries see, relative to its own."""
    code_noise: float = 1.0
    """Greatest length of noise on a code, relative to its own, when the language model learns to read it."""
    warmup: Share = 0.1
    """Share of a stage's steps in which the learning rate rises; it then falls as a cosine."""
    clip: PositiveFloat = 1.0
    """Greatest norm of the gradient."""
    shuffle_pairs: bool = False
    """Whether each person's trials are paired with other trials' stimuli, at random: the control of a whole training."""
    validate_people: NonNegativeInt = 0
    """People left out of training to choose the checkpoint with, where the store has no trials of the split `val`."""
    check_every: PositiveInt = 50
    """Steps between validations."""
    save_every: PositiveInt = 50
    """Steps between checkpoints."""
    max_candidates: PositiveInt = 2048
    """Texts that a code is told apart from: all, where there are no more than this, else those of the batch."""

    @model_validator(mode="after")
    def going_on(self) -> Self:
        """Leave out the first stage for a model that has been trained before."""
        if self.start and (self.encoder or self.preset != "default" or self.template):
            raise ValueError("with `start`, preset, encoder and template are those of that model; leave them out")
        if self.start and "align" not in self.model_fields_set:
            self.align = StageConfig(steps=0, batch_size=1)
        return self

    def sizes(self) -> EncoderConfig:
        """The encoder's configuration: the preset with the options that differ."""
        if self.preset not in PRESETS:
            raise InputError(f"unknown preset {self.preset!r}; known: {', '.join(PRESETS)}.")
        return checked(EncoderConfig, PRESETS[self.preset].model_dump() | self.encoder, "encoder options")


def checked(kind: type[Model], content: Mapping[str, Any], where: str) -> Model:
    """Content as a configuration; an unknown key or a value out of range is an InputError that names it."""
    try:
        return kind(**content)
    except ValidationError as error:
        places = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}, found {e['input']!r}" for e in error.errors())
        raise InputError(f"{where}: {places}. `mindllm config` prints every option of a training.") from error


def read_config(path: Path | None, given: Mapping[str, Any]) -> TrainConfig:
    """Training options from a YAML or JSON file, with options `given` elsewhere on top."""
    content: Any = {}
    if path is not None:
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise InputError(f"configuration file {path} cannot be read: {error}") from error
        if not isinstance(content, dict):
            raise InputError(
                f"{path}: expected keys and values, as `mindllm config` prints them; found {type(content).__name__}."
            )
    return checked(TrainConfig, content | dict(given), str(path or "options"))
