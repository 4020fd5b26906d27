"""The commands answer and score."""

import json
from pathlib import Path
from typing import Annotated

import typer

from mindllm.cli.options import (
    AsJson,
    LanguageModelPath,
    MaxNewTokens,
    ModelFolder,
    SplitScheme,
    StoreFolder,
    Subjects,
    bars,
    console,
    errors,
    parse_list,
)

app = typer.Typer()


@app.command("evaluate-qa")
def evaluate_qa(
    model: ModelFolder,
    store: StoreFolder,
    source: Annotated[
        str, typer.Option(help="Whose questions to ask, e.g. coco-caption or vqa-v2.")
    ],
    out: Annotated[
        Path, typer.Option(help="Folder to write: predictions, references, scores.json.")
    ],
    subjects: Subjects = None,
    split: Annotated[str, typer.Option(help="Which trials.")] = "test",
    split_scheme: SplitScheme = None,
    average_repetitions: Annotated[
        bool,
        typer.Option(
            "--average-repetitions", help="One scan per stimulus: the mean of its repeats."
        ),
    ] = False,
    task: Annotated[
        str | None,
        typer.Option(help="How to score; see `score`. Default: as the source is scored."),
    ] = None,
    max_new_tokens: MaxNewTokens = 48,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Questions read by the language model at once.")
    ] = 16,
    seed: Annotated[int, typer.Option(help="Of the shuffling.")] = 0,
    llm: LanguageModelPath = None,
) -> None:
    """Ask a source's questions about scans, and score the answers officially, beside shuffled scans and no brain."""
    from rich.table import Table

    from mindllm.data.store import Store
    from mindllm.evaluation.evaluation_set import open_store
    from mindllm.evaluation.question_answering import CONDITIONS, as_frame
    from mindllm.evaluation.question_answering import evaluate_qa as run
    from mindllm.model.modeling import MindLLM

    Store(store, split_scheme)  # before the language model is loaded, which takes a while
    loaded = MindLLM.from_pretrained(model, language_model=llm)
    with bars() as progress:
        bar = progress.add_task("answering", total=None)
        found = run(
            loaded, open_store(store, loaded.model_card, split_scheme), source, out, subjects=parse_list(subjects), split=split, average_repetitions=average_repetitions, task=task,
            batch_size=batch_size, seed=seed, max_new_tokens=max_new_tokens,
            advance=lambda done, total: progress.update(bar, completed=done, total=total),
        )  # fmt: skip
    table = Table("score", *CONDITIONS, title=f"{source}, {len(found['fmri'].keys)} items")
    for name, row in as_frame(found).iterrows():
        table.add_row(str(name), *(f"{value:.2f}" for value in row))
    console.print(table)


@app.command()
def score(
    predictions: Annotated[
        Path, typer.Argument(help="JSON: stimulus -> text (or COCO's list of results).")
    ],
    references: Annotated[
        Path, typer.Argument(help="JSON: stimulus -> what is right; see docs/scores.md.")
    ],
    task: Annotated[
        str,
        typer.Option(
            help="caption, paragraph, vqa, exact, choice, anls, count, vqa-e, fsvqa, tdiuc or grounding."
        ),
    ] = "caption",
    as_json: AsJson = False,
) -> None:
    """Official scores of texts, from two files; the keys must be the same."""
    from rich.table import Table

    from mindllm.metrics import tasks

    with errors.status(f"scoring {predictions.name}"):
        found = tasks.score(tasks.read_keyed(predictions), tasks.read_keyed(references), task)
    if as_json:
        print(
            json.dumps(
                {
                    "task": task,
                    "n": len(found.keys),
                    "source": tasks.TASKS[task].source,
                    "scores": found.values,
                },
                indent=1,
            )
        )
        return
    table = Table("score", "value", title=f"{task}, {len(found.keys)} items")
    for name, value in found.values.items():
        table.add_row(name, f"{value:.2f}")
    console.print(table)
