"""Commands that judge models: evaluate and compare."""

import json
from pathlib import Path
from typing import Annotated

import typer

from mindllm.cli.options import (
    AsJson,
    BatchSize,
    LanguageModelPath,
    ModelFolder,
    Seed,
    SplitScheme,
    StoreFolder,
    bars,
    console,
    errors,
    parse_list,
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
    llm: LanguageModelPath = None,
    split: Annotated[
        str | None,
        typer.Option(
            help="Which trials. Default: test; of people never trained on that have none, all."
        ),
    ] = None,
    split_scheme: SplitScheme = None,
    controls: Annotated[
        str,
        typer.Option(
            help="default, or all: also trains the model anew on shuffled pairs (as long as its own training took; goes on where it was interrupted) and leaves out regions."
        ),
    ] = "default",
    max_new_tokens: Annotated[
        int, typer.Option(min=1, help="Longest decoded text, in tokens.")
    ] = 48,
    batch_size: BatchSize = 16,
    seed: Seed = 0,
) -> None:
    """Measure what the text owes to the brain: scores beside their controls, baselines and published results."""
    from mindllm.data.store import Store
    from mindllm.evaluation.evaluation_set import open_store
    from mindllm.evaluation.evaluator import check_controls
    from mindllm.evaluation.evaluator import evaluate as run
    from mindllm.model.modeling import MindLLM

    Store(store, split_scheme).select_subjects(
        parse_list(subjects)
    )  # before the language model is loaded, which takes a while
    check_controls(controls)
    loaded = MindLLM.from_pretrained(model, language_model=llm)
    with bars() as progress:
        report = run(
            loaded,
            open_store(store, loaded.model_card, split_scheme),
            parse_list(subjects),
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

    from mindllm.evaluation.compare import compare as run
    from mindllm.metrics.registry import METRICS

    with errors.status("comparing"):
        found = run(first, second, seed)
    if as_json:
        print(json.dumps(found, indent=1))
        return
    title = f"{found['first']} (first) and {found['second']} (second): {found['people']} people, {found['trials']} trials"
    table = Table("score", "first", "second", "difference", "95 % interval", "p", title=title)
    for row in found["rows"]:
        scale = (
            100 if "p_value" in row or row["metric"].startswith(("exact", "identification")) else 1
        )
        low, high = scale * row["difference_ci_low"], scale * row["difference_ci_high"]
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
