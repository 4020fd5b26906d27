"""Commands that evaluate models: evaluate, cross-validate and compare."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from mindllm.cli.browser import open_page
from mindllm.cli.options import (
    MAX_COUNT,
    AsJson,
    BatchSize,
    LanguageModelPath,
    MaxNewTokens,
    ModelFolder,
    OpenPage,
    Seed,
    SplitScheme,
    StoreFolder,
    Subjects,
    bars,
    check_model,
    claim_output,
    console,
    errors,
    parse_int_ranges,
    parse_list,
)
from mindllm.utils.files import to_json
from mindllm.utils.processes import is_main_process, local_device, wait_for_start
from mindllm.utils.progress import progress_bar
from mindllm.utils.ranges import count_of
from mindllm.utils.seeds import MAX_SEED

if TYPE_CHECKING:
    from rich.table import Table

    from mindllm.evaluation.compare import ComparisonResult
    from mindllm.evaluation.results import EvaluationResult
    from mindllm.model.modeling import MindLLM

app = typer.Typer()
# One of them shows that a folder holds a report, or an evaluation that was interrupted.
REPORT_FILES = ("result.json", "partial", "permuted-pairs")

ReportFolder = Annotated[
    Path,
    typer.Option(
        help="Folder for report.html, report.md, figures, result.json, predictions and "
        "log-likelihoods; an earlier report there is replaced."
    ),
]
EvaluatedSubjects = Annotated[
    str | None,
    typer.Option(
        help="Comma-separated. Default: all; name those left out of training, "
        "if the store has no test trials."
    ),
]
EvaluatedSplit = Annotated[
    str | None,
    typer.Option(
        help="Which trials. Default: test; of subjects never trained on that have none, all."
    ),
]
ControlsOption = Annotated[
    str,
    typer.Option(
        help="default, or all: also trains the model again on permuted pairs (as long as its own "
        "training took; goes on where it was interrupted) and leaves out parcels."
    ),
]
CrossValidationFolder = Annotated[
    Path,
    typer.Option(
        help="Folder for cross_validation.json, cross_validation.md, reliability.png and, with "
        "--n-labels, adaptation.tsv and adaptation.png. What an "
        "interrupted run has computed is kept there, and taken up by the same command."
    ),
]
Folds = Annotated[int, typer.Option(min=2, max=1000, help="Folds of the answers.")]
LeftOut = Annotated[
    str | None,
    typer.Option(help="Subjects that are left out in turn. Default: all that take part."),
]
TestSplit = Annotated[
    str | None,
    typer.Option(help="Instead of folds: the new answers are those of this split, such as test."),
]
NTexts = Annotated[
    int,
    typer.Option(
        min=0,
        max=MAX_COUNT,
        help="Free text: how many texts the language model writes for each fold, to choose one "
        "about each trial. Default: no free text.",
    ),
]
WritesTexts = Annotated[
    str | None, typer.Option(help="With --n-texts: the language model. Default: the small one.")
]
SentenceEncoders = Annotated[
    str | None,
    typer.Option(help="Embeds texts: hub ids or folders, separated by commas."),
]
NLabels = Annotated[
    str | None,
    typer.Option(
        help="Adaptation curve: numbers of labelled trials of a left-out subject, e.g. 10,30,60, "
        "at most half of its trials. Default: no curve."
    ),
]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume", help="Go on with an evaluation into --out that was interrupted or failed."
    ),
]
DType = Literal["auto", "float32", "bfloat16"]
DTypeOption = Annotated[
    DType,
    typer.Option(
        "--dtype",
        help="Precision of the language model: float32; bfloat16 (faster on CPUs with bfloat16 "
        "instructions; moves log-likelihoods by tenths of a nat); auto: float32 on a CPU, "
        "bfloat16 on a GPU.",
    ),
]
ResultFolder = Annotated[Path, typer.Argument(help="A report folder, made by `mindllm evaluate`.")]


@app.command()
def evaluate(
    model: ModelFolder,
    store: StoreFolder,
    subjects: EvaluatedSubjects = None,
    out: ReportFolder = Path("report"),
    llm: LanguageModelPath = None,
    split: EvaluatedSplit = None,
    split_scheme: SplitScheme = None,
    controls: ControlsOption = "default",
    max_new_tokens: MaxNewTokens = 48,
    batch_size: BatchSize = 16,
    dtype: DTypeOption = "auto",
    seed: Seed = 0,
    resume: Resume = False,
    open_in_browser: OpenPage = False,
) -> None:
    """Measure how much of the text comes from the fMRI: scores beside controls and baselines.

    Processes that `torchrun` or `accelerate launch` starts share the subjects.
    """
    from mindllm.data.store import Store
    from mindllm.evaluation.cache import clear_cache
    from mindllm.evaluation.evaluation_set import check_split_name, open_store
    from mindllm.evaluation.evaluator import check_controls, evaluate_in_processes
    from mindllm.evaluation.predict import PredictOptions
    from mindllm.report.write import write_report

    # Checked before the language model is loaded, which takes a while.
    checked_controls = check_controls(controls)
    check_split_name(split)
    claim_output(out, inputs=[model, store], resumable=REPORT_FILES)
    check_model(model, llm)
    Store(store, split_scheme).select_subjects(parse_list(subjects))
    loaded = load_in_precision(model, llm, dtype)
    opened = open_store(store, loaded.model_card, split_scheme)
    begin_predictions(out, resume)
    generate_options = {"max_new_tokens": max_new_tokens}
    options = PredictOptions(out, checked_controls, batch_size, seed, generate_options)
    with bars() as progress:
        result = evaluate_in_processes(
            loaded,
            opened,
            parse_list(subjects),
            split,
            options,
            model_name=str(model),
            progress=progress,
        )
    if result is None:
        return  # the first process writes the report
    write_report(result, out, model=loaded, store=opened)
    clear_cache(out)
    show_report(result, out / "report.html", open_in_browser)


def load_in_precision(folder: Path, language_model: str | None, dtype: DType) -> "MindLLM":
    """Load a model whose language model computes in a precision.

    Half precision is cast after loading, so that short cuts are tried in full precision.
    """
    import torch

    from mindllm.model.modeling import MindLLM
    from mindllm.model.precision import cast_language_model

    loaded = MindLLM.from_pretrained(
        folder,
        language_model=language_model,
        dtype=dtype if dtype == "float32" else None,
        device_map=local_device(),
    )
    if dtype == "bfloat16":
        cast_language_model(loaded.language_model, torch.bfloat16)
    return loaded


def show_report(result: "EvaluationResult", page: Path, open_in_browser: bool) -> None:
    """Print summary and scores, and where the page is, which is opened if asked for."""
    from mindllm.report.write import to_table

    console.print(to_table(result))
    console.print(f"report: {page}", highlight=False, soft_wrap=True)
    if open_in_browser:
        open_page(page)


def begin_predictions(out: Path, resume: bool) -> None:
    """Delete earlier predictions, unless they are gone on with, before any process predicts."""
    from mindllm.evaluation.cache import clear_cache

    if is_main_process() and not resume:
        clear_cache(out)
    wait_for_start()


@app.command(name="cross-validate")
def cross_validate(
    store: StoreFolder,
    subjects: Subjects = None,
    out: CrossValidationFolder = Path("cross-validation"),
    left_out: LeftOut = None,
    folds: Folds = 10,
    test_split: TestSplit = None,
    n_texts: NTexts = 0,
    llm: WritesTexts = None,
    sentence_encoder: SentenceEncoders = None,
    n_labels: NLabels = None,
    seed: Seed = 0,
) -> None:
    """Leave every subject out in turn, with seen and with new answers: evidence and baselines."""
    from mindllm.data.store import Store
    from mindllm.evaluation.adaptation_curve import AdaptationCurve
    from mindllm.evaluation.cache import clear_cache
    from mindllm.evaluation.cross_validation import CrossValidation, CrossValidationOptions
    from mindllm.language.hub import DEFAULT_SENTENCE_ENCODERS, check_path
    from mindllm.language.sentence_embeddings import encoder_names
    from mindllm.report.adaptation import adaptation_table
    from mindllm.report.cross_validation import cross_validation_table, write_cross_validation

    claim_output(out, inputs=[store], resumable=("cross_validation.json", "partial"))
    if llm is not None:
        check_path(llm)
    encoders = sentence_encoder or DEFAULT_SENTENCE_ENCODERS
    for name in encoder_names(encoders):
        check_path(name)
    options = CrossValidationOptions(
        folds, test_split, n_texts, llm, seed, sentence_encoder=encoders
    )
    taking_part, tested = parse_list(subjects), parse_list(left_out)
    validation = CrossValidation(Store(store), taking_part, options, out, tested)
    curve = AdaptationCurve(validation, parse_int_ranges(n_labels) or [])
    with bars() as progress, progress_bar(progress, "leaving out", validation.n_steps) as advance:
        results = validation.run(advance, curve.add if curve.counts else None)
    adaptation = curve.rows() if curve.counts else []
    write_cross_validation(results, out, adaptation)
    clear_cache(out)
    for scores in results.values():
        console.print(cross_validation_table(scores))
    if adaptation:
        console.print(adaptation_table(adaptation))
    console.print(f"tables: {out / 'cross_validation.md'}")


@app.command()
def compare(
    first: ResultFolder,
    second: Annotated[Path, typer.Argument(help="Another model's report on the same trials.")],
    seed: Annotated[
        int, typer.Option(min=0, max=MAX_SEED, help="Of the bootstrap and the sign flips.")
    ] = 0,
    as_json: AsJson = False,
) -> None:
    """Compare two models on the same trials, paired: every score's difference and interval."""
    from mindllm.evaluation.compare import compare as run

    with errors.status("comparing"):
        comparison = run(first, second, seed)
    if as_json:
        print(to_json(asdict(comparison)))
    else:
        console.print(comparison_table(comparison))


def comparison_table(comparison: "ComparisonResult") -> "Table":
    """Return every metric of both models in percent, their difference and its interval."""
    from rich.table import Table

    from mindllm.evaluation.text_scores import TEXT_METRICS, percent_factor
    from mindllm.metrics.registry import METRICS

    title = (
        f"{comparison.first} (first) and {comparison.second} (second): "
        f"{count_of(comparison.n_subjects, 'subject')}, {count_of(comparison.n_trials, 'trial')}"
    )
    table = Table("score", "first", "second", "difference", "95 % interval", "p", title=title)
    for row in comparison.rows:
        factor = percent_factor(row.metric) if row.metric in TEXT_METRICS else 100
        first, second, difference, low, high = (
            float("nan") if value is None else factor * value
            for value in (
                row.first,
                row.second,
                row.difference,
                row.difference_ci_low,
                row.difference_ci_high,
            )
        )
        table.add_row(
            METRICS[row.metric].label if row.metric in METRICS else row.metric,
            f"{first:.2f}",
            f"{second:.2f}",
            f"{difference:+.2f}",
            f"{low:+.2f} to {high:+.2f}",
            "" if row.p_value is None else f"{row.p_value:.3f}",
        )
    return table
