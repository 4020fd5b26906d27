"""Questions of a source about test trials, scored by the source's own protocol, with controls."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mindllm.data.splits import describe_split
from mindllm.data.store import Store
from mindllm.evaluation.evaluation_set import check_split
from mindllm.evaluation.predictor import without_fmri_tokens
from mindllm.language.conversation import Conversation
from mindllm.metrics.java import JavaError
from mindllm.metrics.tasks import TASKS, MetricResult, score
from mindllm.model.modeling import MindLLM
from mindllm.utils.errors import InputError
from mindllm.utils.files import check_not_exists, write_json
from mindllm.utils.folders import atomic_directory

CONDITIONS = ("fmri", "shuffled_trials", "null_tokens", "question_only")
ENCODED_TRIALS = 256  # encoded at once
# How the sources of brain instruction tuning are scored (MindLLM, tables 1 and 2).
SOURCES = {
    "paragraph-caption": "paragraph",
    "coco-qa": "exact",
    "visual-genome": "exact",
    "vqa-v2": "vqa",
    "ok-vqa": "vqa",
    "st-vqa": "anls",
    "tally-qa": "count",
    "vqa-e": "vqa-e",
    "vsr": "exact",
    "a-okvqa": "choice",
    "fsvqa": "fsvqa",
    "tdiuc": "tdiuc",
    "gqa": "exact",
    "refcoco": "grounding",
}
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class QuestionItem:
    """One question about one trial, or about the mean of several.

    reference is in the form that the task takes; see `mindllm.metrics.tasks`.
    """

    key: str
    subject: str
    trials: tuple[int, ...]
    turns: Conversation
    reference: Any


@dataclass(frozen=True, slots=True)
class QARunInfo:
    """How questions were asked; None: the model card does not say."""

    source: str
    task: str
    protocol: str
    split: str
    store_split: str
    subjects: tuple[str, ...]
    source_in_training: bool | None
    subjects_in_training: tuple[str, ...]
    average_repetitions: bool
    n_items: int
    seed: int
    generate_options: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class QAResult:
    """Predictions and official scores of every condition.

    Parameters
    ----------
    run_info : QARunInfo
        How they were made.
    predictions : mapping of condition to mapping of item key to str
        Generated answers.
    log_likelihood_ratios : mapping of item key to float
        log p(answer | fMRI) - log p(answer | null tokens) of the answers from fMRI, in nats.
    references : mapping of item key to object
        In the form that the task takes.
    scores : mapping of condition to MetricResult
        Official scores.
    """

    run_info: QARunInfo
    predictions: Mapping[str, Mapping[str, str]]
    log_likelihood_ratios: Mapping[str, float]
    references: Mapping[str, Any]
    scores: Mapping[str, MetricResult]

    def to_frame(self) -> pd.DataFrame:
        """Return scores (rows) by condition (columns)."""
        return pd.DataFrame({condition: s.values for condition, s in self.scores.items()})

    def save(self, directory: str | Path) -> None:
        """Write scores, references, predictions and log-likelihood ratios into a new folder."""
        with atomic_directory(Path(directory)) as folder:
            write_json(folder / "references.json", self.references)
            write_json(folder / "log_likelihood_ratios.json", self.log_likelihood_ratios)
            for condition, predictions in self.predictions.items():
                write_json(folder / f"predictions-{condition}.json", predictions)
            scores = {condition: s.values for condition, s in self.scores.items()}
            write_json(folder / "scores.json", asdict(self.run_info) | {"scores": scores})


class OnProgress(Protocol):
    """Called with how many answers of how many are there."""

    def __call__(self, done: int, total: int, /) -> None: ...


@dataclass(slots=True)
class Answers:
    """Answers by condition and item key, and log-likelihood ratios, while they are made."""

    texts: dict[str, dict[str, str]] = field(default_factory=lambda: {c: {} for c in CONDITIONS})
    log_likelihood_ratios: dict[str, float] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """How many answers there are."""
        return sum(map(len, self.texts.values()))


def evaluate_qa(
    model: MindLLM,
    store: Store,
    source: str,
    out: str | Path,
    *,
    subjects: Sequence[str] | None = None,
    split: str = "test",
    average_repetitions: bool = False,
    task: str | None = None,
    batch_size: int = 16,
    seed: int = 0,
    on_progress: OnProgress | None = None,
    **generate_options: Any,
) -> QAResult:
    """Ask every question of a source about the trials of a split, and save answers and scores.

    Parameters
    ----------
    model, store, source : MindLLM, Store, str
        What is asked; on which data; the questions' source in the store's conversations.
    out : str or Path
        New folder for the result.
    subjects, split : optional
        Whose trials, default all subjects; which trials.
    average_repetitions : bool
        Ask about the mean of a stimulus' trials, not about each of them.
    task : str, optional
        How answers are scored; default: as the source is (SOURCES), else as captions.
    batch_size, seed, on_progress
        Questions per call; of the shuffling; called with the number of answers.
    **generate_options
        Options of `model.generate`.

    Returns
    -------
    QAResult
        The same questions answered from fMRI, from trials of other stimuli, from null tokens, and
        without any token.
    """
    check_not_exists(Path(out))
    name, chosen = choose_task(source, task), choose_subjects(model, store, subjects, split)
    questions = Questions(source, name, chosen, split, average_repetitions)
    items = questions.collect(store)
    answers = answer_items(model, store, items, batch_size, seed, on_progress, generate_options)
    result = score_answers(model, store, questions, items, answers, seed, generate_options)
    result.save(out)
    return result


@dataclass(frozen=True, slots=True)
class Questions:
    """Which questions are asked: source, task, subjects, split, single trials or their means."""

    source: str
    task: str
    subjects: tuple[str, ...]
    split: str
    average_repetitions: bool

    def collect(self, store: Store) -> list[QuestionItem]:
        """Return the questions; see `collect_questions`."""
        return collect_questions(
            store, self.source, self.subjects, self.split, self.average_repetitions, self.task
        )


def choose_task(source: str, task: str | None) -> str:
    """Return the task that scores a source; an unknown one is an InputError."""
    name = task or SOURCES.get(source.split("/")[0], "caption")  # without the type of question
    if name not in TASKS:
        raise InputError(f"unknown task {name!r}; known: {', '.join(TASKS)}.")
    return name


def choose_subjects(
    model: MindLLM, store: Store, subjects: Sequence[str] | None, split: str
) -> tuple[str, ...]:
    """Return the subjects to ask about; InputError if the model was trained on these trials."""
    chosen = store.select_subjects(subjects)
    check_split(store, model.model_card)
    trained = sorted(set(chosen) & set(model.model_card.subjects or []))
    if split == "train" and trained:
        raise InputError(
            f"the model was trained on these trials of {', '.join(trained)}; "
            "ask about the split test."
        )
    return tuple(chosen)


def answer_items(
    model: MindLLM,
    store: Store,
    items: Sequence[QuestionItem],
    batch_size: int,
    seed: int,
    on_progress: OnProgress | None,
    generate_options: Mapping[str, Any],
) -> Answers:
    """Answer every question under every condition, one subject after the other."""
    rng, answers, bare = np.random.default_rng(seed), Answers(), without_fmri_tokens(model)
    for subject in sorted({item.subject for item in items}):
        of_subject = [item for item in items if item.subject == subject]
        for condition, batch, tokens in iter_batches(model, store, of_subject, batch_size, rng):
            turns = [item.turns for item in batch]
            asked = bare if condition == "question_only" else model
            texts = asked.generate(tokens, turns, **generate_options)
            answers.texts[condition] |= {i.key: t for i, t in zip(batch, texts, strict=True)}
            if condition == "fmri":
                conversations: list[Conversation] = [
                    [*turn, {"role": "assistant", "content": text}]
                    for turn, text in zip(turns, texts, strict=True)
                ]
                ratios = model.log_likelihood_ratio(tokens, conversations).double().tolist()
                answers.log_likelihood_ratios |= {
                    item.key: ratio for item, ratio in zip(batch, ratios, strict=True)
                }
            if on_progress:
                on_progress(answers.count, len(items) * len(CONDITIONS))
    return answers


def score_answers(
    model: MindLLM,
    store: Store,
    questions: Questions,
    items: Sequence[QuestionItem],
    answers: Answers,
    seed: int,
    generate_options: Mapping[str, Any],
) -> QAResult:
    """Return scores of the answers, and how they were made."""
    card, task = model.model_card, questions.task
    run_info = QARunInfo(
        source=questions.source,
        task=task,
        protocol=TASKS[task].source,
        split=questions.split,
        store_split=describe_split(store.split),
        subjects=questions.subjects,
        source_in_training=None if card.sources is None else questions.source in card.sources,
        subjects_in_training=tuple(sorted(set(questions.subjects) & set(card.subjects or []))),
        average_repetitions=questions.average_repetitions,
        n_items=len(items),
        seed=seed,
        generate_options={k: str(v) for k, v in generate_options.items()},
    )
    references = {item.key: item.reference for item in items}
    return QAResult(
        run_info=run_info,
        predictions=answers.texts,
        log_likelihood_ratios=answers.log_likelihood_ratios,
        references=references,
        scores={c: try_score(texts, references, task) for c, texts in answers.texts.items()},
    )


def try_score(
    predictions: Mapping[str, str], references: Mapping[str, Any], task: str
) -> MetricResult:
    """Return the scores of answers; none, with a warning, where they need Java and it dies."""
    try:
        return score(predictions, references, task)
    except JavaError as error:
        logger.warning("the answers are kept without scores: %s", error)
        return MetricResult(task, {}, {}, list(references))


def iter_batches(
    model: MindLLM,
    store: Store,
    items: Sequence[QuestionItem],
    batch_size: int,
    rng: np.random.Generator,
) -> Iterator[tuple[str, Sequence[QuestionItem], Tensor]]:
    """Yield condition, questions and fMRI tokens (B, num_fmri_tokens, token_dim) of a subject."""
    subject = items[0].subject
    scans = sorted({item.trials for item in items})
    index = {trials: n for n, trials in enumerate(scans)}
    parts = np.array_split(np.arange(len(scans)), max(1, len(scans) // ENCODED_TRIALS))
    betas = (store.mean_betas(subject, [np.array(scans[n]) for n in part]) for part in parts)
    tokens = torch.cat([model.encode(batch, store.masker(subject)) for batch in betas])
    stimuli = store.trials(subject)["stimulus"].to_numpy()[[trials[0] for trials in scans]]
    rows = {"fmri": np.arange(len(scans)), "shuffled_trials": shuffle_scans(stimuli, rng)}
    for condition in CONDITIONS:
        for start in range(0, len(items), batch_size):
            batch = items[start : start + batch_size]
            if condition == "null_tokens":
                yield condition, batch, model.null_tokens.expand(len(batch), -1, -1)
            elif condition == "question_only":
                yield condition, batch, model.null_tokens[:0].expand(len(batch), -1, -1)
            else:
                numbers = [index[item.trials] for item in batch]
                yield condition, batch, tokens[rows[condition][numbers]]


def collect_questions(
    store: Store,
    source: str,
    subjects: Sequence[str],
    split: str,
    average_repetitions: bool,
    task: str,
) -> list[QuestionItem]:
    """Collect the questions of a source about the trials of a split.

    Each question comes once per trial (or per stimulus), however many answers it has. Raises
    InputError if the store has no such source, or it asks about none of these trials.
    """
    by_stimulus, by_trial = group_questions(store, source)
    if average_repetitions and not by_stimulus:
        raise InputError(
            f"{source} asks about single trials, which have no average; "
            "leave --average-repetitions out."
        )
    items = []
    for subject in subjects:
        for name, (stimulus, rows) in trial_groups(
            store, subject, split, average_repetitions
        ).items():
            questions = by_stimulus.get(stimulus) or by_trial.get((subject, rows[0]), [])
            items += [
                QuestionItem(
                    key=f"{subject}/{name}/{number}",
                    subject=subject,
                    trials=tuple(rows),
                    turns=question["turns"][:-1],
                    reference=build_reference(question["answers"], task),
                )
                for number, question in enumerate(questions)
            ]
    if not items:
        raise InputError(
            f"no trial of the split {split} of {', '.join(subjects)} is one that {source} asks "
            "about, or shows a stimulus that it does."
        )
    return items


def trial_groups(
    store: Store, subject: str, split: str, average_repetitions: bool
) -> dict[str, tuple[str, list[int]]]:
    """Return, by name, the stimulus and trial indices that are asked about together."""
    trials = store.trials(subject).reset_index(drop=True)
    trials = trials[trials["split"] == split]
    if average_repetitions:
        groups = trials.groupby("stimulus")
        return {str(s): (str(s), members.index.tolist()) for s, members in groups}
    return {
        f"{stimulus}#{row}": (str(stimulus), [row])
        for row, stimulus in zip(trials.index, trials["stimulus"], strict=True)
    }


QuestionRows = list[Mapping[str, Any]]


def group_questions(
    store: Store, source: str
) -> tuple[dict[str, QuestionRows], dict[tuple[str, int], QuestionRows]]:
    """Return a source's distinct questions by stimulus, and by subject and trial index."""
    table = store.conversations
    known = sorted(set(table["source"]))
    if source not in known:
        raise InputError(
            f"{store.path} has no source {source!r}; it holds {', '.join(known) or 'none'}."
        )
    table = table[table["source"] == source]
    table = table.assign(question=[turns[-2]["content"] for turns in table["turns"]])
    table = table.drop_duplicates(["stimulus", "subject", "trial_index", "question"])
    by_stimulus = {
        str(stimulus): rows.to_dict("records") for stimulus, rows in table.groupby("stimulus")
    }
    by_trial = {
        (str(subject), int(trial)): rows.to_dict("records")  # type: ignore[call-overload]
        for (subject, trial), rows in table.groupby(["subject", "trial_index"])
    }
    return by_stimulus, by_trial  # type: ignore[return-value] # records have keys of str


def build_reference(answers: Sequence[str], task: str) -> Any:
    """Put the answers of a store in the form that a task takes.

    Parameters
    ----------
    answers : sequence of str
        The conversation's own answer, then the others.
    task : str
        A key of TASKS.

    Returns
    -------
    object
        See `mindllm.metrics.tasks.TASKS`.

    Examples
    --------
    >>> build_reference(["red", "color"], "tdiuc")
    {'type': 'color', 'answer': 'red'}
    """
    first, others = answers[0], list(answers[1:])
    if task == "vqa-e":
        return {"answers": others[:-1], "explanation": others[-1:]}
    if task == "fsvqa":  # the full sentence, the short answer, ten annotators' answers
        return {"sentence": first, "answer": others[0], "answers": others[1:]}
    if task == "tdiuc":
        return {"type": others[0], "answer": first}
    if task == "grounding":
        return {others[0]: first}
    return first if task in ("choice", "count") else [first, *others]


def shuffle_scans(stimuli: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return for each scan (B,) the number of a random one that shows another stimulus."""
    if len(set(stimuli.tolist())) < 2:
        raise InputError(
            "all scans show one stimulus, so they cannot be shuffled; ask about several stimuli."
        )
    rows = np.array([rng.choice(np.flatnonzero(stimuli != stimulus)) for stimulus in stimuli])
    assert (stimuli[rows] != stimuli).all()
    return rows
