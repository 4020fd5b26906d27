"""The commands train and config, and the demo."""

from pathlib import Path
from typing import Annotated

import typer

from mindllm.cli.options import (
    NewModel,
    Seed,
    SplitScheme,
    StoreFolder,
    Subjects,
    bars,
    claim_output,
    console,
    parse_list,
)
from mindllm.utils.processes import is_main_process
from mindllm.utils.seeds import MAX_SEED

app = typer.Typer()

LanguageModel = Annotated[
    str | None,
    typer.Option(
        help="Hub id, folder or .gguf file of a causal language model. "
        "Default: SmolLM2-135M-Instruct."
    ),
]
Preset = Annotated[
    str | None,
    typer.Option(help="Encoder sizes: default, walkthrough (tiny) or paper (139 M weights)."),
]
ConfigFile = Annotated[
    Path | None, typer.Option(help="YAML or JSON file of training options; see `mindllm config`.")
]
TrainingSeed = Annotated[
    int | None, typer.Option(min=0, max=MAX_SEED, help="Seed of all random draws.")
]
InitFrom = Annotated[
    str | None,
    typer.Option(help="A model to train further, with its own encoder, instead of a new one."),
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Continue an interrupted training, or begin one.")
]


@app.command()
def train(
    store: StoreFolder,
    out: NewModel,
    subjects: Subjects = None,
    llm: LanguageModel = None,
    preset: Preset = None,
    config: ConfigFile = None,
    seed: TrainingSeed = None,
    split_scheme: SplitScheme = None,
    init_from: InitFrom = None,
    resume: Resume = False,
) -> None:
    """Train a model: align the encoder to text, then tune it through the language model.

    Trials of the split `val` choose the checkpoint, or subjects held out with the option
    num_validation_subjects. Options on the command line win over those of --config.
    """
    from mindllm.data.store import Store
    from mindllm.language.hub import check_path
    from mindllm.training import trainer
    from mindllm.training.configuration import read_config

    inputs = [store, *([Path(init_from)] if init_from else []), *([Path(llm)] if llm else [])]
    claim_output(out, inputs=inputs, resumable=("config.json", "training", "training.csv"))
    options = {"language_model": llm, "preset": preset, "seed": seed, "init_from": init_from}
    if llm is not None:
        check_path(llm)
    settings = read_config(config, {k: v for k, v in options.items() if v is not None})
    with bars() as progress:
        trainer.train(
            Store(store, split_scheme),
            out,
            settings,
            subjects=parse_list(subjects),
            resume=resume,
            progress=progress if is_main_process() else None,
        )
    if is_main_process():
        console.print(f"{out}: trained; curves in {out / 'training.png'}")


@app.command("config")
def show_config() -> None:
    """Print every training option with its default, as YAML for `train --config`."""
    import yaml

    from mindllm.training.configuration import TrainConfig

    print(yaml.safe_dump(TrainConfig().model_dump(mode="json"), sort_keys=False), end="")


@app.command()
def demo(
    out: Annotated[
        Path, typer.Option(help="Folder for the simulated data, the store, the model, the report.")
    ] = Path("runs/demo"),
    n_subjects: Annotated[
        int,
        typer.Option(
            min=3, max=1000, help="Subjects to simulate; the last one is left out of training."
        ),
    ] = 8,
    seed: Seed = 0,
    llm: LanguageModel = None,
) -> None:
    """Simulate subjects, train, and evaluate on one left out: the whole pipeline, on a CPU."""
    from mindllm.cli.demo import demo as run

    claim_output(out, inputs=[Path(llm)] if llm else [], resumable=("bids", "bids.partial"))
    run(out, console, bars, n_subjects, seed, llm)
