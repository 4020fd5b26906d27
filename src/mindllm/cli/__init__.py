"""The command line: one module per group of commands."""

import logging
import os
import sys
from collections.abc import Callable
from typing import Annotated

import typer
from rich.logging import RichHandler

from mindllm.cli import (
    ablate,
    adapt,
    bids_app,
    convert,
    decode,
    evaluate,
    explain,
    export,
    new_task,
    plan,
    prepare,
    report,
    score,
    serve,
    store,
    train,
    train_reader,
    walkthrough,
)
from mindllm.cli.interruption import Interruption, describe, end_children, interruptible
from mindllm.cli.options import errors, locks
from mindllm.utils.errors import InputError
from mindllm.utils.processes import is_main_process
from mindllm.utils.versions import package_version

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
app.add_typer(convert.app)
app.add_typer(train.app)
app.add_typer(train_reader.app)
app.add_typer(plan.app)
app.add_typer(ablate.app)
app.add_typer(adapt.app)
app.add_typer(decode.app)
app.add_typer(export.app)
app.add_typer(evaluate.app)
app.add_typer(new_task.app)
app.add_typer(explain.app)
app.add_typer(report.app)
app.add_typer(score.app)
app.add_typer(serve.app)
app.add_typer(store.app)
app.add_typer(walkthrough.app)
app.add_typer(prepare.app, name="prepare")


def show_version(requested: bool) -> None:
    """Print the version and stop, if requested."""
    if requested:
        print(package_version("mindllm"))
        raise typer.Exit


@app.callback()
def every_command(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=show_version, is_eager=True, help="Print the version and stop."
        ),
    ] = False,
) -> None:
    """Decode fMRI into text, and say honestly how much of the text came from the brain."""
    context.with_resource(locks)


def main() -> None:
    """Run a command of `mindllm`."""
    start(app)


def run_bids_app() -> None:
    """Run `mindllm-bids-app`."""

    def command() -> None:
        with locks:
            bids_app.run(sys.argv[1:])

    start(command)


def start(command: Callable[[], object]) -> None:
    """Start a command; bad input ends in one message and exit status 1, a signal in 128 more."""
    logging.basicConfig(
        level=logging.INFO if is_main_process() else logging.WARNING,
        format="%(message)s",
        handlers=[RichHandler(console=errors, show_time=False, show_path=False, show_level=True)],
    )
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    for library in (
        "uvicorn.error",
        "httpx",
        "httpcore",
        "huggingface_hub",
        "filelock",
        "matplotlib",
    ):
        logging.getLogger(library).setLevel(logging.WARNING)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # of optional kernels that are absent
    with interruptible():
        run(command)


def run(command: Callable[[], object]) -> None:
    """Run a command with the arguments; every end that is no success has its exit code."""
    try:
        command()
    except Interruption as end:
        end_children()
        errors.print(describe(end.number), highlight=False, markup=False, soft_wrap=True)
        sys.exit(end.exit_code)
    except InputError as error:
        errors.print(
            f"[bold red]error:[/bold red] {str(error).replace('[', chr(92) + '[')}",
            highlight=False,
            soft_wrap=True,
        )
        sys.exit(1)
