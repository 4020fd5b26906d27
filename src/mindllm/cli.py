"""One command per verb."""

import json
import logging
import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from mindllm.errors import InputError

if TYPE_CHECKING:
    from mindllm.data.store import Store

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Decode fMRI into text, and say honestly how much of the text came from the brain.",
    pretty_exceptions_enable=False,
)
prepare_app = typer.Typer(no_args_is_help=True, help="Make a store (plain files, ready for training) of a data set.")
app.add_typer(prepare_app, name="prepare")
console = Console()
errors = Console(stderr=True)


def main() -> None:
    """Run a command. Bad input ends in one clear message and exit status 1."""
    logging.basicConfig(
        level=logging.INFO,
        format="%(message)s",
        handlers=[RichHandler(console=errors, show_time=False, show_path=False, show_level=True)],
    )
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    for noisy in ("httpx", "httpcore", "huggingface_hub", "filelock", "matplotlib"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        app()
    except InputError as error:
        errors.print(
            f"[bold red]error:[/bold red] {str(error).replace('[', chr(92) + '[')}", highlight=False, soft_wrap=True
        )
        sys.exit(1)


def bars() -> Progress:
    """Progress bars with counts, time gone and time left."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=errors)


def listed(text: str | None) -> list[str] | None:
    """A comma-separated option as a list."""
    return [part.strip() for part in text.split(",") if part.strip()] if text else None


Subjects = Annotated[str | None, typer.Option(help="Comma-separated, e.g. sub-01,sub-02. Default: all.")]


def summarize(store: "Store") -> None:
    """What a store holds, in a line."""
    trials = sum(len(store.trials(s)) for s in store.subjects)
    console.print(
        f"{store.path}: {len(store.subjects)} subjects, {trials} trials, {store.conversations['stimulus'].nunique()} stimuli with text"
    )


@prepare_app.command("bids")
def prepare_bids(
    folder: Annotated[
        Path,
        typer.Argument(
            help="BIDS derivatives: statmaps of single-trial betas, masks, trials tables, dseg parcellations."
        ),
    ],
    out: Annotated[Path, typer.Option(help="The store to write.")],
    subjects: Subjects = None,
    mask: Annotated[
        str | None,
        typer.Option(
            help="Glob of the mask files within a subject's folder. Default: *_desc-brain_mask.nii.gz, else where *_desc-R2mean_statmap.nii.gz is above 0."
        ),
    ] = None,
    val: Annotated[
        float, typer.Option(help="Share of the stimuli for validation, where the trials tables have no column `split`.")
    ] = 0.0,
    test: Annotated[float, typer.Option(help="Share of the stimuli for testing, likewise.")] = 0.0,
    nan: Annotated[str, typer.Option(help="Voxels with NaN: `error`, or `drop` to leave them out.")] = "error",
    dtype: Annotated[str, typer.Option(help="How betas are stored: float32 or float16.")] = "float32",
    seed: Annotated[int, typer.Option(help="Of everything drawn at random.")] = 0,
) -> None:
    """Make a store of BIDS derivatives with single-trial betas. Run it again after an interruption: it goes on."""
    from mindllm.data import bids

    chosen = {name: share for name, share in (("val", val), ("test", test)) if share}
    with bars() as progress:
        store = bids.prepare(
            folder,
            out,
            subjects=listed(subjects),
            mask=mask,
            split=chosen,
            nan=nan,  # type: ignore[arg-type] # checked there
            dtype=dtype,  # type: ignore[arg-type] # likewise
            seed=seed,
            progress=progress,
        )
    summarize(store)


@prepare_app.command("official")
def prepare_official(
    folder: Annotated[
        Path,
        typer.Argument(
            help="The authors' prepared data: the folder that holds nsd0 or webdataset_avg_split, cache, roi."
        ),
    ],
    out: Annotated[Path, typer.Option(help="The store to write.")],
    subjects: Annotated[str | None, typer.Option(help="Comma-separated, e.g. subj01,subj02. Default: all.")] = None,
    layout: Annotated[
        str | None, typer.Option(help="nsd0 or mindeye (webdataset_avg_split). Default: the one that is there.")
    ] = None,
    sources: Annotated[
        str | None, typer.Option(help="Instruction files to take, comma-separated, e.g. coco-caption. Default: all.")
    ] = None,
    val: Annotated[
        float,
        typer.Option(help="Share of the training stimuli for validation, where the data has no split of its own."),
    ] = 0.1,
    dtype: Annotated[str, typer.Option(help="How values are stored: float32 or float16.")] = "float32",
    seed: Annotated[int, typer.Option(help="Of the validation stimuli.")] = 0,
) -> None:
    """Make a store of the published prepared data. Run it again after an interruption: it goes on."""
    from mindllm.data import official

    with bars() as progress:
        store = official.prepare(
            folder, out, subjects=listed(subjects), layout=layout, sources=listed(sources), val=val, dtype=dtype,
            seed=seed, progress=progress,
        )  # fmt: skip
    summarize(store)


@app.command()
def convert(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint of the authors' published format (.ckpt).")],
    roi: Annotated[Path, typer.Option(help="Their ROI folder: subj01/nsdgeneral.nii.gz and so on.")],
    out: Annotated[Path, typer.Option(help="The model folder to write.")],
    llm: Annotated[
        str, typer.Option(help="The language model it was trained with: hub id, folder or .gguf file.")
    ] = "lmsys/vicuna-7b-v1.5",
    trained_on: Annotated[
        str | None,
        typer.Option(
            help="The people its weights were trained on, if you know, e.g. subj01,subj02; reports name them."
        ),
    ] = None,
    lora_alpha: Annotated[
        float, typer.Option(help="Of its LoRA part, if it has one: the checkpoint does not say; the authors use 16.")
    ] = 16,
) -> None:
    """Turn a published checkpoint into a model folder, ready to decode, evaluate or train further."""
    from mindllm.published import convert as run

    with console.status(f"reading {checkpoint}"):
        model = run(checkpoint, roi, llm, out, trained_on=listed(trained_on), lora_alpha=lora_alpha)
    made = model.card["converted_from"]
    for name, shape in made["tensors"].items():
        console.print(f"[dim]used[/dim] {name} {tuple(shape)}", highlight=False)
    weights = sum(p.numel() for p in [*model.encoder.parameters(), *model.projector.parameters()])
    lora = f", {len(made['lora'])} LoRA tensors" if made["lora"] else ""
    console.print(
        f"{out}: {len(made['tensors'])} tensors used, none left over{lora}; {weights:,} weights; voxels of {', '.join(model.spaces)}"
    )


@app.command()
def train(
    store: Annotated[Path, typer.Argument(help="A prepared store.")],
    out: Annotated[Path, typer.Option(help="The model folder to write.")],
    subjects: Subjects = None,
    llm: Annotated[
        str | None,
        typer.Option(help="Hub id, folder or .gguf file of a causal language model. Default: SmolLM2-135M-Instruct."),
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="Sizes of the encoder: default, walkthrough (tiny) or paper (139 M weights).")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="YAML or JSON file of training options; see `mindllm config`.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Makes the experiment repeatable.")] = None,
    start: Annotated[
        str | None, typer.Option(help="A model folder to train further, with its own encoder, instead of a new one.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an interrupted training (or begin, where there is none).")
    ] = False,
) -> None:
    """Train on some people: align the encoder with the text, then put it before the language model.

    Trials of the split `val` choose the checkpoint, or people left out with the option validate_people. What is given here
    wins over --config.
    """
    from mindllm import train as training
    from mindllm.config import read_config
    from mindllm.data.store import Store

    options = (("llm", llm), ("preset", preset), ("seed", seed), ("start", start))
    given = {name: value for name, value in options if value is not None}
    settings = read_config(config, given)
    with bars() as progress:
        training.train(Store(store), out, settings, subjects=listed(subjects), resume=resume, progress=progress)
    console.print(f"{out}: trained; curves in {out / 'training.png'}")


@app.command("config")
def show_config() -> None:
    """Print every training option with its default, as YAML for `train --config`."""
    import yaml

    from mindllm.config import TrainConfig

    print(yaml.safe_dump(TrainConfig().model_dump(mode="json"), sort_keys=False), end="")


@app.command()
def decode(
    model: Annotated[Path, typer.Argument(help="A model folder.")],
    scan: Annotated[Path, typer.Argument(help="A 3-D or 4-D NIfTI file, one volume per trial.")],
    mask: Annotated[Path | None, typer.Option(help="NIfTI mask of the voxels to read, on the scan's grid.")] = None,
    subject: Annotated[
        str | None, typer.Option(help="Instead of --mask and --atlas: a person whose voxels travel with the model.")
    ] = None,
    atlas: Annotated[
        list[str] | None,
        typer.Option(help="NAME=FILE, a parcellation on the same grid with its lookup table beside it. Repeatable."),
    ] = None,
    volumes: Annotated[str | None, typer.Option(help="Which volumes, e.g. 0,3,5 or 0-9. Default: all.")] = None,
    question: Annotated[
        str | None, typer.Option(help="What to ask about the scan. Default: what the model was trained to answer.")
    ] = None,
    reference: Annotated[
        Path | None,
        typer.Option(
            help="Another scan of the same person and grid to normalize with, of at least 8 volumes. Default: all volumes of SCAN."
        ),
    ] = None,
    normalized: Annotated[
        bool, typer.Option("--normalized", help="The values of SCAN are normalized already: take them as they are.")
    ] = False,
    sample: Annotated[bool, typer.Option("--sample", help="Sample instead of taking the most likely words.")] = False,
    temperature: Annotated[float, typer.Option(help="With --sample: how freely.")] = 0.7,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 48,
    batch_size: Annotated[int, typer.Option(min=1, help="Trials read by the language model at once.")] = 16,
    seed: Annotated[int, typer.Option(help="With --sample.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON: volume, text, evidence.")] = False,
    stream: Annotated[bool, typer.Option("--stream", help="Print words as they come.")] = False,
    llm: Annotated[
        str | None, typer.Option(help="Where the language model stands, if not under the model's name for it.")
    ] = None,
) -> None:
    """Say in words what a person was seeing, one answer per volume of a scan."""
    import torch

    from mindllm.checkpoint import load
    from mindllm.decode import decode as run

    atlases = {}
    for pair in atlas or []:
        name, separator, file = pair.partition("=")
        if not separator:
            raise InputError(f"--atlas {pair}: expected NAME=FILE, e.g. --atlas HCPEx=atlas-HCPEx_dseg.nii.gz")
        atlases[name] = file
    if (mask is None) == (subject is None):
        raise InputError(
            "give either --mask (and --atlas), or --subject for a person whose voxels travel with the model."
        )
    torch.manual_seed(seed)
    loaded = load(model, llm=llm)
    if subject is not None and subject not in loaded.spaces:
        raise InputError(f"{model} carries no voxels of {subject}; it carries {', '.join(loaded.spaces) or 'nobody'}.")
    voxels = loaded.spaces[subject] if subject is not None else mask
    assert voxels is not None
    options: dict[str, Any] = {"max_new_tokens": max_new_tokens} | (
        {"do_sample": True, "temperature": temperature} if sample else {}
    )
    if stream and as_json:
        raise InputError("--stream prints words as they come, --json one document at the end: choose one of them.")
    wanted = numbers(volumes)
    with nullcontext() if stream else bars() as progress:  # a bar would be drawn over the words
        task = progress.add_task("decoding", total=len(wanted) if wanted else None) if progress else None

        def done(count: int) -> None:
            if progress and task is not None:
                progress.update(task, completed=count)
            else:
                print(flush=True)  # a line per volume

        found = run(
            loaded, scan, voxels, atlases, volumes=wanted, question=question, reference=reference, normalized=normalized,
            batch_size=batch_size, stream=(lambda text: print(text, end="", flush=True)) if stream else None, done=done, **options,
        )  # fmt: skip
    if as_json:
        print(
            json.dumps(
                [{"volume": d.volume, "text": d.text, "evidence": round(d.evidence, 4)} for d in found],
                ensure_ascii=False,
                indent=1,
            )
        )
    elif not stream:
        for d in found:
            console.print(
                f"{d.volume:5d}  {escape(d.text)}  [dim](evidence {d.evidence:+.1f})[/dim]",
                highlight=False,
                soft_wrap=True,
            )


@app.command()
def evaluate(
    model: Annotated[Path, typer.Argument(help="A model folder.")],
    store: Annotated[Path, typer.Argument(help="A prepared store.")],
    subjects: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated. Default: all; name those left out of training, if the store has no test trials."
        ),
    ] = None,
    out: Annotated[
        Path,
        typer.Option(
            help="Folder for report.json, .md, .html, pictures, predictions and likelihoods; an earlier report there is replaced."
        ),
    ] = Path("report"),
    llm: Annotated[
        str | None, typer.Option(help="Where the language model stands, if not under the model's name for it.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Trials read by the language model at once.")] = 16,
    seed: Annotated[int, typer.Option(help="Of everything drawn at random.")] = 0,
) -> None:
    """Measure what the text owes to the brain: scores beside shuffled, no-brain and constant controls."""
    from mindllm.checkpoint import load
    from mindllm.data.store import Store
    from mindllm.evaluate.report import evaluate as run

    loaded, data = load(model, llm=llm), Store(store)
    with bars() as progress:
        report = run(
            loaded,
            data,
            listed(subjects),
            out,
            batch_size=batch_size,
            seed=seed,
            progress=progress,
            model_name=str(model),
        )
    console.print(report.table())
    console.print(f"report: {out / 'report.html'}")


@app.command()
def answer(
    model: Annotated[Path, typer.Argument(help="A model folder.")],
    store: Annotated[Path, typer.Argument(help="A prepared store.")],
    source: Annotated[str, typer.Option(help="Whose questions to ask, e.g. coco-caption or vqa-v2.")],
    out: Annotated[Path, typer.Option(help="Folder to write: predictions, references, scores.json.")],
    subjects: Subjects = None,
    split: Annotated[str, typer.Option(help="Which trials.")] = "test",
    average: Annotated[bool, typer.Option("--average", help="One scan per stimulus: the mean of its repeats.")] = False,
    task: Annotated[
        str | None, typer.Option(help="How to score; see `score`. Default: as the source is scored.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 48,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions read by the language model at once.")] = 16,
    seed: Annotated[int, typer.Option(help="Of the shuffling.")] = 0,
    llm: Annotated[
        str | None, typer.Option(help="Where the language model stands, if not under the model's name for it.")
    ] = None,
) -> None:
    """Ask a source's questions about scans, and score the answers officially, beside shuffled scans and no brain."""
    from rich.table import Table

    from mindllm.checkpoint import load
    from mindllm.data.store import Store
    from mindllm.evaluate.answer import CONDITIONS, as_frame
    from mindllm.evaluate.answer import answer as run

    data = Store(store)
    loaded = load(model, llm=llm)
    with bars() as progress:
        bar = progress.add_task("answering", total=None)
        found = run(
            loaded, data, source, out, subjects=listed(subjects), split=split, average=average, task=task,
            batch_size=batch_size, seed=seed, max_new_tokens=max_new_tokens,
            advance=lambda done, total: progress.update(bar, completed=done, total=total),
        )  # fmt: skip
    table = Table("score", *CONDITIONS, title=f"{source}, {len(found['brain'].keys)} items")
    for name, row in as_frame(found).iterrows():
        table.add_row(str(name), *(f"{value:.2f}" for value in row))
    console.print(table)


@app.command()
def score(
    predictions: Annotated[Path, typer.Argument(help="JSON: stimulus -> text (or COCO's list of results).")],
    references: Annotated[Path, typer.Argument(help="JSON: stimulus -> what is right; see docs/scores.md.")],
    task: Annotated[
        str, typer.Option(help="caption, paragraph, vqa, exact, choice, anls, count, vqa-e, fsvqa, tdiuc or grounding.")
    ] = "caption",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Official scores of texts, from two files; the keys must be the same."""
    from rich.table import Table

    from mindllm.score import tasks

    with errors.status(f"scoring {predictions.name}"):
        found = tasks.score(tasks.read_keyed(predictions), tasks.read_keyed(references), task)
    if as_json:
        print(
            json.dumps(
                {"task": task, "n": len(found.keys), "source": tasks.TASKS[task].source, "scores": found.values},
                indent=1,
            )
        )
        return
    table = Table("score", "value", title=f"{task}, {len(found.keys)} items")
    for name, value in found.values.items():
        table.add_row(name, f"{value:.2f}")
    console.print(table)


@app.command()
def demo(
    out: Annotated[
        Path, typer.Option(help="Folder for the simulated people, the store, the model and the report.")
    ] = Path("runs/demo"),
    people: Annotated[int, typer.Option(min=3, help="People to simulate; the last one is left out of training.")] = 8,
    seed: Annotated[int, typer.Option(help="Of everything drawn at random.")] = 0,
    llm: Annotated[str | None, typer.Option(help="Another language model than the small default.")] = None,
) -> None:
    """Simulate people, train, and decode one whom the model has never seen: the whole road, on a CPU, in minutes."""
    from mindllm.demo import demo as run

    run(out, console, bars, people, seed, llm)


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
