"""What commands share: consoles, progress bars, and the options that several of them have."""

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
        help="A split made by `mindllm split`. "
        "Default: that of `prepare`, or the one the model was trained with.",
    ),
]
NJobs = Annotated[int, typer.Option(min=1, help="Sessions read in parallel, a process for each.")]
DaskScheduler = Annotated[
    str | None,
    typer.Option(help="Address of a dask scheduler to read on; its workers see the same files."),
]
StorageDtype = Annotated[str, typer.Option(help="How betas are stored: float32 or float16.")]
NewStore = Annotated[Path, typer.Option(help="The store to write.")]
LanguageModelPath = Annotated[
    str | None,
    typer.Option(help="Folder of the language model, if not found under the model's name for it."),
]
MaxNewTokens = Annotated[int, typer.Option(min=1, help="Length limit of a prediction, in tokens.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Trials the language model reads at once.")]
MaskThreshold = Annotated[
    float | None,
    typer.Option(
        help="For a mask that is not binary, such as a probability map: voxels above it are inside."
    ),
]
Seed = Annotated[int, typer.Option(help="Seed of all random draws.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]

console = Console()
errors = Console(stderr=True)


def bars() -> Progress:
    """Progress bars on the error stream, so that standard output holds results alone."""
    return progress.make_progress(errors)


def parse_list(text: str | None) -> list[str] | None:
    """Split a comma-separated option; None stays None.

    Examples
    --------
    >>> parse_list("sub-01, sub-02")
    ['sub-01', 'sub-02']
    """
    return [part.strip() for part in text.split(",") if part.strip()] if text else None


def parse_int_ranges(text: str | None) -> list[int] | None:
    """Expand an option such as `0,3,5-8` to whole numbers; None stays None.

    Raises
    ------
    InputError
        If the text names no number, or something else.

    Examples
    --------
    >>> parse_int_ranges("0,3,5-8")
    [0, 3, 5, 6, 7, 8]
    """
    numbers: list[int] = []
    for part in parse_list(text) or []:
        first, dash, last = part.partition("-")
        if not first.isdecimal() or (dash and not (last.isdecimal() and int(first) <= int(last))):
            raise InputError(f"{text!r} is no list of whole numbers; expected e.g. 0,3,5 or 0-9.")
        numbers += range(int(first), int(last or first) + 1)
    if text is not None and not numbers:
        raise InputError(f"{text!r} names no number; expected e.g. 0,3,5 or 0-9.")
    return numbers or None
