"""What commands share: consoles, progress bars, and the options that several of them have."""

import math
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from mindllm.utils import progress
from mindllm.utils.errors import InputError
from mindllm.utils.files import check_output
from mindllm.utils.locks import lock_output
from mindllm.utils.processes import is_main_process
from mindllm.utils.seeds import MAX_SEED

MAX_COUNT = 100_000  # of what is read or written at once

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
MaxNewTokens = Annotated[
    int,
    typer.Option(min=1, max=MAX_COUNT, help="Length limit of a prediction, in tokens."),
]
BatchSize = Annotated[
    int, typer.Option(min=1, max=MAX_COUNT, help="Trials the language model reads at once.")
]
Seed = Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Seed of all random draws.")]
MaskThreshold = Annotated[
    float | None,
    typer.Option(
        callback=lambda value: finite(value),
        help="For a mask that is not binary, such as a probability map: voxels above it are "
        "inside.",
    ),
]
OpenPage = Annotated[
    bool,
    typer.Option("--open", help="Open the page in the browser; without one, print where it is."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]

console = Console()
locks = ExitStack()  # of outputs, until the command ends
errors = Console(stderr=True)


def bars() -> Progress:
    """Progress bars on the error stream, so that standard output holds results alone."""
    return progress.make_progress(errors)


def claim_output(path: Path, inputs: Sequence[Path] = (), resumable: Sequence[str] = ()) -> None:
    """Lock an output until the command ends, and check that it can be written; see `check_output`.

    Raises
    ------
    InputError
        If another process writes it, or as `check_output` does.
    """
    if not is_main_process():
        return  # of one command, the first process writes
    locks.enter_context(lock_output(path))
    check_output(path, inputs, resumable)


def check_model(folder: Path, language_model: str | None) -> None:
    """Refuse what is no model folder or no language model, before anything is loaded."""
    from mindllm.language.hub import check_path
    from mindllm.model.pretrained import check_model_name

    check_model_name(folder)
    if language_model is not None:
        check_path(language_model)


def parse_list(text: str | None) -> list[str] | None:
    """Split a comma-separated option; None stays None.

    Raises
    ------
    InputError
        If the text names nothing.

    Examples
    --------
    >>> parse_list("sub-01, sub-02")
    ['sub-01', 'sub-02']
    """
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        raise InputError(f"{text!r} names nothing; expected names or numbers between commas.")
    return parts


def parse_assignments(texts: Sequence[str]) -> dict[str, str]:
    """Split options such as `motion=basic` into names and values.

    Raises
    ------
    InputError
        If a text is none, or a name comes twice.

    Examples
    --------
    >>> parse_assignments(["motion=basic", "fd_threshold=0.3"])
    {'motion': 'basic', 'fd_threshold': '0.3'}
    """
    values: dict[str, str] = {}
    for text in texts:
        name, equals, value = (part.strip() for part in text.partition("="))
        if not (name and equals and value):
            raise InputError(f"{text!r} is no NAME=VALUE; expected e.g. motion=basic.")
        if name in values:
            raise InputError(f"{name} is set twice; expected one value.")
        values[name] = value
    return values


def finite(value: float | None) -> float | None:
    """Refuse NaN and infinity, which ranges of options let through."""
    if value is not None and not math.isfinite(value):
        raise InputError(f"an option is {value}; expected a finite number.")
    return value


def parse_int_ranges(text: str | None) -> list[int] | None:
    """Expand an option such as `0,3,5-8` to whole numbers; None stays None.

    Raises
    ------
    InputError
        If the text names nothing, or something else than numbers.

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
    return numbers or None
