"""The command train-reader: a trained model to one that writes texts from the evidence."""

from pathlib import Path
from typing import Annotated

import typer

from mindllm.cli.options import (
    MAX_COUNT,
    LanguageModelPath,
    ModelFolder,
    NewModel,
    Seed,
    SplitScheme,
    StoreFolder,
    bars,
    check_model,
    claim_output,
    console,
)
from mindllm.utils.text_files import read_corpus

app = typer.Typer()


@app.command("train-reader")
def train_reader(
    model: ModelFolder,
    store: StoreFolder,
    out: NewModel,
    corpus: Annotated[
        list[Path] | None, typer.Option(help="Sentences to learn from, one per line. Repeatable.")
    ] = None,
    n_texts: Annotated[
        int, typer.Option(min=0, max=MAX_COUNT, help="Sentences the language model writes.")
    ] = 400,
    max_steps: Annotated[int, typer.Option(min=1, max=MAX_COUNT, help="Training steps.")] = 200,
    batch_size: Annotated[int, typer.Option(min=1, max=MAX_COUNT, help="Sentences a step.")] = 16,
    brain_fraction: Annotated[
        float,
        typer.Option(
            min=0, max=1, help="Fraction of the samples that are left-out training trials."
        ),
    ] = 0.25,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue an interrupted training, or begin one.")
    ] = False,
    llm: LanguageModelPath = None,
    split_scheme: SplitScheme = None,
    seed: Seed = 0,
) -> None:
    """Teach a model to write texts from the evidence of a scan, for `decode --by reader`.

    The reader learns from text: training answers, --corpus, and sentences that the language model
    writes, with the errors of left-out training trials as noise. The store is that of the training.
    """
    from mindllm.evaluation.evaluation_set import open_store
    from mindllm.model.modeling import MindLLM
    from mindllm.training.text_reader import TextReaderOptions
    from mindllm.training.train_reader import train_text_reader

    claim_output(out, inputs=[model, store], resumable=("training", "config.json"))
    check_model(model, llm)
    sentences = [text for file in corpus or [] for text in read_corpus(file)]
    options = TextReaderOptions(
        n_texts=n_texts,
        max_steps=max_steps,
        batch_size=batch_size,
        brain_fraction=brain_fraction,
        seed=seed,
    )
    loaded = MindLLM.from_pretrained(model, language_model=llm)
    opened = open_store(store, loaded.model_card, split_scheme)
    with bars() as progress:
        train_text_reader(
            loaded, opened, out, options, corpus=sentences, resume=resume, progress=progress
        )
    console.print(f"{out}: has a text reader; decode with --by reader", highlight=False)
