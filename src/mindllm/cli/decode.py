"""The command decode."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from mindllm.cli.options import (
    BatchSize,
    LanguageModelPath,
    MaskThreshold,
    MaxNewTokens,
    ModelFolder,
    bars,
    check_model,
    console,
    finite,
    parse_int_ranges,
)
from mindllm.utils.errors import InputError
from mindllm.utils.files import to_json
from mindllm.utils.seeds import MAX_SEED
from mindllm.utils.text_files import check_regular_file

if TYPE_CHECKING:
    from nibabel.spatialimages import SpatialImage

    from mindllm.fmri.masker import VoxelMasker
    from mindllm.model.decode import DecodedVolume
    from mindllm.model.modeling import MindLLM

app = typer.Typer()

Scan = Annotated[Path, typer.Argument(help="A 3-D or 4-D NIfTI file, one volume per trial.")]
Mask = Annotated[Path | None, typer.Option(help="NIfTI mask of the voxels, on the scan's grid.")]
MaskerSubject = Annotated[
    str | None,
    typer.Option(help="Instead of --mask and --atlas: a subject whose masker the model holds."),
]
Atlases = Annotated[
    list[str] | None,
    typer.Option(
        help="NAME=FILE, an atlas on the scan's grid, lookup table beside it. Repeatable."
    ),
]
Volumes = Annotated[str | None, typer.Option(help="Which volumes, e.g. 0,3,5-9. Default: all.")]
Question = Annotated[
    str | None,
    typer.Option(help="Question about the scan. Default: the one the model was trained with."),
]
StandardizeWith = Annotated[
    Path | None,
    typer.Option(
        help="Another scan of the same subject and grid to standardize with, "
        "of at least 8 volumes. Default: all volumes of SCAN."
    ),
]
Standardized = Annotated[
    bool, typer.Option("--standardized", help="SCAN holds standardized betas: take them as is.")
]
DoSample = Annotated[
    bool, typer.Option("--do-sample", help="Sample instead of taking the likeliest token.")
]
Temperature = Annotated[
    float,
    typer.Option(min=0.01, max=100, callback=finite, help="With --do-sample: the temperature."),
]
SamplingSeed = Annotated[int, typer.Option(min=0, max=MAX_SEED, help="With --do-sample: the seed.")]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print JSON: volume, text, log_likelihood_ratio.")
]
StreamText = Annotated[bool, typer.Option("--stream", help="Print text as it is generated.")]


@app.command()
def decode(
    model: ModelFolder,
    scan: Scan,
    mask: Mask = None,
    mask_threshold: MaskThreshold = None,
    subject: MaskerSubject = None,
    atlas: Atlases = None,
    volumes: Volumes = None,
    question: Question = None,
    standardize_with: StandardizeWith = None,
    standardized: Standardized = False,
    do_sample: DoSample = False,
    temperature: Temperature = 0.7,
    max_new_tokens: MaxNewTokens = 48,
    batch_size: BatchSize = 16,
    seed: SamplingSeed = 0,
    as_json: AsJson = False,
    stream: StreamText = False,
    llm: LanguageModelPath = None,
) -> None:
    """Decode the volumes of a scan into text, one prediction per volume."""
    check_options(mask, subject, stream, as_json)
    atlases, indices = parse_atlases(atlas or []), parse_int_ranges(volumes)
    check_model(model, llm)
    check_files(scan, mask, atlases, standardize_with)
    mask_img = mask if mask_threshold is None else threshold_mask(mask, mask_threshold)
    loaded = load_model(model, llm, seed)
    sampling = {"do_sample": True, "temperature": temperature} if do_sample else {}
    from mindllm.model.decode import decode as decode_scan

    with decode_progress(stream, len(indices) if indices else None) as on_volume:
        decoded = decode_scan(
            loaded,
            scan,
            get_masker(loaded, model, subject) if subject is not None else mask_img,
            atlases,
            volumes=indices,
            question=question,
            standardize_with=standardize_with,
            standardized=standardized,
            batch_size=batch_size,
            on_text=(lambda text: print(text, end="", flush=True)) if stream else None,
            on_volume=on_volume,
            max_new_tokens=max_new_tokens,
            **sampling,
        )
    if not stream:
        show(decoded, as_json)


def check_options(mask: Path | None, subject: str | None, stream: bool, as_json: bool) -> None:
    """Refuse options that exclude each other, before anything is loaded."""
    if (mask is None) == (subject is None):
        raise InputError(
            "give either --mask (and --atlas), or --subject for one whose masker the model holds."
        )
    if stream and as_json:
        raise InputError("--stream prints as it goes, --json at the end: choose one of them.")


def threshold_mask(mask: Path | None, threshold: float) -> "SpatialImage":
    """Make a binary mask of one that is not."""
    from mindllm.fmri.nifti import binarize_mask

    if mask is None:
        raise InputError("--mask-threshold is for --mask: give one, or leave it out.")
    return binarize_mask(mask, threshold)


def check_files(
    scan: Path, mask: Path | None, atlases: dict[str, str], standardize_with: Path | None
) -> None:
    """Refuse files that are not there, before anything is loaded."""
    if mask is not None:
        check_regular_file(mask, "the mask")
    for name, file in atlases.items():
        check_regular_file(Path(file), f"the atlas {name}")
    check_regular_file(scan, "the scan")
    if standardize_with is not None:
        check_regular_file(standardize_with, "the image of --standardize-with")


def load_model(folder: Path, language_model: str | None, seed: int) -> "MindLLM":
    """Load the model, with the random state that sampling starts from."""
    import torch

    from mindllm.model.modeling import MindLLM

    torch.manual_seed(seed)
    return MindLLM.from_pretrained(folder, language_model=language_model)


def get_masker(model: "MindLLM", folder: Path, subject: str) -> "VoxelMasker":
    """The masker of a training subject."""
    if subject not in model.maskers:
        raise InputError(
            f"{folder} holds no masker of {subject}; it holds {', '.join(model.maskers) or 'none'}."
        )
    return model.maskers[subject]


def parse_atlases(pairs: Sequence[str]) -> dict[str, str]:
    """Map name to file of options NAME=FILE.

    Examples
    --------
    >>> parse_atlases(["HCPEx=atlas-HCPEx_dseg.nii.gz"])
    {'HCPEx': 'atlas-HCPEx_dseg.nii.gz'}
    """
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
    """Yield a callback for the number of decoded volumes: it moves a bar or ends a line."""
    if stream:  # a bar would be drawn over the text
        yield lambda count: print(flush=True)
        return
    with bars() as progress:
        task = progress.add_task("decoding", total=total)
        yield lambda count: progress.update(task, completed=count)


def show(decoded: Sequence["DecodedVolume"], as_json: bool) -> None:
    """Print predictions as one JSON document, or a line per volume."""
    if as_json:
        rows = [
            {
                "volume": d.volume,
                "text": d.text,
                "log_likelihood_ratio": round(d.log_likelihood_ratio, 4),
            }
            for d in decoded
        ]
        print(to_json(rows))
        return
    for d in decoded:
        ratio = f"[dim](log-likelihood ratio {d.log_likelihood_ratio:+.1f})[/dim]"
        console.print(f"{d.volume:5d}  {escape(d.text)}  {ratio}", highlight=False, soft_wrap=True)
