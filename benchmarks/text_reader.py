"""Free text about new answers in new subjects: a text reader beside texts chosen by evidence.

`python -m benchmarks.text_reader STORE --out FOLDER --left-out sub-01,sub-02 --fold 0` leaves out
the subjects and the answers of one fold, teaches a reader, and keeps the texts about the trials
left out in FOLDER; run again, it goes on. `--report` reads all that is kept and prints, for each
way to find a text, the fraction of pairs in which it is nearer to its own answer than to another
of the fold (0.5 is chance), with a 95 % interval over answers.
"""

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mindllm.data.store import Store
from mindllm.evaluation.answer_folds import AnswerFolds
from mindllm.evaluation.baselines import attend_groups
from mindllm.language.hub import DEFAULT_SENTENCE_ENCODER
from mindllm.language.sentence_embeddings import embed_sentences
from mindllm.metrics.inference import bootstrap_interval
from mindllm.model.configuration import MindLLMConfig
from mindllm.model.decode_by_reader import sample_readings
from mindllm.model.encoding_fit import SubjectFeatures, fit_encoding_model
from mindllm.model.encoding_model import EncodingModelConfig, center_embeddings
from mindllm.model.language_model import load_language_model
from mindllm.model.modeling import MindLLM
from mindllm.model.proposals import sample_texts, similarity_gains
from mindllm.model.receptive_fields import init_queries
from mindllm.model.subject_alignment import SubjectTransform
from mindllm.model.text_reader import expected_embeddings
from mindllm.training.initialization import init_memory_from_text
from mindllm.training.posterior_errors import TrainingTrials, measure_errors
from mindllm.training.text_reader import TextReaderOptions, TextReaderTrainer
from mindllm.utils.files import write_json

SAVE_STEPS = 8
MAX_NEW_TOKENS = 16


def query_outputs(model: MindLLM, store: Store, folds: AnswerFolds) -> dict[str, SubjectFeatures]:
    """Query outputs of all trials of all subjects."""
    features = {}
    for subject in folds.subjects:
        stimuli = torch.from_numpy(folds.stimulus_index(subject))
        outputs = attend_groups(
            model.encoder, store, subject, list(np.arange(len(stimuli))[:, None])
        )
        features[subject] = SubjectFeatures(outputs, stimuli)
    return features


def training_trials(
    features: Mapping[str, SubjectFeatures],
    folds: AnswerFolds,
    embeddings: Tensor,
    left_out: Sequence[str],
    fold: int,
) -> TrainingTrials:
    """Trials of the answers that are shown, of the subjects that are not left out."""
    texts = torch.from_numpy(folds.stimulus_texts)
    shown = torch.from_numpy(folds.shown(fold))
    subjects = {}
    for name, part in features.items():
        rows = torch.isin(texts[part.stimuli], shown)
        if name not in left_out:
            subjects[name] = SubjectFeatures(part.values[rows], part.stimuli[rows])
    return TrainingTrials(subjects, embeddings, texts, EncodingModelConfig())


def sentences(model: MindLLM, answers: Sequence[str], n_texts: int, file: Path) -> list[str]:
    """Sentences that the language model writes after the shown answers, which are kept."""
    if not file.exists():
        write_json(file, {"texts": sample_texts(model.language_model, answers, n_texts, seed=0)})
    return list(json.loads(file.read_text())["texts"])


def choose(
    model: MindLLM, outputs: Tensor, transform: SubjectTransform, texts: Sequence[str]
) -> list[list[str]]:
    """The text about each trial by evidence, and by expected similarity."""
    encoding_model = model.encoding_model
    embeddings = model.embed_texts(texts).double()
    evidence = encoding_model.evidence(outputs, transform, embeddings)
    gains = similarity_gains(evidence, embeddings - encoding_model.text_center)
    return [[texts[i] for i in scores.argmax(1).tolist()] for scores in (evidence, gains)]


def find_texts(
    model: MindLLM, part: SubjectFeatures, rows: np.ndarray, proposals: list[str], n_samples: int
) -> dict[str, list[str]]:
    """Texts about trials of a left-out subject, by each way to find them."""
    transform = model.encoding_model.subject_transform(part.values)
    outputs = part.values[torch.from_numpy(rows)]
    expected = expected_embeddings(model.encoding_model, outputs, transform)
    sampled = sample_readings(
        model, expected, n_samples=n_samples, max_new_tokens=MAX_NEW_TOKENS, seed=1
    )
    texts = {
        "reader: likeliest tokens": [
            row[0]
            for row in sample_readings(model, expected, n_samples=1, max_new_tokens=MAX_NEW_TOKENS)
        ],
        "reader: one sample": [row[0] for row in sampled],
        "proposals, by expected similarity": choose(model, outputs, transform, proposals)[1],
    }
    for row, own in enumerate(sampled):
        one, unique = outputs[row : row + 1], list(dict.fromkeys(text for text in own if text))
        by_evidence, by_similarity = choose(model, one, transform, unique)
        both = choose(model, one, transform, list(dict.fromkeys([*proposals, *unique])))[1]
        for name, chosen in (
            ("reader: samples by evidence", by_evidence),
            ("reader: samples by expected similarity", by_similarity),
            ("samples and proposals, by expected similarity", both),
        ):
            texts.setdefault(name, []).append(chosen[0])
    return texts


def expected_similarity(
    model: MindLLM, part: SubjectFeatures, rows: np.ndarray, candidates: Sequence[str]
) -> Tensor:
    """Similarity (n_trials, n_candidates) of expected embeddings with those of candidates."""
    transform = model.encoding_model.subject_transform(part.values)
    outputs = part.values[torch.from_numpy(rows)]
    expected = expected_embeddings(model.encoding_model, outputs, transform)
    center = model.encoding_model.text_center
    return expected @ center_embeddings(model.embed_texts(candidates).double(), center).T


def train(
    arguments: argparse.Namespace,
    model: MindLLM,
    trials: TrainingTrials,
    folds: AnswerFolds,
    texts: Sequence[str],
) -> bool:
    """Teach the model a reader, within the minutes; whether it has taken all steps."""
    shown, start = folds.shown(arguments.fold), time.monotonic()
    errors = measure_errors(trials, model.encoding_model)
    print(f"gain {errors.gain:.2f}, {errors.explained:.3f} of expected embeddings explained")
    number = {int(answer): i for i, answer in enumerate(shown)}
    errors = replace(errors, texts=torch.tensor([number[int(i)] for i in errors.texts]))
    options = TextReaderOptions(
        max_steps=arguments.max_steps, learning_rate=arguments.learning_rate
    )
    trainer = TextReaderTrainer(model, texts, [folds.answers[i] for i in shown], errors, options)
    checkpoint = arguments.out / f"{name_run(arguments)}.safetensors"
    if checkpoint.exists():
        trainer.restore(checkpoint, {})
    losses = []
    while trainer.state.step < options.max_steps:
        if time.monotonic() - start > 60 * arguments.minutes:
            return False
        losses.append(trainer.take_step())
        if trainer.state.step % SAVE_STEPS == 0:
            trainer.save(checkpoint, {})
            seconds = time.monotonic() - start
            loss = np.mean(losses[-SAVE_STEPS:])
            print(f"step {trainer.state.step}: loss {loss:.3f}, {seconds:.0f} s", flush=True)
    trainer.save(checkpoint, {})
    trainer.run()
    return True


def name_run(arguments: argparse.Namespace) -> str:
    """Name of what one fold keeps."""
    return f"fold-{arguments.fold}-{arguments.left_out.replace(',', '-')}"


def run(arguments: argparse.Namespace) -> None:
    """Teach and test one fold."""
    result = arguments.out / f"{name_run(arguments)}.json"
    if result.exists():
        print(f"{result} is there already")
        return
    store = Store(arguments.store)
    subjects = store.select_subjects(arguments.subjects and arguments.subjects.split(","))
    left_out = arguments.left_out.split(",")
    folds = AnswerFolds.divide(store, subjects, arguments.n_folds)
    language_model = load_language_model()
    torch.manual_seed(0)
    answers = [folds.answers[i] for i in folds.shown(arguments.fold)]
    model = MindLLM(MindLLMConfig(memory_size=len(answers)), {}, language_model).eval()
    init_memory_from_text(model, answers, model.encoder.head.token_proj.keys)  # and the projector
    init_queries(model.encoder, store.maskers([s for s in subjects if s not in left_out]))
    features = query_outputs(model, store, folds)
    embeddings = torch.from_numpy(embed_sentences(folds.answers)).double()
    trials = training_trials(features, folds, embeddings, left_out, arguments.fold)
    parts = trials.subjects, trials.embeddings, trials.stimulus_texts
    model.encoding_model = fit_encoding_model(*parts)
    model.sentence_encoder = DEFAULT_SENTENCE_ENCODER
    file = arguments.out / f"texts-{arguments.fold}.json"
    written = sentences(model, answers, arguments.n_texts, file)
    if not train(arguments, model, trials, folds, written):
        print("not all steps were taken: run again to go on")
        return
    proposals = list(dict.fromkeys([*answers, *written]))
    results = []
    for subject in left_out:
        rows = folds.rows(subject, arguments.fold)
        texts = find_texts(model, features[subject], rows, proposals, arguments.n_samples)
        targets = folds.stimulus_texts[folds.stimulus_index(subject)[rows]]
        truth = [folds.answers[i] for i in targets]
        others = [folds.answers[i] for i in folds.candidates(arguments.fold)]
        similarity = expected_similarity(model, features[subject], rows, others).tolist()
        results.append(
            {
                "subject": subject,
                "truth": truth,
                "candidates": others,
                "texts": texts,
                "similarity": {"expected embedding, no text": similarity},
            }
        )
    write_json(result, {"subjects": results})


def report(folder: Path) -> None:
    """Print the 2-way similarity of all texts that are kept, by way to find them."""
    parts = [
        part
        for file in sorted(folder.glob("fold-*.json"))
        for part in json.loads(file.read_text())["subjects"]
    ]
    scores: dict[str, list[float]] = {}
    shuffled: dict[str, list[float]] = {}
    for part in parts:
        candidates = part["candidates"]
        targets = [candidates.index(text) for text in part["truth"]]
        similarities = {name: np.array(rows) for name, rows in part["similarity"].items()}
        for name, texts in part["texts"].items():
            similarities[name] = embed_sentences(texts) @ embed_sentences(candidates).T
        for name, similarity in similarities.items():
            # Fraction of the other candidates that each one is nearer than (n_texts, n_candidates).
            wins = (similarity[:, :, None] > similarity[:, None]).sum(2)
            ties = (similarity[:, :, None] == similarity[:, None]).sum(2) - 1
            fractions = (wins + ties / 2) / (len(candidates) - 1)
            scores.setdefault(name, []).extend(fractions[np.arange(len(targets)), targets])
            shuffled.setdefault(name, []).extend(fractions[:, targets].mean(1))
    truth = np.unique([t for part in parts for t in part["truth"]], return_inverse=True)[1]
    n_subjects = len({part["subject"] for part in parts})
    print(f"{len(truth)} trials, {truth.max() + 1} answers, {n_subjects} subjects")
    reference = np.array(scores["proposals, by expected similarity"])
    for name, values in scores.items():
        low, high = bootstrap_interval(np.array(values), truth)
        difference = np.array(values) - reference
        d_low, d_high = bootstrap_interval(difference, truth)
        print(
            f"{name}: {np.mean(values):.3f} ({low:.3f} to {high:.3f}); minus proposals "
            f"{difference.mean():+.3f} ({d_low:+.3f} to {d_high:+.3f}); shuffled trials "
            f"{np.mean(shuffled[name]):.3f}"
        )


def main() -> None:
    """Run one fold, or report on all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--subjects", help="Who takes part. Default: all.")
    parser.add_argument("--left-out", default="", help="Subjects that are left out together.")
    parser.add_argument("--fold", type=int, default=0)
    parser.add_argument("--n-folds", type=int, default=10)
    parser.add_argument("--n-texts", type=int, default=400)
    parser.add_argument("--n-samples", type=int, default=10)
    parser.add_argument("--max-steps", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--report", action="store_true")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.report:
        report(arguments.out)
    else:
        run(arguments)


if __name__ == "__main__":
    main()
