"""What every command shares: the consoles, progress bars, and the options that several commands have."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from mindllm.utils import progress
from mindllm.utils.errors import InputError

ModelFolder = Annotated[Path, typer.Argument(help="A model folder.")]
StoreFolder = Annotated[Path, typer.Argument(help="A prepared store.")]
NewModel = Annotated[Path, typer.Option(help="The model folder to write.")]
Subjects = Annotated[
    str | None, typer.Option(help="Comma-separated, e.g. sub-01,sub-02. Default: all.")
]
SplitScheme = Annotated[
    str | None,
    typer.Option(
        "--split-scheme",
        help="A split made by `mindllm split`. Default: that of `prepare`, or as the model was trained.",
    ),
]
NJobs = Annotated[
    int, typer.Option(min=1, help="Sessions read at once, each by a process of its own.")
]
DaskScheduler = Annotated[
    str | None,
    typer.Option(help="Address of a dask scheduler, whose workers see the same files, to read on."),
]
StorageDtype = Annotated[str, typer.Option(help="How betas are stored: float32 or float16.")]
NewStore = Annotated[Path, typer.Option(help="The store to write.")]
LanguageModelPath = Annotated[
    str | None,
    typer.Option(help="Where the language model stands, if not under the model's name for it."),
]
MaxNewTokens = Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Trials read by the language model at once.")]
Seed = Annotated[int, typer.Option(help="Of everything drawn at random.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]

console = Console()
errors = Console(stderr=True)


def bars() -> Progress:
    """Progress bars on the terminal's error stream, so that results alone are on the other."""
    return progress.make_progress(errors)


def parse_list(text: str | None) -> list[str] | None:
    """A comma-separated option as a list."""
    return [part.strip() for part in text.split(",") if part.strip()] if text else None


def parse_int_ranges(text: str | None) -> list[int] | None:
    """`0,3,5-8` as a list of whole numbers."""
    out: list[int] = []
    for part in parse_list(text) or []:
        first, dash, last = part.partition("-")
        if not first.isdecimal() or (dash and not (last.isdecimal() and int(first) <= int(last))):
            raise InputError(
                f"{text!r} is no list of whole numbers; expected such as 0,3,5 or 0-9."
            )
        out += range(int(first), int(last or first) + 1)
    if text is not None and not out:
        raise InputError(f"{text!r} names no number; expected such as 0,3,5 or 0-9.")
    return out or None
