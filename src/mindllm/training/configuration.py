"""Every option of training, its default and its meaning."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationInfo,
    field_validator,
    model_validator,
)

from mindllm.language.hub import DEFAULT_SENTENCE_ENCODERS
from mindllm.model.configuration import PRESETS, Fraction, MindLLMConfig
from mindllm.model.encoder import plan_encoder
from mindllm.model.encoding_model import EncodingModelConfig
from mindllm.utils.errors import InputError, name_file
from mindllm.utils.seeds import MAX_SEED
from mindllm.utils.text_files import read_yaml
from mindllm.utils.validation import validate_model

Stage = Literal["alignment", "instruction_tuning"]
STAGES: tuple[Stage, ...] = ("alignment", "instruction_tuning")


class StageConfig(BaseModel):
    """Options of one stage of training.

    Examples
    --------
    >>> StageConfig(max_steps=100, batch_size=16).learning_rate
    0.001
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    max_steps: Annotated[NonNegativeInt, Field(le=1_000_000_000)]
    """Optimizer steps; 0 leaves the stage out."""
    batch_size: Annotated[PositiveInt, Field(le=1_000_000)]
    """Samples that are read at once."""
    gradient_accumulation_steps: Annotated[PositiveInt, Field(le=1_000_000)] = 1
    """Micro batches of `batch_size` samples per optimizer step, whose gradients are added up: the
    step of a larger batch in the memory of a smaller one."""
    subjects_per_batch: PositiveInt = 4
    """Subjects per step: the attention is computed once per subject, however many trials it has."""
    learning_rate: PositiveFloat = 1e-3
    """Learning rate after the warmup."""
    weight_decay: NonNegativeFloat = 0.05
    """Weight decay of the token head and the projector."""


class LoraOptions(BaseModel):
    """Options of LoRA training of the language model, as in peft.

    Examples
    --------
    >>> LoraOptions(r=4).alpha
    16.0
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    r: PositiveInt = 8
    """Rank of the matrices beside a layer."""
    alpha: PositiveFloat = 16.0
    """Scale of what they add, times the rank."""
    dropout: Fraction = 0.0
    """Fraction of a layer's inputs that they do not see in training."""
    target_modules: list[str] | None = Field(default=None, min_length=1)
    """Names of the layers; null: peft's choice for the family, in most the query and value
    projections."""
    quantization: Literal["4bit"] | None = None
    """Precision of the language model's own weights while the adapter is trained (QLoRA, through
    bitsandbytes); null: that of `dtype`."""


class TrainConfig(BaseModel):
    """Everything that a training depends on; saved in the model card.

    Options of a stage that are passed as a mapping are completed with the defaults of that stage.

    Examples
    --------
    >>> config = TrainConfig(seed=1, alignment={"max_steps": 50})
    >>> config.alignment.max_steps, config.alignment.batch_size
    (50, 480)
    >>> config.encoder_config().num_fmri_tokens
    12
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    preset: str = "default"
    """Sizes of the encoder: default, walkthrough or paper."""
    encoder: dict[str, object] = Field(default_factory=dict)
    """Encoder options that differ from the preset."""
    language_model: str | None = None
    """Hub id, folder or .gguf file; null: the small default."""
    chat_template: Literal["vicuna"] | None = None
    """A named conversation format, for tokenizers without a chat template of their own."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Data type of the language model; auto: float32 on a CPU, bfloat16 elsewhere."""
    sentence_encoder: str = DEFAULT_SENTENCE_ENCODERS
    """Hub ids or folders of the sentence encoders that the encoding model reads texts with,
    separated by commas; a language model is asked to summarize each text in one word."""
    encoding_model: EncodingModelConfig | None = EncodingModelConfig()
    """Options of the encoding model, fitted when training ends; null: none, and no evidence."""
    init_from: str | None = None
    """A model folder to train further, with its own encoder; null: a new encoder. Without options
    for `alignment`, that stage is left out, because its fMRI embeddings are aligned already, and
    instruction tuning trains the complete encoder."""
    seed: int = Field(default=0, ge=0, le=MAX_SEED)
    """Seed of all random draws."""
    alignment: StageConfig = StageConfig(max_steps=200, batch_size=480)
    """First stage: fMRI embeddings are aligned with text embeddings."""
    instruction_tuning: StageConfig = StageConfig(max_steps=150, batch_size=16, learning_rate=5e-4)
    """Second stage: fMRI tokens are tuned through the frozen language model."""
    lora: LoraOptions | None = None
    """LoRA adapter of the language model, trained in the second stage beside the projector; null:
    none, and the language model stays as it is."""
    train_language_model: bool = False
    """Whether all weights of the language model are trained in the second stage. They are kept in
    the model folder."""
    language_model_learning_rate: PositiveFloat | None = None
    """Learning rate of what is trained of the language model; null: that of the stage for `lora`,
    0.00002 for `train_language_model`."""
    mixed_precision: Literal["no", "bf16"] = "no"
    """bf16: the language model computes in bfloat16 with weights as they are; the encoder, the
    alignment and all weights that are trained stay in float32."""
    gradient_checkpointing: bool = False
    """Whether the layers of the language model are computed again for their gradient, instead of
    being kept: less memory for a third to a half more time."""
    torch_compile: bool = False
    """Whether the language model is compiled by `torch.compile` in training."""
    source_weights: dict[str, PositiveFloat] = Field(default_factory=dict)
    """Sources of conversations to train on, with weights: for each sample a source is drawn by
    weight among those that have a conversation about it, then one of its conversations. Empty: all
    sources alike."""
    voxel_dropout: tuple[Fraction, Fraction] = (0.1, 0.6)
    """Least and greatest fraction of a subject's voxels left out in a step."""
    mixup_prob: Fraction = 0.5
    """Fraction of samples that mix two trials of one stimulus, of two subjects or of one."""
    repetition_noise_scale: NonNegativeFloat = 2.0
    """Greatest multiple of the difference between two trials of another stimulus that is added to
    a sample as noise."""
    coord_jitter_mm: NonNegativeFloat = 2.0
    """Standard deviation of a shift of a subject's coordinates, drawn each step."""
    affine_jitter_sd: NonNegativeFloat = 0.02
    """Standard deviation of the entries of a random linear map about identity, likewise."""
    query_noise_sd: NonNegativeFloat = 0.3
    """Standard deviation of noise on the query outputs, relative to their own."""
    embedding_noise_scale: NonNegativeFloat = 1.0
    """Greatest length of noise on an fMRI embedding, relative to its own, in instruction tuning."""
    warmup_ratio: Fraction = 0.1
    """Fraction of a stage's steps in which the learning rate rises; it then falls as a cosine."""
    max_grad_norm: PositiveFloat = 1.0
    """Greatest norm of the gradient."""
    permute_pairs: bool = False
    """Whether each subject's trials are paired with the stimuli of other trials at random: a
    control of the complete training."""
    num_validation_subjects: NonNegativeInt = 0
    """Subjects left out of training to choose the checkpoint with, if no trial has the split
    `val`."""
    eval_steps: PositiveInt = 50
    """Steps between validations."""
    loggers: list[Literal["csv", "tensorboard", "wandb", "trackio"]] = ["csv"]
    """Where losses are written as the training goes: always to `training.csv` in the model folder,
    and to these trackers of Accelerate. `wandb` sends them to its servers."""
    save_steps: PositiveInt = 50
    """Steps between checkpoints."""
    max_negatives: PositiveInt = 2048
    """Texts that an fMRI embedding is compared with in alignment: all texts if there are no more
    than this, else those of the batch."""

    @field_validator("alignment", "instruction_tuning", mode="before")
    @classmethod
    def complete_stage(cls, options: object, info: ValidationInfo) -> object:
        """Complete the options of a stage with the defaults of that stage."""
        if not isinstance(options, Mapping):
            return options
        default: StageConfig = cls.model_fields[str(info.field_name)].default
        return default.model_dump() | dict(options)

    @field_validator("voxel_dropout")
    @classmethod
    def sorted_range(cls, bounds: tuple[float, float]) -> tuple[float, float]:
        """Refuse a least fraction that is above the greatest one."""
        if bounds[0] > bounds[1]:
            raise ValueError("expected the least fraction first")
        return bounds

    @model_validator(mode="after")
    def skip_alignment_of_trained_model(self) -> Self:
        """Leave out the first stage for a model that has been trained before."""
        if self.init_from and (self.encoder or self.preset != "default" or self.chat_template):
            raise ValueError(
                "with `init_from`, preset, encoder and chat_template are those of that model; "
                "leave them out"
            )
        if self.init_from and "alignment" not in self.model_fields_set:
            self.alignment = StageConfig(max_steps=0, batch_size=1)
        return self

    @model_validator(mode="after")
    def check_language_model_is_trained(self) -> Self:
        """Refuse to train a language model in no stage, in two ways or in half precision."""
        name = "lora" if self.lora else "train_language_model"
        if not (self.lora or self.train_language_model):
            if self.language_model_learning_rate:
                raise ValueError(
                    "`language_model_learning_rate` is for a language model that is trained; give "
                    "`lora` or `train_language_model`, or leave it out"
                )
            return self
        if not self.instruction_tuning.max_steps:
            raise ValueError(
                f"`{name}` is trained in instruction_tuning, which has max_steps 0; give it steps, "
                f"or leave `{name}` out"
            )
        if self.lora and self.train_language_model:
            raise ValueError("`lora` and `train_language_model` exclude each other; leave one out")
        if self.train_language_model and self.dtype == "bfloat16":
            raise ValueError(
                "`train_language_model` needs weights in float32: bfloat16 loses small steps. "
                "Leave `dtype` out, and compute in bfloat16 by `mixed_precision: bf16`"
            )
        return self

    def language_model_dtype(self) -> Literal["auto", "float32", "bfloat16"]:
        """Data type to load the language model in: float32 where its weights are trained."""
        return "float32" if self.train_language_model else self.dtype

    def stage(self, name: Stage) -> StageConfig:
        """Options of a stage."""
        return self.alignment if name == "alignment" else self.instruction_tuning

    def encoder_config(self) -> MindLLMConfig:
        """Configuration of the encoder: the preset with the options that differ.

        Returns
        -------
        MindLLMConfig

        Raises
        ------
        InputError
            If the preset or an option is unknown, a value is out of range, or the encoder cannot
            fit in memory.
        """
        if self.preset not in PRESETS:
            raise InputError(f"unknown preset {self.preset!r}; known: {', '.join(PRESETS)}.")
        options = PRESETS[self.preset].model_dump() | self.encoder
        config = validate_model(MindLLMConfig, options, "encoder options")
        # Without coordinates an encoder has an atlas, whose parcels are known from a store alone.
        plan_encoder(config, {} if config.coordinates_in_keys else {"atlas": []})
        return config


def check_processes(config: TrainConfig, num_processes: int) -> None:
    """Raise InputError unless processes can share the micro batches of a step."""
    for stage in STAGES:
        options = config.stage(stage)
        if options.max_steps and options.gradient_accumulation_steps % num_processes:
            raise InputError(
                f"{num_processes} processes share the micro batches of a step, and {stage} has "
                f"gradient_accumulation_steps {options.gradient_accumulation_steps}. Choose a "
                f"multiple of {num_processes}, and divide batch_size by it for the same step."
            )


def check_batch_sizes(config: TrainConfig, encoder: MindLLMConfig) -> None:
    """Raise InputError if samples are read singly where they are normalized over the batch."""
    for stage in STAGES:
        options = config.stage(stage)
        if encoder.token_head_norm == "batch" and options.max_steps and options.batch_size == 1:
            raise InputError(
                f"{stage} has batch_size 1, but the batch normalization of the token head needs 2 "
                "samples that are read at once. Choose batch_size 2 or more, or for a new encoder "
                "token_head_norm: layer."
            )


def read_config(path: Path | None, options: Mapping[str, Any]) -> TrainConfig:
    """Read training options from a YAML or JSON file.

    Parameters
    ----------
    path : Path or None
        File with some of the options, as `mindllm config` prints them.
    options : mapping from str to value
        Options that replace those of the file.

    Returns
    -------
    TrainConfig

    Raises
    ------
    InputError
        If the file cannot be read, an option is unknown or a value is out of range.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     path = Path(folder) / "options.yaml"
    ...     _ = path.write_text("instruction_tuning: {max_steps: 300}")
    ...     config = read_config(path, {"seed": 3})
    >>> config.seed, config.instruction_tuning.max_steps, config.instruction_tuning.learning_rate
    (3, 300, 0.0005)
    """
    content = read_yaml(path, "a configuration (`mindllm config` prints one)") if path else {}
    config = validate_model(TrainConfig, content | dict(options), str(path or "options"))
    with name_file(path or Path("options")):
        config.encoder_config()
    return config
