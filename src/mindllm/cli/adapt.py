"""The command adapt: a trained model and a new subject's trials to a model that knows it."""

from typing import Annotated

import typer

from mindllm.cli.options import (
    LanguageModelPath,
    ModelFolder,
    NewModel,
    Seed,
    SplitScheme,
    StoreFolder,
    check_model,
    claim_output,
    console,
    errors,
)

app = typer.Typer()


@app.command()
def adapt(
    model: ModelFolder,
    store: StoreFolder,
    subject: Annotated[str, typer.Option(help="Subject of the store to adapt to.")],
    out: NewModel,
    n_labels: Annotated[
        int,
        typer.Option(
            min=0, help="How many of its training trials have a label, drawn at random; 0: none."
        ),
    ] = 0,
    llm: LanguageModelPath = None,
    split_scheme: SplitScheme = None,
    seed: Seed = 0,
) -> None:
    """Adapt a model's evidence to a new subject: without labels, or with some labelled trials.

    In closed form, within seconds. Labels are the texts of training trials of the subject; trials
    of the split test are not read.
    """
    from mindllm.data.store import Store
    from mindllm.model.modeling import MindLLM
    from mindllm.training.adaptation import adapt_to_subject

    claim_output(out, inputs=[model, store])
    check_model(model, llm)
    opened = Store(store, split_scheme)
    opened.select_subjects([subject])
    loaded = MindLLM.from_pretrained(model, language_model=llm)
    with errors.status(f"adapting to {subject}"):
        result = adapt_to_subject(loaded, opened, subject, n_labels, seed)
        loaded.save_pretrained(out)
    console.print(
        f"{out}: adapted to {subject} by {result.n_trials} trials, {result.n_labels} of them with "
        "their text"
    )
