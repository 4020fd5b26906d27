"""The commands evaluate-qa and score."""

from pathlib import Path
from typing import Annotated

import typer

from mindllm.cli.options import (
    MAX_COUNT,
    AsJson,
    LanguageModelPath,
    MaxNewTokens,
    ModelFolder,
    SplitScheme,
    StoreFolder,
    Subjects,
    bars,
    check_model,
    claim_output,
    console,
    errors,
    parse_list,
)
from mindllm.utils.files import to_json
from mindllm.utils.seeds import MAX_SEED

app = typer.Typer()
Source = Annotated[str, typer.Option(help="Whose questions to ask, e.g. coco-caption or vqa-v2.")]
AnswersFolder = Annotated[
    Path, typer.Option(help="Folder to write: predictions, references, scores.json.")
]
AverageRepetitions = Annotated[
    bool,
    typer.Option(
        "--average-repetitions", help="Ask about the mean of a stimulus' trials, not each trial."
    ),
]
QATask = Annotated[
    str | None, typer.Option(help="How to score; see `score`. Default: as the source is scored.")
]
ScoreTask = Annotated[
    str,
    typer.Option(
        help="caption, paragraph, vqa, exact, choice, anls, count, vqa-e, fsvqa, tdiuc or "
        "grounding."
    ),
]


@app.command("evaluate-qa")
def evaluate_qa(
    model: ModelFolder,
    store: StoreFolder,
    source: Source,
    out: AnswersFolder,
    subjects: Subjects = None,
    split: Annotated[str, typer.Option(help="Which trials.")] = "test",
    split_scheme: SplitScheme = None,
    average_repetitions: AverageRepetitions = False,
    task: QATask = None,
    max_new_tokens: MaxNewTokens = 48,
    batch_size: Annotated[
        int, typer.Option(min=1, max=MAX_COUNT, help="Questions read at once.")
    ] = 16,
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Of the shuffling.")] = 0,
    llm: LanguageModelPath = None,
) -> None:
    """Ask a source's questions about trials and score the answers, with three controls."""
    from mindllm.data.store import Store
    from mindllm.evaluation.evaluation_set import open_store
    from mindllm.evaluation.question_answering import evaluate_qa as run
    from mindllm.model.modeling import MindLLM

    claim_output(out, inputs=[model, store])
    check_model(model, llm)
    Store(store, split_scheme).select_subjects(
        parse_list(subjects)
    )  # before the language model is loaded, which takes a while
    loaded = MindLLM.from_pretrained(model, language_model=llm)
    with bars() as progress:
        bar = progress.add_task("answering", total=None)
        result = run(
            loaded,
            open_store(store, loaded.model_card, split_scheme),
            source,
            out,
            subjects=parse_list(subjects),
            split=split,
            average_repetitions=average_repetitions,
            task=task,
            batch_size=batch_size,
            seed=seed,
            on_progress=lambda done, total: progress.update(bar, completed=done, total=total),
            max_new_tokens=max_new_tokens,
        )
    rows = {str(name): list(row) for name, row in result.to_frame().iterrows()}
    print_scores(f"{source}, {result.run_info.n_items} items", list(result.scores), rows)


@app.command()
def score(
    predictions: Annotated[
        Path, typer.Argument(help="JSON: stimulus -> text (or COCO's list of results).")
    ],
    references: Annotated[
        Path, typer.Argument(help="JSON: stimulus -> its references; see docs/scores.md.")
    ],
    task: ScoreTask = "caption",
    as_json: AsJson = False,
) -> None:
    """Compute official scores of texts from two files; the keys must be the same."""
    from mindllm.metrics import tasks

    with errors.status(f"scoring {predictions.name}"):
        result = tasks.score(tasks.read_keyed(predictions), tasks.read_keyed(references), task)
    if as_json:
        content = {
            "task": task,
            "n_items": len(result.keys),
            "source": tasks.TASKS[task].source,
            "scores": result.values,
        }
        print(to_json(content))
        return
    rows = {name: [value] for name, value in result.values.items()}
    print_scores(f"{task}, {len(result.keys)} items", ["value"], rows)


def print_scores(title: str, columns: list[str], rows: dict[str, list[float]]) -> None:
    """Print a table of scores, in percent."""
    from rich.table import Table

    table = Table("score", *columns, title=title)
    for name, values in rows.items():
        table.add_row(name, *(f"{value:.2f}" for value in values))
    console.print(table)
