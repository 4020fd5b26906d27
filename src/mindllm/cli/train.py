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
    console,
    parse_list,
)

app = typer.Typer()


@app.command()
def train(
    store: StoreFolder,
    out: NewModel,
    subjects: Subjects = None,
    llm: Annotated[
        str | None,
        typer.Option(
            help="Hub id, folder or .gguf file of a causal language model. Default: SmolLM2-135M-Instruct."
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help="Sizes of the encoder: default, walkthrough (tiny) or paper (139 M weights)."
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="YAML or JSON file of training options; see `mindllm config`."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Makes the experiment repeatable.")] = None,
    split_scheme: SplitScheme = None,
    init_from: Annotated[
        str | None,
        typer.Option(
            help="A model folder to train further, with its own encoder, instead of a new one."
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Go on with an interrupted training (or begin, where there is none)."
        ),
    ] = False,
) -> None:
    """Train on some people: align the encoder with the text, then put it before the language model.

    Trials of the split `val` choose the checkpoint, or people left out with the option num_validation_subjects. What is given here
    wins over --config.
    """
    from mindllm.data.store import Store
    from mindllm.training import trainer as training
    from mindllm.training.configuration import read_config

    options = (
        ("language_model", llm),
        ("preset", preset),
        ("seed", seed),
        ("init_from", init_from),
    )
    given = {name: value for name, value in options if value is not None}
    settings = read_config(config, given)
    with bars() as progress:
        training.train(
            Store(store, split_scheme),
            out,
            settings,
            subjects=parse_list(subjects),
            resume=resume,
            progress=progress,
        )
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
        Path,
        typer.Option(help="Folder for the simulated people, the store, the model and the report."),
    ] = Path("runs/demo"),
    n_subjects: Annotated[
        int, typer.Option(min=3, help="People to simulate; the last one is left out of training.")
    ] = 8,
    seed: Seed = 0,
    llm: Annotated[
        str | None, typer.Option(help="Another language model than the small default.")
    ] = None,
) -> None:
    """Simulate people, train, and decode one whom the model has never seen: the whole road, on a CPU, in minutes."""
    from mindllm.cli.demo import demo as run

    run(out, console, bars, n_subjects, seed, llm)
