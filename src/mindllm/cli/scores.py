"""Commands that judge: evaluate, compare, answer and score."""

import json
from pathlib import Path
from typing import Annotated

import typer

from mindllm.cli.common import (
    AsJson,
    BatchSize,
    LlmPlace,
    MaxNewTokens,
    ModelFolder,
    Seed,
    SplitName,
    StoreFolder,
    Subjects,
    bars,
    console,
    errors,
    listed,
)

app = typer.Typer()


@app.command()
def evaluate(
    model: ModelFolder,
    store: StoreFolder,
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
    llm: LlmPlace = None,
    split: Annotated[
        str | None, typer.Option(help="Which trials. Default: test; of people never trained on that have none, all.")
    ] = None,
    split_name: SplitName = None,
    controls: Annotated[
        str,
        typer.Option(
            help="standard, or full: also trains the model anew on shuffled pairs (as long as its own training took; goes on where it was interrupted) and leaves out regions."
        ),
    ] = "standard",
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest decoded text, in tokens.")] = 48,
    batch_size: BatchSize = 16,
    seed: Seed = 0,
) -> None:
    """Measure what the text owes to the brain: scores beside their controls, baselines and published results."""
    from mindllm.checkpoint import load
    from mindllm.data.store import Store
    from mindllm.evaluate.report import check_controls
    from mindllm.evaluate.report import evaluate as run
    from mindllm.evaluate.task import open_store

    Store(store, split_name).choose(listed(subjects))  # before the language model is loaded, which takes a while
    check_controls(controls)
    loaded = load(model, llm=llm)
    with bars() as progress:
        report = run(
            loaded,
            open_store(store, loaded.card, split_name),
            listed(subjects),
            out,
            split=split,
            controls=controls,  # type: ignore[arg-type] # checked there
            batch_size=batch_size,
            seed=seed,
            progress=progress,
            model_name=str(model),
            max_new_tokens=max_new_tokens,
        )
    console.print(report.table())
    console.print(f"report: {out / 'report.html'}")


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(help="A report folder, made by `mindllm evaluate`.")],
    second: Annotated[Path, typer.Argument(help="Another model's report on the same trials.")],
    seed: Annotated[int, typer.Option(help="Of the bootstrap and the random signs.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Two models on the same trials, paired: the difference of every score, with its interval."""
    from rich.table import Table

    from mindllm.evaluate.compare import compare as run
    from mindllm.evaluate.conditions import METRICS

    with errors.status("comparing"):
        found = run(first, second, seed)
    if as_json:
        print(json.dumps(found, indent=1))
        return
    title = (
        f"{found['first']} (first) and {found['second']} (second): {found['people']} people, {found['trials']} trials"
    )
    table = Table("score", "first", "second", "difference", "95 % interval", "p", title=title)
    for row in found["rows"]:
        scale = 100 if "p_value" in row or row["metric"].startswith(("exact", "identification")) else 1
        low, high = scale * row["difference_low"], scale * row["difference_high"]
        p = f"{row['p_value']:.3f}" if "p_value" in row else ""
        table.add_row(
            METRICS[row["metric"]].label if row["metric"] in METRICS else row["metric"],
            f"{scale * row['first']:.2f}",
            f"{scale * row['second']:.2f}",
            f"{scale * row['difference']:+.2f}",
            f"{low:+.2f} to {high:+.2f}",
            p,
        )
    console.print(table)


@app.command()
def answer(
    model: ModelFolder,
    store: StoreFolder,
    source: Annotated[str, typer.Option(help="Whose questions to ask, e.g. coco-caption or vqa-v2.")],
    out: Annotated[Path, typer.Option(help="Folder to write: predictions, references, scores.json.")],
    subjects: Subjects = None,
    split: Annotated[str, typer.Option(help="Which trials.")] = "test",
    split_name: SplitName = None,
    average: Annotated[bool, typer.Option("--average", help="One scan per stimulus: the mean of its repeats.")] = False,
    task: Annotated[
        str | None, typer.Option(help="How to score; see `score`. Default: as the source is scored.")
    ] = None,
    max_new_tokens: MaxNewTokens = 48,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions read by the language model at once.")] = 16,
    seed: Annotated[int, typer.Option(help="Of the shuffling.")] = 0,
    llm: LlmPlace = None,
) -> None:
    """Ask a source's questions about scans, and score the answers officially, beside shuffled scans and no brain."""
    from rich.table import Table

    from mindllm.checkpoint import load
    from mindllm.data.store import Store
    from mindllm.evaluate.answer import CONDITIONS, as_frame
    from mindllm.evaluate.answer import answer as run
    from mindllm.evaluate.task import open_store

    Store(store, split_name)  # before the language model is loaded, which takes a while
    loaded = load(model, llm=llm)
    with bars() as progress:
        bar = progress.add_task("answering", total=None)
        found = run(
            loaded, open_store(store, loaded.card, split_name), source, out, subjects=listed(subjects), split=split, average=average, task=task,
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
    as_json: AsJson = False,
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
