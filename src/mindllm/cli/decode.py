"""The command decode."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from mindllm.cli.options import (
    BatchSize,
    LanguageModelPath,
    MaxNewTokens,
    ModelFolder,
    bars,
    console,
    parse_int_ranges,
)
from mindllm.utils.errors import InputError

if TYPE_CHECKING:
    from mindllm.model.decode import DecodedVolume

app = typer.Typer()


@app.command()
def decode(
    model: ModelFolder,
    scan: Annotated[Path, typer.Argument(help="A 3-D or 4-D NIfTI file, one volume per trial.")],
    mask: Annotated[
        Path | None, typer.Option(help="NIfTI mask of the voxels to read, on the scan's grid.")
    ] = None,
    subject: Annotated[
        str | None,
        typer.Option(
            help="Instead of --mask and --atlas: a person whose voxels travel with the model."
        ),
    ] = None,
    atlas: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME=FILE, a parcellation on the same grid with its lookup table beside it. Repeatable."
        ),
    ] = None,
    volumes: Annotated[
        str | None, typer.Option(help="Which volumes, e.g. 0,3,5 or 0-9. Default: all.")
    ] = None,
    question: Annotated[
        str | None,
        typer.Option(
            help="What to ask about the scan. Default: what the model was trained to answer."
        ),
    ] = None,
    standardize_with: Annotated[
        Path | None,
        typer.Option(
            help="Another scan of the same person and grid to normalize with, of at least 8 volumes. Default: all volumes of SCAN."
        ),
    ] = None,
    standardized: Annotated[
        bool,
        typer.Option(
            "--standardized",
            help="The values of SCAN are normalized already: take them as they are.",
        ),
    ] = False,
    do_sample: Annotated[
        bool, typer.Option("--do-sample", help="Sample instead of taking the most likely words.")
    ] = False,
    temperature: Annotated[float, typer.Option(help="With --do-sample: how freely.")] = 0.7,
    max_new_tokens: MaxNewTokens = 48,
    batch_size: BatchSize = 16,
    seed: Annotated[int, typer.Option(help="With --do-sample.")] = 0,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON: volume, text, evidence.")
    ] = False,
    stream: Annotated[bool, typer.Option("--stream", help="Print words as they come.")] = False,
    llm: LanguageModelPath = None,
) -> None:
    """Say in words what a person was seeing, one answer per volume of a scan."""
    import torch

    from mindllm.model.checkpoint import load
    from mindllm.model.decode import decode as run

    atlases = parse_atlases(atlas or [])
    if (mask is None) == (subject is None):
        raise InputError(
            "give either --mask (and --atlas), or --subject for a person whose voxels travel with the model."
        )
    torch.manual_seed(seed)
    loaded = load(model, language_model=llm)
    if subject is not None and subject not in loaded.maskers:
        raise InputError(
            f"{model} carries no voxels of {subject}; it carries {', '.join(loaded.maskers) or 'nobody'}."
        )
    voxels = loaded.maskers[subject] if subject is not None else mask
    assert voxels is not None
    options: dict[str, Any] = {"max_new_tokens": max_new_tokens} | (
        {"do_sample": True, "temperature": temperature} if do_sample else {}
    )
    if stream and as_json:
        raise InputError(
            "--stream prints words as they come, --json one document at the end: choose one of them."
        )
    wanted = parse_int_ranges(volumes)
    with decode_progress(stream, len(wanted) if wanted else None) as done:
        found = run(
            loaded, scan, voxels, atlases, volumes=wanted, question=question, standardize_with=standardize_with, standardized=standardized,
            batch_size=batch_size, on_text=(lambda text: print(text, end="", flush=True)) if stream else None, on_volume=done, **options,
        )  # fmt: skip
    if not stream:
        show(found, as_json)


def parse_atlases(pairs: Sequence[str]) -> dict[str, str]:
    """NAME=FILE, each, as name -> file."""
    files = {}
    for pair in pairs:
        name, separator, file = pair.partition("=")
        if not separator:
            raise InputError(
                f"--atlas {pair}: expected NAME=FILE, e.g. --atlas HCPEx=atlas-HCPEx_dseg.nii.gz"
            )
        files[name] = file
    return files


@contextmanager
def decode_progress(stream: bool, total: int | None) -> Iterator[Callable[[int], None]]:
    """Yield what is told how many volumes are decoded: it moves a bar, or ends the line of words that were streamed."""
    if stream:  # a bar would be drawn over the words
        yield lambda count: print(flush=True)
        return
    with bars() as progress:
        task = progress.add_task("decoding", total=total)
        yield lambda count: progress.update(task, completed=count)


def show(found: Sequence["DecodedVolume"], as_json: bool) -> None:
    """Print what was decoded: as one JSON document, or a line per volume."""
    if as_json:
        rows = [
            {"volume": d.volume, "text": d.text, "evidence": round(d.log_likelihood_ratio, 4)}
            for d in found
        ]
        print(json.dumps(rows, ensure_ascii=False, indent=1))
        return
    for d in found:
        line = (
            f"{d.volume:5d}  {escape(d.text)}  [dim](evidence {d.log_likelihood_ratio:+.1f})[/dim]"
        )
        console.print(line, highlight=False, soft_wrap=True)
