"""What every command shares: the application, the consoles, progress bars, and options that several commands have."""

from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress

import mindllm
from mindllm import progress
from mindllm.errors import InputError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def show_version(wanted: bool) -> None:
    """Print the version and stop, where that is wanted."""
    if wanted:
        print(mindllm.__version__)
        raise typer.Exit


@app.callback()
def every_command(
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Decode fMRI into text, and say honestly how much of the text came from the brain."""


console = Console()
errors = Console(stderr=True)


def bars() -> Progress:
    """Progress bars on the terminal's error stream, so that results alone are on the other."""
    return progress.bars(errors)


def listed(text: str | None) -> list[str] | None:
    """A comma-separated option as a list."""
    return [part.strip() for part in text.split(",") if part.strip()] if text else None


Subjects = Annotated[str | None, typer.Option(help="Comma-separated, e.g. sub-01,sub-02. Default: all.")]


def numbers(text: str | None) -> list[int] | None:
    """`0,3,5-8` as a list of whole numbers."""
    out: list[int] = []
    for part in listed(text) or []:
        first, dash, last = part.partition("-")
        if not first.isdecimal() or (dash and not (last.isdecimal() and int(first) <= int(last))):
            raise InputError(f"{text!r} is no list of volumes; expected whole numbers from 0, such as 0,3,5 or 0-9.")
        out += range(int(first), int(last or first) + 1)
    if text is not None and not out:
        raise InputError(f"{text!r} names no volume; expected whole numbers from 0, such as 0,3,5 or 0-9.")
    return out or None
