"""A source's questions asked about test scans; the answers scored by its own protocol, beside shuffled scans and no brain."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mindllm.data.splits import describe_split
from mindllm.data.store import Store, mean_betas
from mindllm.evaluation.evaluation_set import check_split
from mindllm.language.conversation import Conversation
from mindllm.metrics.tasks import TASKS, MetricResult, score
from mindllm.model.modeling import MindLLM
from mindllm.utils.errors import InputError
from mindllm.utils.files import atomic_directory, check_not_exists, write_json

CONDITIONS = ("fmri", "shuffled_trials", "null_tokens")
# How the sources of brain instruction tuning are scored (MindLLM, tables 1 and 2); captions where nothing else is said.
SOURCES = {
    "paragraph-caption": "paragraph", "coco-qa": "exact", "visual-genome": "exact", "vqa-v2": "vqa", "ok-vqa": "vqa",
    "st-vqa": "anls", "tally-qa": "count", "vqa-e": "vqa-e", "vsr": "exact", "a-okvqa": "choice", "fsvqa": "fsvqa",
    "tdiuc": "tdiuc", "gqa": "exact",
}  # fmt: skip


@dataclass(frozen=True)
class QuestionItem:
    """One question about one scan: the trials whose values are averaged, what is asked, and what is right."""

    key: str
    subject: str
    trials: tuple[int, ...]
    turns: Conversation
    reference: Any


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
    advance: Callable[[int, int], None] | None = None,
    **options: Any,
) -> dict[str, MetricResult]:
    """Ask every question of `source` about the trials of `split`; write predictions, references and scores into `out`.

    average: one scan per stimulus, the mean of its repeats; else one per trial.  task: how answers are scored, where the
    source is not known (see SOURCES).  advance: is told how many answers of how many are there.  options: go to `generate`.
    Shuffled: the same questions, each person's scans of other stimuli.  No brain: the mean fMRI token.
    """
    check_not_exists(Path(out))
    task = task or SOURCES.get(source, "caption")
    if task not in TASKS:
        raise InputError(f"unknown task {task!r}; known: {', '.join(TASKS)}.")
    chosen = store.select_subjects(subjects)
    check_split(store, model.model_card)
    trained = sorted(set(chosen) & set(model.model_card.get("subjects", [])))
    if split == "train" and trained:
        raise InputError(
            f"the model was trained on these trials of {', '.join(trained)}; ask about the split test."
        )
    items = collect(store, source, chosen, split, average_repetitions, task)
    rng = np.random.default_rng(seed)
    said: dict[str, dict[str, str]] = {condition: {} for condition in CONDITIONS}
    evidence: dict[str, float] = {}
    done, total = 0, len(items) * len(CONDITIONS)
    for subject in sorted({item.subject for item in items}):
        own = [item for item in items if item.subject == subject]
        for condition, some, tokens in ready(model, store, own, batch_size, rng):
            texts = model.generate(tokens, [item.turns for item in some], **options)
            said[condition] |= {item.key: text for item, text in zip(some, texts, strict=True)}
            if condition == "fmri":
                told = [
                    [*item.turns, {"role": "assistant", "content": said["fmri"][item.key]}]
                    for item in some
                ]
                nats = model.log_likelihood_ratio(tokens, told).double().tolist()
                evidence |= {item.key: value for item, value in zip(some, nats, strict=True)}
            done += len(some)
            if advance:
                advance(done, total)
    meta = {"source": source, "task": task, "protocol": TASKS[task].source, "split": split, "split_of_the_store": describe_split(store.split), "subjects": chosen, "source_in_training": source in model.model_card["sources"] if "sources" in model.model_card else "unknown", "subjects_in_training": trained, "repeats": "averaged" if average_repetitions else "single trials", "items": len(items), "seed": seed, "generate_options": {k: str(v) for k, v in options.items()}}  # fmt: skip
    references = {item.key: item.reference for item in items}
    with atomic_directory(Path(out)) as folder:
        write_json(folder / "references.json", references)
        write_json(
            folder / "evidence.json", evidence
        )  # log p(answer | scan) - log p(answer | no brain), in nats
        for condition, given in said.items():
            write_json(folder / f"predictions-{condition}.json", given)
        found = {condition: score(given, references, task) for condition, given in said.items()}
        write_json(
            folder / "scores.json", meta | {"scores": {c: s.values for c, s in found.items()}}
        )
    return found


def ready(
    model: MindLLM,
    store: Store,
    items: Sequence[QuestionItem],
    batch_size: int,
    rng: np.random.Generator,
) -> Iterator[tuple[str, Sequence[QuestionItem], Tensor]]:
    """One person's questions under every condition, a batch at a time, with the fMRI tokens (B, T, width) to ask about."""
    subject = items[0].subject
    scans = sorted({item.trials for item in items})
    place = {trials: n for n, trials in enumerate(scans)}
    parts = np.array_split(np.arange(len(scans)), max(1, len(scans) // 256))
    values = (mean_betas(store, subject, [np.array(scans[n]) for n in part]) for part in parts)
    tokens = torch.cat([model.encode(some, store.masker(subject)) for some in values])
    shown = store.trials(subject)["stimulus"].to_numpy()[[trials[0] for trials in scans]]
    rows = {"fmri": np.arange(len(scans)), "shuffled_trials": elsewhere(shown, rng)}
    for condition in CONDITIONS:
        for start in range(0, len(items), batch_size):
            some = items[start : start + batch_size]
            if condition == "null_tokens":
                yield condition, some, model.null_tokens.expand(len(some), -1, -1)
            else:
                yield (
                    condition,
                    some,
                    tokens[rows[condition][[place[item.trials] for item in some]]],
                )


def collect(
    store: Store, source: str, subjects: Sequence[str], split: str, average: bool, task: str
) -> list[QuestionItem]:
    """The questions: each once per scan, whatever many answers it has."""
    table = store.conversations
    known = sorted(set(table["source"]))
    if source not in known:
        raise InputError(
            f"{store.path} has no source {source!r}; it holds {', '.join(known) or 'none'}."
        )
    table = table[table["source"] == source]
    asked = table.assign(said=[turns[-2]["content"] for turns in table["turns"]])
    asked = asked.drop_duplicates(["stimulus", "subject", "trial_index", "said"])
    of_stimuli = {
        str(stimulus): some.to_dict("records") for stimulus, some in asked.groupby("stimulus")
    }
    of_trials = {
        (str(s), int(t)): some.to_dict("records")  # type: ignore[call-overload]
        for (s, t), some in asked.groupby(["subject", "trial_index"])
    }
    if average and not of_stimuli:
        raise InputError(
            f"{source} asks about single trials, which have no average; leave --average-repetitions out."
        )
    items = []
    for subject in subjects:
        rows = store.trials(subject).reset_index(drop=True)
        rows = rows[rows["split"] == split]
        groups = {
            f"{stimulus}#{row}": (str(stimulus), [row])
            for row, stimulus in zip(rows.index, rows["stimulus"], strict=True)
        }
        if average:
            groups = {str(s): (str(s), some.index.tolist()) for s, some in rows.groupby("stimulus")}
        for name, (stimulus, places) in groups.items():
            questions = of_stimuli.get(stimulus) or of_trials.get((subject, places[0]), [])
            for number, row in enumerate(questions):
                right = reference(row["answers"], task)
                items.append(
                    QuestionItem(
                        f"{subject}/{name}/{number}",
                        subject,
                        tuple(places),
                        row["turns"][:-1],
                        right,
                    )
                )
    if not items:
        raise InputError(
            f"no trial of the split {split} of {', '.join(subjects)} is one that {source} asks about, or shows a stimulus that it does."
        )
    return items


def reference(answers: Sequence[str], task: str) -> Any:
    """What is right, in the form that the task takes; a store keeps the conversation's own answer, then the others."""
    own, others = answers[0], list(answers[1:])
    if task == "vqa-e":
        return {"answers": others[:-1], "explanation": others[-1:]}
    if task == "fsvqa":  # the full sentence, the short answer, ten people's
        return {"sentence": own, "answer": others[0], "answers": others[1:]}
    if task == "tdiuc":
        return {"type": others[0], "answer": own}
    return own if task in ("choice", "count") else [own, *others]


def elsewhere(shown: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """For each scan another one, of another stimulus where there is one: a random order in which nobody keeps a place."""
    if len(set(shown.tolist())) < 2:
        raise InputError(
            "all scans show one stimulus, so they cannot be shuffled; ask about several stimuli."
        )
    rows = np.array([rng.choice(np.flatnonzero(shown != stimulus)) for stimulus in shown])
    assert (shown[rows] != shown).all()
    return rows


def as_frame(found: dict[str, MetricResult]) -> pd.DataFrame:
    """Scores (rows) by condition (columns)."""
    return pd.DataFrame({condition: s.values for condition, s in found.items()})
