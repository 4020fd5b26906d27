"""The command plan: memory, time and cost of a training, before it is begun."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from mindllm.cli.options import MAX_COUNT, AsJson, console, errors
from mindllm.cli.train import ConfigFile, Preset
from mindllm.utils.errors import InputError

if TYPE_CHECKING:
    from mindllm.training.configuration import TrainConfig
    from mindllm.training.hardware import Hardware
    from mindllm.training.planning import DataShape, PhasePlan, TrainingPlan

app = typer.Typer()
MAX_TRIALS = 1_000_000_000

Store = Annotated[Path | None, typer.Argument(help="A prepared store, instead of the sizes below.")]
Size = Annotated[int | None, typer.Option(min=1, max=MAX_TRIALS)]
Tokens = Annotated[int, typer.Option(min=0, max=MAX_COUNT)]


LanguageModelShape = Annotated[
    str,
    typer.Option(
        help="Shape of the language model: a name such as vicuna-7b, a config.json, a folder or a "
        "hub id. No weights are read."
    ),
]
BatchSize = Annotated[int | None, typer.Option(min=1, max=MAX_COUNT, help="Instruction tuning.")]
Lora = Annotated[bool, typer.Option("--lora", help="Train a LoRA adapter of rank 8.")]
HardwareName = Annotated[
    str, typer.Option(help="A GPU, such as rtx-4090 or h100, or cpu: this machine, measured.")
]
MemoryGib = Annotated[float | None, typer.Option(min=0.1, help="Of another GPU.")]
Tflops = Annotated[
    float | None, typer.Option(min=0.001, help="Of another GPU, in bfloat16 and dense.")
]
Efficiency = Annotated[
    float | None,
    typer.Option(min=0.01, max=1.0, help="Fraction of its operations that a step reaches."),
]
NumGpus = Annotated[int, typer.Option(min=1, max=10_000, help="That share the samples.")]
Shard = Annotated[bool, typer.Option("--shard", help="Shard weights (FSDP2).")]
Checkpointing = Annotated[
    bool, typer.Option("--gradient-checkpointing", help="Compute activations again.")
]
LoadIn4Bit = Annotated[
    bool, typer.Option("--load-in-4bit", help="Language model in 4 bits (bitsandbytes).")
]
Price = Annotated[float | None, typer.Option(min=0, help="Of a GPU and hour.")]
SomeTokens = Annotated[int, typer.Option(min=1, max=MAX_COUNT)]


@app.command()
def plan(
    store: Store = None,
    llm: LanguageModelShape = "smollm2-135m",
    voxels: Size = None,
    trials: Size = None,
    subjects: Size = None,
    config: ConfigFile = None,
    preset: Preset = None,
    batch_size: BatchSize = None,
    lora: Lora = False,
    hardware: HardwareName = "rtx-4090",
    memory_gib: MemoryGib = None,
    tflops: Tflops = None,
    efficiency: Efficiency = None,
    num_gpus: NumGpus = 1,
    shard: Shard = False,
    gradient_checkpointing: Checkpointing = False,
    load_in_4bit: LoadIn4Bit = False,
    price: Price = None,
    text_tokens: Tokens = 64,
    answer_tokens: SomeTokens = 24,
    new_tokens: SomeTokens = 48,
    as_json: AsJson = False,
) -> None:
    """Plan a training: memory by part, the largest batch that fits, time and cost.

    A step is followed on tensors without content, so neither weights nor a GPU are needed. The
    reserve and the efficiency are assumptions; everything else is counted or measured.
    """
    from mindllm.language.shapes import read_shape
    from mindllm.training.planning import PlanOptions, plan_training

    check_tokens(text_tokens, answer_tokens)
    settings = read_settings(config, preset, lora, batch_size)
    data = read_data(store, voxels, trials, subjects)
    shape = read_shape(llm)
    with errors.status("following a step"):
        options = PlanOptions(
            hardware=choose_hardware(hardware, memory_gib, tflops, efficiency),
            num_gpus=num_gpus,
            shard=shard,
            gradient_checkpointing=gradient_checkpointing,
            load_in_4bit=load_in_4bit,
            price_per_hour=price,
            text_tokens=text_tokens,
            answer_tokens=answer_tokens,
            new_tokens=new_tokens,
        )
        result = plan_training(shape, data, settings, options)
    if as_json:
        print(json.dumps(describe(result)))
    else:
        print_plan(result, llm, data)


def check_tokens(text_tokens: int, answer_tokens: int) -> None:
    """Raise InputError unless the answer is a part of the text."""
    if answer_tokens > text_tokens:
        raise InputError(
            f"--answer-tokens {answer_tokens} are part of --text-tokens {text_tokens}: "
            "give no more."
        )


def read_settings(
    config: Path | None, preset: str | None, lora: bool, batch_size: int | None
) -> "TrainConfig":
    """Options of the training, of the file and of the command line."""
    from mindllm.training.configuration import LoraOptions, read_config

    settings = read_config(config, {"preset": preset} if preset else {})
    if lora and settings.lora is None:
        settings.lora = LoraOptions()
    if batch_size is not None:
        settings.instruction_tuning.batch_size = batch_size
    return settings


def read_data(
    store: Path | None, voxels: int | None, trials: int | None, subjects: int | None
) -> "DataShape":
    """Sizes of the store, or those that are named; by default those of NSD."""
    from mindllm.data.store import Store as DataStore
    from mindllm.training.planning import DataShape, measure_store

    if store is None:
        return DataShape(subjects or 8, trials or 72_000, voxels or 15_724)
    if voxels or trials or subjects:
        raise InputError(
            f"sizes are those of {store}; leave out --voxels, --trials and --subjects, or the "
            "store."
        )
    return measure_store(DataStore(store))


def choose_hardware(
    name: str, memory_gib: float | None, tflops: float | None, efficiency: float | None
) -> "Hardware":
    """Hardware by its name, with numbers that are replaced."""
    from mindllm.training.hardware import GIB, find_hardware

    hardware = find_hardware(name)
    if memory_gib is not None:
        hardware = replace(hardware, memory_bytes=int(memory_gib * GIB))
    if tflops is not None:
        flops = {**hardware.flops, "bfloat16": tflops * 1e12}
        hardware = replace(hardware, flops=flops, source="as given, else " + hardware.source)
    if efficiency is not None:
        hardware = replace(hardware, efficiency=efficiency)
    return hardware


def describe(plan: "TrainingPlan") -> dict[str, object]:
    """Content of the JSON that is printed."""
    phases = [
        asdict(phase)
        | {"peak_bytes": phase.peak_bytes, "hours": phase.hours, "cost": plan.cost(phase)}
        for phase in plan.phases
    ]
    return {
        "language_model_parameters": plan.n_parameters,
        "trained_parameters": plan.n_trained,
        "hardware": asdict(plan.options.hardware),
        "phases": phases,
    }


def print_plan(plan: "TrainingPlan", llm: str, data: "DataShape") -> None:
    """Print a table of parts by phase, then sizes and times."""
    from mindllm.training.hardware import GIB
    from mindllm.training.planning import PARTS

    hardware, options = plan.options.hardware, plan.options
    console.print(
        f"{llm} ({plan.n_parameters / 1e6:,.0f} M parameters, {plan.n_trained / 1e6:,.1f} M "
        f"trained) on {options.num_gpus} x {hardware.name} ({hardware.memory_bytes / GIB:.0f} "
        f"GiB); {data.n_trials:,} trials of {data.n_voxels:,} voxels"
    )
    table = Table("GiB of a device, at the peak")
    for phase in plan.phases:
        table.add_column(phase.name.replace("_", " "), justify="right")
    for name in PARTS:
        if not any(name in phase.parts for phase in plan.phases):
            continue
        table.add_row(name, *(f"{p.parts.get(name, 0) / GIB:.2f}" for p in plan.phases))
    table.add_section()
    for label, values in rows(plan, data):
        table.add_row(label, *values)
    console.print(table)
    console.print(
        "Parts are what is in memory when most is. Counted: weights, gradients, optimizer, "
        "activations, logits, betas. Loading: 8,000 trials of 15,724 voxels a second, as `make "
        "bench` checks. "
        f"Operations: {hardware.source}; a step reaches {hardware.efficiency:.0%} of them. "
        "Assumed: the reserve, 1 GiB on a GPU.",
        highlight=False,
    )


def rows(plan: "TrainingPlan", data: "DataShape") -> list[tuple[str, list[str]]]:
    """Rows below the parts: a label and a text for each phase."""
    from mindllm.training.hardware import GIB

    def row(label: str, text: Callable[["PhasePlan"], str]) -> tuple[str, list[str]]:
        return label, [text(phase) for phase in plan.phases]

    capacity = plan.options.hardware.memory_bytes
    content = [
        row("sum", lambda p: f"{p.peak_bytes / GIB:.2f}"),
        row("fits", lambda p: "yes" if p.peak_bytes <= capacity else "no"),
        row("samples at once", lambda p: str(p.batch_size)),
        row("most that fit", lambda p: str(min(p.largest_batch, data.n_trials))),
        row("steps", lambda p: f"{p.n_steps:,}"),
        row("seconds a step", lambda p: f"{p.compute_seconds + p.loading_seconds:.3g}"),
        row("of it loading", lambda p: f"{p.loading_seconds:.2g}"),
        row("hours", lambda p: f"{p.hours:.3g}"),
    ]
    if plan.options.price_per_hour is not None:
        content.append(row("cost", lambda p: f"{plan.cost(p) or 0:.2f}"))
    return content
