"""The command new-task: a trained model and a source of questions that it never met."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mindllm.cli.options import (
    LanguageModelPath,
    ModelFolder,
    SplitScheme,
    StoreFolder,
    bars,
    check_model,
    claim_output,
    console,
    parse_list,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from mindllm.evaluation.new_task import NewTaskRow

app = typer.Typer()
NewSource = Annotated[
    str,
    typer.Option(
        help="The source, or type of question, that is new to the model, e.g. vqa-v2 or "
        "tdiuc/counting."
    ),
]
TaskFolder = Annotated[
    Path,
    typer.Option(
        help="Folder for adapted-model, scratch-model, the answers of all three models and "
        "new_task.tsv. The same command goes on where it was interrupted."
    ),
]


@app.command("new-task")
def new_task(
    model: ModelFolder,
    store: StoreFolder,
    source: NewSource,
    out: TaskFolder = Path("new-task"),
    subjects: Annotated[
        str | None,
        typer.Option(help="To train on. Default: the model's training subjects."),
    ] = None,
    test_subjects: Annotated[
        str | None,
        typer.Option(help="Whose test trials to ask about. Default: the same subjects."),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            help="YAML or JSON file of training options: instruction_tuning is of both trainings, "
            "all else of the new model alone."
        ),
    ] = None,
    llm: LanguageModelPath = None,
    split_scheme: SplitScheme = None,
) -> None:
    """Adapt a model to questions that it never met; before, after, and against a new model.

    Each is asked about test trials, with three controls: shuffled trials, null tokens, and the
    question alone.
    """
    from mindllm.evaluation.evaluation_set import open_store
    from mindllm.evaluation.new_task import NewTask, adapt_to_task, write_new_task
    from mindllm.model.modeling import MindLLM
    from mindllm.training.configuration import read_config

    claim_output(out, inputs=[model, store], resumable=("adapted-model", "answers-before"))
    check_model(model, llm)
    task = NewTask(source, parse_list(subjects), parse_list(test_subjects))
    settings = read_config(config, {})
    loaded = MindLLM.from_pretrained(model, language_model=llm)
    opened = open_store(store, loaded.model_card, split_scheme)
    with bars() as progress:
        rows = adapt_to_task(
            loaded, model, opened, task, out, settings, language_model=llm, progress=progress
        )
    write_new_task(rows, source, out)
    console.print(new_task_table(rows, source))
    console.print(f"answers and scores: {out}")


def new_task_table(rows: "Sequence[NewTaskRow]", source: str) -> "Table":
    """Return models and conditions by score, with the adapted model's difference."""
    from rich.table import Table

    title = f"{source}: {rows[0].metric} of {rows[0].n_items} questions about test trials, percent"
    table = Table("model", "condition", "score", "adapted minus it", title=title)
    for row in rows:
        table.add_row(
            row.model,
            row.condition,
            f"{row.value:.1f} ({row.ci_low:.1f} to {row.ci_high:.1f})",
            interval(row.difference, row.difference_ci_low, row.difference_ci_high),
        )
    return table


def interval(value: float, low: float, high: float) -> str:
    """Return a difference with its interval."""
    return f"{value:+.1f} ({low:+.1f} to {high:+.1f})"
