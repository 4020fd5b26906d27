"""Every option of training, its default and its meaning."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from mindllm.model.configuration import PRESETS, Fraction, MindLLMConfig
from mindllm.utils.errors import InputError
from mindllm.utils.validation import validate_model


class StageConfig(BaseModel):
    """One stage of training."""

    model_config = ConfigDict(extra="forbid")

    max_steps: NonNegativeInt
    """Optimizer steps; 0 leaves the stage out."""
    batch_size: PositiveInt
    """Samples per step."""
    subjects_per_batch: PositiveInt = 4
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
    language_model: str | None = None
    """Hub id, folder or .gguf file; null: the small default."""
    chat_template: Literal["vicuna"] | None = None
    """A named conversation format, for tokenizers without a chat template of their own."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """What the language model computes in; auto: float32 on a CPU, bfloat16 elsewhere."""
    init_from: str | None = None
    """A model folder to go on from, which brings its own encoder; null: a new encoder. Without options for `align`, that
    stage is left out, since what the model's codes mean is settled, and the language stage trains the whole encoder."""
    seed: int = 0
    alignment: StageConfig = StageConfig(max_steps=200, batch_size=480)
    """First stage: the encoder's code is drawn to the text of the answer."""
    instruction_tuning: StageConfig = StageConfig(max_steps=150, batch_size=16, learning_rate=5e-4)
    """Second stage: the tokens stand before the language model."""
    source_weights: dict[str, PositiveFloat] = Field(default_factory=dict)
    """Sources of conversations to train on, with weights: for each sample a source is drawn by weight among those that tell
    of it, then one of its conversations. Empty: all sources alike."""
    voxel_dropout: tuple[Fraction, Fraction] = (0.1, 0.6)
    """Least and greatest share of a person's voxels left out in a step."""
    mixup_prob: Fraction = 0.5
    """Share of samples that mix two responses to one stimulus, of two people or of one."""
    repetition_noise_scale: float = 2.0
    """Greatest share of the difference between two responses to another stimulus, added to a sample as noise."""
    coord_jitter_mm: float = 2.0
    """Standard deviation of a shift of a person's brain, drawn each step."""
    affine_jitter_sd: float = 0.02
    """Standard deviation of the entries of a random linear map about identity, likewise."""
    query_noise_sd: float = 0.3
    """Standard deviation of noise on what the queries see, relative to its own."""
    embedding_noise_scale: float = 1.0
    """Greatest length of noise on a code, relative to its own, when the language model learns to read it."""
    warmup_ratio: Fraction = 0.1
    """Share of a stage's steps in which the learning rate rises; it then falls as a cosine."""
    max_grad_norm: PositiveFloat = 1.0
    """Greatest norm of the gradient."""
    permute_pairs: bool = False
    """Whether each person's trials are paired with other trials' stimuli, at random: the control of a whole training."""
    num_validation_subjects: NonNegativeInt = 0
    """People left out of training to choose the checkpoint with, where the store has no trials of the split `val`."""
    eval_steps: PositiveInt = 50
    """Steps between validations."""
    save_steps: PositiveInt = 50
    """Steps between checkpoints."""
    max_negatives: PositiveInt = 2048
    """Texts that a code is told apart from: all, where there are no more than this, else those of the batch."""

    @model_validator(mode="after")
    def going_on(self) -> Self:
        """Leave out the first stage for a model that has been trained before."""
        if self.init_from and (self.encoder or self.preset != "default" or self.chat_template):
            raise ValueError(
                "with `init_from`, preset, encoder and chat_template are those of that model; leave them out"
            )
        if self.init_from and "alignment" not in self.model_fields_set:
            self.alignment = StageConfig(max_steps=0, batch_size=1)
        return self

    def encoder_config(self) -> MindLLMConfig:
        """The encoder's configuration: the preset with the options that differ."""
        if self.preset not in PRESETS:
            raise InputError(f"unknown preset {self.preset!r}; known: {', '.join(PRESETS)}.")
        return validate_model(
            MindLLMConfig, PRESETS[self.preset].model_dump() | self.encoder, "encoder options"
        )


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
    return validate_model(TrainConfig, content | dict(given), str(path or "options"))
