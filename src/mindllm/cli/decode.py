"""The command decode."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.markup import escape

from mindllm.cli.options import (
    MAX_COUNT,
    BatchSize,
    LanguageModelPath,
    MaskThreshold,
    MaxNewTokens,
    ModelFolder,
    bars,
    check_model,
    console,
    errors,
    finite,
    parse_list,
)
from mindllm.cli.scans import (
    Atlases,
    Mask,
    MaskerSubject,
    Scan,
    ScanData,
    ScanOptions,
    Standardized,
    StandardizeWith,
    Volumes,
)
from mindllm.utils.errors import InputError
from mindllm.utils.files import to_json
from mindllm.utils.progress import progress_bar
from mindllm.utils.seeds import MAX_SEED
from mindllm.utils.text_files import read_corpus

if TYPE_CHECKING:
    from mindllm.model.decode import DecodedVolume
    from mindllm.model.decode_by_evidence import AnsweredVolume, RankedVolume
    from mindllm.model.decode_by_likelihood import ChosenVolume
    from mindllm.model.modeling import MindLLM

app = typer.Typer()

Question = Annotated[
    str | None,
    typer.Option(help="Question about the scan. Default: the one the model was trained with."),
]
DoSample = Annotated[
    bool, typer.Option("--do-sample", help="Sample instead of taking the likeliest token.")
]
Temperature = Annotated[
    float,
    typer.Option(min=0.01, max=100, callback=finite, help="With --do-sample: the temperature."),
]
SamplingSeed = Annotated[int, typer.Option(min=0, max=MAX_SEED, help="With --do-sample: the seed.")]
Way = Literal["generation", "evidence", "likelihood", "reader"]
By = Annotated[
    Way,
    typer.Option(
        help="How a text is found: generated from the scan's tokens; chosen by the evidence of "
        "the scan among texts that the model was trained on, that its language model writes, and "
        "of --corpus; the --choice that its language model finds likeliest; or written several "
        "times by the text reader (`mindllm train-reader`) and chosen by the evidence."
    ),
]
GuidanceScale = Annotated[
    float,
    typer.Option(
        min=0,
        max=100,
        callback=finite,
        help="Generate by log p(null tokens) + s (log p(scan) - log p(null tokens)); 1: by the "
        "scan alone, 2: what the scan adds counts twice.",
    ),
]
Corpus = Annotated[
    list[Path] | None,
    typer.Option(
        help="With --by evidence or reader: texts to choose among too, one per line. Repeatable."
    ),
]
Choice = Annotated[
    list[str] | None,
    typer.Option(
        help="With --by evidence: an answer to choose, as the comma-separated words that name it "
        "in texts, e.g. dog,dogs. Repeatable; a single one is decided as yes or no. With --by "
        "likelihood: an answer to --question, as comma-separated wordings; two or more."
    ),
]
NTexts = Annotated[
    int,
    typer.Option(min=0, max=MAX_COUNT, help="With --by evidence: texts the language model writes."),
]
NSamples = Annotated[
    int, typer.Option(min=1, max=1000, help="With --by reader: texts that are written per volume.")
]
NBest = Annotated[
    int,
    typer.Option(
        min=1, max=1000, help="With --by evidence or reader: alternatives per volume in JSON."
    ),
]
AbstainBelow = Annotated[
    float,
    typer.Option(
        min=0,
        max=1,
        callback=finite,
        help="With --by evidence or reader: mark texts less probable than this.",
    ),
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print JSON: volume, text, and what speaks for it.")
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
    by: By = "generation",
    corpus: Corpus = None,
    choice: Choice = None,
    n_texts: NTexts = 400,
    n_samples: NSamples = 16,
    n_best: NBest = 5,
    abstain_below: AbstainBelow = 0.0,
    do_sample: DoSample = False,
    temperature: Temperature = 0.7,
    guidance_scale: GuidanceScale = 1.0,
    max_new_tokens: MaxNewTokens = 48,
    batch_size: BatchSize = 16,
    seed: SamplingSeed = 0,
    as_json: AsJson = False,
    stream: StreamText = False,
    llm: LanguageModelPath = None,
) -> None:
    """Decode the volumes of a scan into text, one prediction per volume."""
    options = ScanOptions(
        scan, mask, mask_threshold, subject, atlas or [], volumes, standardize_with, standardized
    )
    check_printing(stream, as_json)
    samples = stream or do_sample or guidance_scale != 1
    check_way(by, bool(corpus), len(choice or []), samples, question is not None)
    answers, counts = parse_choices(choice or []), (n_texts, n_samples, max_new_tokens, n_best)
    check_model(model, llm)
    options.check()
    ranking = Ranking(read_texts(corpus), *counts, abstain_below, seed)
    loaded = load_model(model, llm, seed)
    data = options.open(loaded, model)
    if by == "likelihood":
        chosen = choose_volumes(loaded, data, answers, question, batch_size)
        return show_chosen(chosen, answers, as_json)
    if by == "reader":
        return show_ranked(read_volumes(loaded, data, question, ranking), abstain_below, as_json)
    if by == "evidence":
        return show_by_evidence(loaded, data, answers, ranking, as_json)
    generation = name_options(max_new_tokens, guidance_scale, temperature if do_sample else None)
    decoded = generate(loaded, data, question, batch_size, stream, generation)
    return None if stream else show(decoded, as_json)


def name_options(
    max_new_tokens: int, guidance_scale: float, temperature: float | None
) -> Mapping[str, Any]:
    """Options of `generate`; without a temperature, the likeliest token is taken."""
    sampling = {} if temperature is None else {"do_sample": True, "temperature": temperature}
    return {"max_new_tokens": max_new_tokens, "guidance_scale": guidance_scale, **sampling}


@dataclass(frozen=True, slots=True)
class Ranking:
    """Texts to rank by evidence, and what is shown of them."""

    corpus: Sequence[str]
    n_texts: int
    n_samples: int
    max_new_tokens: int
    n_best: int
    abstain_below: float
    seed: int


def generate(
    model: "MindLLM",
    data: ScanData,
    question: str | None,
    batch_size: int,
    stream: bool,
    options: Mapping[str, Any],
) -> list["DecodedVolume"]:
    """Generate a text about each volume, with a bar, or printed as it is generated."""
    from mindllm.model.decode import decode as decode_scan

    with decode_progress(stream, len(data.volumes) if data.volumes else None) as on_volume:
        return decode_scan(
            model,
            data.scan,
            data.masker,
            question=question,
            batch_size=batch_size,
            on_text=(lambda text: print(text, end="", flush=True)) if stream else None,
            on_volume=on_volume,
            **data.reading,
            **options,
        )


def rank_volumes(
    model: "MindLLM", data: ScanData, texts: Sequence[str], n_best: int
) -> list["RankedVolume"]:
    """Choose among texts by the evidence of each volume."""
    from mindllm.model.decode_by_evidence import decode_by_evidence

    with errors.status(f"choosing among {len(texts)} texts"):
        return decode_by_evidence(
            model, data.scan, data.masker, texts, n_best=n_best, **data.reading
        )


def read_volumes(
    model: "MindLLM", data: ScanData, question: str | None, ranking: Ranking
) -> list["RankedVolume"]:
    """Write texts about each volume by the text reader, and rank them by its evidence."""
    from mindllm.model.decode_by_reader import decode_by_reader

    with decode_progress(False, len(data.volumes) if data.volumes else None) as on_volume:
        return decode_by_reader(
            model,
            data.scan,
            data.masker,
            texts=ranking.corpus,
            question=question,
            n_samples=ranking.n_samples,
            max_new_tokens=ranking.max_new_tokens,
            n_best=ranking.n_best,
            seed=ranking.seed,
            on_volume=on_volume,
            **data.reading,
        )


def answer_volumes(
    model: "MindLLM", data: ScanData, texts: Sequence[str], answers: Sequence[Sequence[str]]
) -> list["AnsweredVolume"]:
    """Decide among answers by the evidence of each volume."""
    from mindllm.model.decode_by_evidence import answer_by_evidence

    with errors.status(f"weighing {len(texts)} texts"):
        return answer_by_evidence(model, data.scan, data.masker, texts, answers, **data.reading)


def choose_volumes(
    model: "MindLLM",
    data: ScanData,
    answers: Sequence[Sequence[str]],
    question: str | None,
    batch_size: int,
) -> list["ChosenVolume"]:
    """Choose among answers by their likelihood after the question about each volume."""
    from mindllm.model.decode_by_likelihood import choose_by_likelihood

    with errors.status(f"weighing {len(answers)} answers"):
        return choose_by_likelihood(
            model,
            data.scan,
            data.masker,
            answers,
            question=question,
            batch_size=batch_size,
            **data.reading,
        )


def parse_choices(options: Sequence[str]) -> list[list[str]]:
    """Words that name each answer.

    Examples
    --------
    >>> parse_choices(["dog, dogs", "cat"])
    [['dog', 'dogs'], ['cat']]
    """
    answers = [parse_list(option) or [] for option in options]
    lowered = [word.lower() for words in answers for word in words]
    if repeated := sorted({word for word in lowered if lowered.count(word) > 1}):
        raise InputError(
            f"--choice names {repeated[0]!r} twice; expected words that tell the answers apart."
        )
    return answers


def check_way(by: Way, has_corpus: bool, n_choices: int, samples: bool, asks: bool) -> None:
    """Refuse options of the other ways to find a text, before anything is loaded."""
    if by == "evidence" and (samples or asks):
        raise InputError(
            "--by evidence chooses among texts about the stimulus: --question, --do-sample, "
            "--guidance-scale and --stream are for --by generation. Leave them out."
        )
    if by == "reader" and (samples or n_choices):
        raise InputError(
            "--by reader samples texts and chooses by evidence: --choice, --do-sample, "
            "--guidance-scale and --stream are for the other ways. Leave them out."
        )
    if by == "generation" and (has_corpus or n_choices):
        raise InputError(
            "--corpus and --choice are for texts chosen by evidence: add --by evidence (--choice "
            "also goes with --by likelihood)."
        )
    if by == "likelihood" and (has_corpus or samples):
        raise InputError(
            "--by likelihood weighs the answers of --choice: --corpus, --do-sample, "
            "--guidance-scale and --stream are for the other ways. Leave them out."
        )
    if by == "likelihood" and n_choices < 2:
        raise InputError(
            f"--by likelihood with {n_choices} --choice; expected two or more, e.g. "
            "--choice yes --choice no."
        )


def collect_texts(model: "MindLLM", corpus: Sequence[str], n_texts: int, seed: int) -> list[str]:
    """Collect the texts to choose among, with a bar while the language model writes."""
    from mindllm.model.proposals import collect_proposals

    with bars() as progress, progress_bar(progress, "writing texts", n_texts) as advance:
        return collect_proposals(model, corpus, n_texts, seed, advance)


def check_printing(stream: bool, as_json: bool) -> None:
    """Refuse two ways to print."""
    if stream and as_json:
        raise InputError("--stream prints as it goes, --json at the end: choose one of them.")


def load_model(folder: Path, language_model: str | None, seed: int) -> "MindLLM":
    """Load the model, with the random state that sampling starts from."""
    import torch

    from mindllm.model.modeling import MindLLM

    torch.manual_seed(seed)
    return MindLLM.from_pretrained(folder, language_model=language_model)


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
    rows = [
        {
            "volume": d.volume,
            "text": d.text,
            "log_likelihood_ratio": round(d.log_likelihood_ratio, 4),
        }
        for d in decoded
    ]
    notes = [f"log-likelihood ratio {d.log_likelihood_ratio:+.1f}" for d in decoded]
    print_volumes(rows, [d.text for d in decoded], notes, as_json)


def print_volumes(
    rows: Sequence[Mapping[str, object]], texts: Sequence[str], notes: Sequence[str], as_json: bool
) -> None:
    """Print rows as one JSON document, or the text and the note about each volume."""
    if as_json:
        print(to_json(rows))
        return
    for row, text, note in zip(rows, texts, notes, strict=True):
        line = f"{row['volume']:5d}  {escape(text)}  [dim]({note})[/dim]"
        console.print(line, highlight=False, soft_wrap=True)


def show_ranked(ranked: Sequence["RankedVolume"], abstain_below: float, as_json: bool) -> None:
    """Print the best texts as one JSON document, or a line per volume."""
    rows, texts, notes = [], [], []
    for volume in ranked:
        best = volume.texts[0]
        abstained = best.probability < abstain_below
        alternatives = [
            {k: round(v, 4) if isinstance(v, float) else v for k, v in asdict(text).items()}
            for text in volume.texts
        ]
        rows.append(
            {"volume": volume.volume, "abstained": abstained}
            | alternatives[0]
            | {"alternatives": alternatives[1:]}
        )
        texts.append("abstained, not sure: " * abstained + best.text)
        notes.append(f"evidence {best.evidence:+.1f} nats, probability {best.probability:.0%}")
    print_volumes(rows, texts, notes, as_json)


def read_texts(files: Sequence[Path] | None) -> list[str]:
    """Texts of all files, one per line."""
    return [text for file in files or [] for text in read_corpus(file)]


def show_by_evidence(
    model: "MindLLM",
    data: ScanData,
    answers: Sequence[Sequence[str]],
    ranking: Ranking,
    as_json: bool,
) -> None:
    """Choose among texts, or answers that they name, by evidence, and print the choice."""
    texts = collect_texts(model, ranking.corpus, ranking.n_texts, ranking.seed)
    if answers:
        show_answered(answer_volumes(model, data, texts, answers), answers, as_json)
    else:
        ranked = rank_volumes(model, data, texts, ranking.n_best)
        show_ranked(ranked, ranking.abstain_below, as_json)


def show_answered(
    answered: Sequence["AnsweredVolume"], answers: Sequence[Sequence[str]], as_json: bool
) -> None:
    """Print the likeliest answer as one JSON document, or a line per volume."""
    labels = [words[0] for words in answers]
    labels += [f"no {labels[0]}"] * (len(labels) == 1)
    rows, texts, notes = [], [], []
    for volume in answered:
        best = max(range(len(labels)), key=volume.probabilities.__getitem__)
        pairs = zip(labels, volume.evidence, volume.probabilities, strict=True)
        rows.append(
            {
                "volume": volume.volume,
                "answer": labels[best],
                "probability": round(volume.probabilities[best], 4),
                "answers": [
                    {"answer": label, "evidence": round(e, 4), "probability": round(p, 4)}
                    for label, e, p in pairs
                ],
            }
        )
        texts.append(labels[best])
        notes.append(f"probability {volume.probabilities[best]:.0%}, of {len(labels)} answers")
    print_volumes(rows, texts, notes, as_json)


def show_chosen(
    chosen: Sequence["ChosenVolume"], answers: Sequence[Sequence[str]], as_json: bool
) -> None:
    """Print the likeliest answer as one JSON document, or a line per volume."""
    labels = [wordings[0] for wordings in answers]
    rows, texts, notes = [], [], []
    for volume in chosen:
        best = max(range(len(labels)), key=volume.probabilities.__getitem__)
        values = zip(
            labels,
            volume.log_likelihoods,
            volume.log_likelihood_ratios,
            volume.probabilities,
            strict=True,
        )
        rows.append(
            {
                "volume": volume.volume,
                "answer": labels[best],
                "probability": round(volume.probabilities[best], 4),
                "answers": [
                    {
                        "answer": label,
                        "log_likelihood": round(log_likelihood, 4),
                        "log_likelihood_ratio": round(ratio, 4),
                        "probability": round(probability, 4),
                    }
                    for label, log_likelihood, ratio, probability in values
                ],
            }
        )
        texts.append(labels[best])
        notes.append(
            f"probability {volume.probabilities[best]:.0%}, of {len(labels)} answers; "
            f"log-likelihood ratio {volume.log_likelihood_ratios[best]:+.1f}"
        )
    print_volumes(rows, texts, notes, as_json)
