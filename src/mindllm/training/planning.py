"""Memory, time and cost of a training, from its sizes: no data, weights or GPU are needed."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from mindllm.data.store import Store
from mindllm.training.configuration import STAGES, Stage, TrainConfig
from mindllm.training.hardware import GIB, Hardware, Precision
from mindllm.training.memory_trace import ACTIVATIONS
from mindllm.training.step_trace import (
    BETAS,
    CACHE,
    ENCODER,
    GRADIENTS,
    LOGITS,
    OPTIMIZER,
    WEIGHTS,
    StepShape,
    StepTrace,
    StepTracer,
)

DECODING = "decoding"
GATHERED, DEQUANTIZED, RESERVE = "gathered layers", "dequantized layer", "reserve"
TRACED_BATCHES = (8, 16)  # memory and operations are linear in the batch size
# Values that are read and standardized in a second, from a warm cache: the rate that loading is
# held to, which `benchmarks/scale.py` measures.
LOADING_RATE = 8000 * 15_724
# For the context of CUDA, its libraries and gaps of the allocator; an allowance, not measured.
RESERVE_BYTES = GIB
# bitsandbytes, NF4 without double quantization: 4 bits a weight, and a float32 for 64 of them
# (Dettmers et al. 2023, QLoRA, arXiv 2305.14314).
BYTES_OF_4BIT = 0.5 + 4 / 64
PARTS = (
    WEIGHTS, ENCODER, GRADIENTS, OPTIMIZER, ACTIVATIONS, LOGITS, BETAS, CACHE, GATHERED,
    DEQUANTIZED, RESERVE,
)  # fmt: skip
SHARDED_PARTS = (WEIGHTS, ENCODER, GRADIENTS, OPTIMIZER)


@dataclass(frozen=True, slots=True)
class DataShape:
    """Sizes of a data set.

    Parameters
    ----------
    n_subjects, n_trials : int
        Trials in all.
    n_voxels : int
        Of the subject with the most.
    n_atlases : int
    """

    n_subjects: int
    n_trials: int
    n_voxels: int
    n_atlases: int = 1


def measure_store(store: Store) -> DataShape:
    """Sizes of a store: its subjects, training trials, most voxels and atlases.

    Parameters
    ----------
    store : Store

    Returns
    -------
    DataShape
    """
    trials = [(store.trials(subject)["split"] == "train").sum() for subject in store.subjects]
    n_voxels = max(len(store.masker(subject)) for subject in store.subjects)
    return DataShape(len(store.subjects), int(sum(trials)), n_voxels, len(store.parcel_names))


@dataclass(frozen=True)
class PlanOptions:
    """What a training is planned with, beside its configuration and data.

    Parameters
    ----------
    hardware : Hardware
    num_gpus : int
        Devices that share the micro batches of a step.
    shard : bool
        Whether weights, gradients and the optimizer's state are sharded over them (FSDP2).
    gradient_checkpointing : bool
    load_in_4bit : bool
    price_per_hour : float or None
        Of one device.
    prefix_tokens, text_tokens, answer_tokens : int
        Tokens before the scan; other text of a sample; those of it that have a loss.
    decode_batch_size, new_tokens : int
        Trials that are decoded at once, and tokens that are generated for each.
    """

    hardware: Hardware
    num_gpus: int = 1
    shard: bool = False
    gradient_checkpointing: bool = False
    load_in_4bit: bool = False
    price_per_hour: float | None = None
    prefix_tokens: int = 30
    text_tokens: int = 64
    answer_tokens: int = 24
    decode_batch_size: int = 16
    new_tokens: int = 48


@dataclass(frozen=True)
class PhasePlan:
    """Plan of a stage of training, or of decoding.

    Parameters
    ----------
    name : str
    batch_size : int
        Samples that a device reads at once.
    parts : dict of str to int
        Bytes of one device by part, when most is in memory; the reserve included.
    largest_batch : int
        Most samples that fit; 0: none.
    n_steps : int
        Optimizer steps; in decoding batches.
    compute_seconds, loading_seconds : float
        Of a step.
    """

    name: str
    batch_size: int
    parts: dict[str, int]
    largest_batch: int
    n_steps: int
    compute_seconds: float
    loading_seconds: float

    @property
    def peak_bytes(self) -> int:
        """Bytes of all parts."""
        return sum(self.parts.values())

    @property
    def hours(self) -> float:
        """Of all steps."""
        return self.n_steps * (self.compute_seconds + self.loading_seconds) / 3600


@dataclass(frozen=True)
class TrainingPlan:
    """Plan of a training and of decoding.

    Parameters
    ----------
    phases : tuple of PhasePlan
        Stages that have steps, then decoding.
    options : PlanOptions
    n_parameters, n_trained : int
        Parameters of the language model; those that instruction tuning, or the last stage, trains.
    """

    phases: tuple[PhasePlan, ...]
    options: PlanOptions
    n_parameters: int
    n_trained: int

    def cost(self, phase: PhasePlan) -> float | None:
        """Price of a phase on all devices, or None without a price per hour."""
        price = self.options.price_per_hour
        return None if price is None else price * self.options.num_gpus * phase.hours


def plan_training(
    language_model: Any, data: DataShape, config: TrainConfig, options: PlanOptions
) -> TrainingPlan:
    """Plan a training and decoding.

    Parameters
    ----------
    language_model : transformers.PretrainedConfig
        As `read_shape` returns it.
    data : DataShape
    config : TrainConfig
    options : PlanOptions

    Returns
    -------
    TrainingPlan

    Examples
    --------
    >>> from mindllm.language.shapes import read_shape
    >>> from mindllm.training.hardware import HARDWARE
    >>> options = PlanOptions(HARDWARE["rtx-4090"])
    >>> data = DataShape(n_subjects=8, n_trials=72_000, n_voxels=15_724)
    >>> llm = read_shape("smollm2-135m")
    >>> plan = plan_training(llm, data, TrainConfig(), options)
    >>> [phase.name for phase in plan.phases]
    ['alignment', 'instruction_tuning', 'decoding']
    """
    return Planner(language_model, data, config, options).plan()


class Planner:
    """Plans of one training.

    Parameters
    ----------
    language_model, data, config, options
        As for `plan_training`.
    """

    def __init__(
        self, language_model: Any, data: DataShape, config: TrainConfig, options: PlanOptions
    ) -> None:
        self.data, self.config, self.options = data, config, options
        self.dtype = choose_dtype(config, options)
        # Neither reads the beginning of the conversations apart.
        reads_prefix = not (options.gradient_checkpointing or options.shard)
        self.shape = StepShape(
            language_model=language_model,
            encoder=config.encoder_config(),
            n_voxels=max(1, round(data.n_voxels * (1 - config.voxel_dropout[0]))),
            n_atlases=data.n_atlases,
            dtype=getattr(torch, self.dtype),
            trials_per_sample=trials_per_sample(config),
            n_texts=min(config.max_negatives, data.n_trials),
            prefix_tokens=options.prefix_tokens if reads_prefix else 0,
            text_tokens=options.text_tokens + (0 if reads_prefix else options.prefix_tokens),
            answer_tokens=options.answer_tokens,
            lora=config.lora,
            gradient_checkpointing=options.gradient_checkpointing,
        )
        self.tracer = StepTracer(self.shape)

    def plan(self) -> TrainingPlan:
        """Plan all phases."""
        stages = [stage for stage in STAGES if self.config.stage(stage).max_steps]
        phases = [self.plan_stage(stage) for stage in stages] + [self.plan_decoding()]
        modules = self.tracer.modules
        trained = modules.trained_parameters(
            stages[-1] if stages else "alignment", self.is_aligned, self.config.lora is not None
        )
        n_trained = sum(parameter.numel() for parameter in trained.values())
        llm = sum(parameter.numel() for parameter in modules.model.language_model.parameters())
        return TrainingPlan(tuple(phases), self.options, llm, n_trained)

    @property
    def is_aligned(self) -> bool:
        """Whether there is an alignment stage."""
        return bool(self.config.alignment.max_steps)

    def plan_stage(self, stage: Stage) -> PhasePlan:
        """Plan a stage of training."""
        stage_options = self.config.stage(stage)
        small, large = (
            self.tracer.train(stage, stage_options, n, self.is_aligned) for n in TRACED_BATCHES
        )
        precision: Precision = "float32" if stage == "alignment" else self.dtype
        n_micro = stage_options.gradient_accumulation_steps
        samples = stage_options.batch_size * n_micro / self.options.num_gpus
        loading = samples * self.shape.trials_per_sample * self.data.n_voxels / LOADING_RATE
        batch_size = stage_options.batch_size
        return PhasePlan(
            stage,
            batch_size,
            self.memory_parts(small, large, batch_size),
            self.largest_batch(small, large),
            stage_options.max_steps,
            self.seconds(extrapolate_flops(small, large, batch_size), precision)
            * n_micro
            / self.options.num_gpus,
            loading,
        )

    def plan_decoding(self) -> PhasePlan:
        """Plan the decoding of all trials."""
        n, options = self.options.decode_batch_size, self.options
        tracer = StepTracer(
            replace(self.shape, gradient_checkpointing=False, trials_per_sample=1.0)
        )
        small, large = (tracer.decode(size, options.new_tokens) for size in TRACED_BATCHES)
        parts = self.memory_parts(small, large, n)
        llm = tracer.modules.model.language_model
        flops_per_token = 2 * sum(parameter.numel() for parameter in llm.parameters()) * n
        # Each token reads all weights, and keys and values, once.
        held = parts[WEIGHTS] + parts.get(CACHE, 0)
        per_token = max(
            held / options.hardware.bandwidth, self.seconds(flops_per_token, self.dtype)
        )
        reading = self.seconds(extrapolate_flops(small, large, n), self.dtype)
        n_batches = -(-self.data.n_trials // (n * options.num_gpus))
        return PhasePlan(
            DECODING,
            n,
            parts,
            self.largest_batch(small, large),
            n_batches,
            reading + options.new_tokens * per_token,
            n * self.data.n_voxels / LOADING_RATE,
        )

    def seconds(self, flops: float, precision: Precision) -> float:
        """Time of operations on one device."""
        hardware = self.options.hardware
        return flops / (hardware.flops[precision] * hardware.efficiency)

    def memory_parts(self, small: StepTrace, large: StepTrace, batch_size: int) -> dict[str, int]:
        """Bytes by part with a batch size, in the pass or the optimizer's step, what is more."""
        passes = self.on_device(extrapolate(small.passes, large.passes, batch_size))
        optimizer = self.on_device(extrapolate(small.optimizer, large.optimizer, batch_size))
        parts = max(passes, optimizer, key=lambda parts: sum(parts.values()))
        return {name: round(size) for name, size in parts.items() if size >= 1}

    def largest_batch(self, small: StepTrace, large: StepTrace) -> int:
        """Most samples that fit: memory grows with their number."""

        def fits(batch_size: int) -> bool:
            parts = self.memory_parts(small, large, batch_size)
            return sum(parts.values()) <= self.options.hardware.memory_bytes

        low, high = 0, 1
        while fits(high) and high < 2**20:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if fits(middle) else (low, middle)
        return low

    def on_device(self, parts: Counter[str]) -> Counter[str]:
        """Parts of one device, with quantization, sharding and the reserve."""
        parts = Counter(parts)
        llm = self.tracer.modules.model.language_model
        if self.options.load_in_4bit:
            quantized = list(quantized_weights(llm))
            saved = sum(w.numel() * (w.element_size() - BYTES_OF_4BIT) for w in quantized)
            parts[WEIGHTS] -= round(saved)
            parts[DEQUANTIZED] = max(w.nbytes for w in quantized)
        if self.options.shard:
            layers = layer_sizes(llm)
            rest = parts[WEIGHTS] + parts[ENCODER] - sum(layers)
            for name in SHARDED_PARTS:
                parts[name] = -(-parts[name] // self.options.num_gpus)
            parts[GATHERED] = rest + 2 * max(layers)  # one that is used, one on its way
        parts[RESERVE] = 0 if self.options.hardware.name.startswith("cpu") else RESERVE_BYTES
        return parts


def choose_dtype(config: TrainConfig, options: PlanOptions) -> Precision:
    """Data type of the language model, as the training chooses it."""
    if config.dtype == "auto":
        return "float32" if options.hardware.name.startswith("cpu") else "bfloat16"
    return config.dtype


def trials_per_sample(config: TrainConfig) -> float:
    """Mean number of trials that a training sample is made of; see `SubjectBatchSampler`."""
    return 1 + config.mixup_prob + (2 if config.repetition_noise_scale else 0)


def extrapolate(small: Counter[str], large: Counter[str], batch_size: int) -> Counter[str]:
    """Sizes with a batch size, from those with the two of TRACED_BATCHES."""
    first, second = TRACED_BATCHES
    factor = (batch_size - first) / (second - first)
    return Counter(
        {
            name: max(0, round(small[name] + factor * (large[name] - small[name])))
            for name in small.keys() | large.keys()
        }
    )


def extrapolate_flops(small: StepTrace, large: StepTrace, batch_size: int) -> float:
    """Operations with a batch size."""
    first, second = TRACED_BATCHES
    slope = (large.flops - small.flops) / (second - first)
    return small.flops + slope * (batch_size - first)


def quantized_weights(model: Any) -> Iterator[Tensor]:
    """Weights that bitsandbytes quantizes: of linear layers, but those of the output embeddings."""
    head = model.get_output_embeddings()
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and module is not head and ".lora_" not in name:
            yield module.weight


def layer_sizes(model: Any) -> list[int]:
    """Bytes of the layers that FSDP gathers one at a time."""
    names = set(model._no_split_modules or [])
    return [
        sum(parameter.nbytes for parameter in module.parameters())
        for module in model.modules()
        if type(module).__name__ in names
    ] or [0]
