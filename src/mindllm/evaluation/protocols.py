"""Protocols as rows of their own: single trials and averaged repeats, named sets of stimuli, people and stimuli seen or new."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from rich.progress import Progress

from mindllm.data.store import Store
from mindllm.evaluation.conditions import ALL_SUBJECTS
from mindllm.evaluation.evaluation_set import EvaluationSet
from mindllm.evaluation.predict import Predictions
from mindllm.evaluation.results import ConditionPredictions, SubjectPredictions
from mindllm.evaluation.score import pool_subjects, score_predictions, summarize_scores
from mindllm.evaluation.text_scores import text_scores
from mindllm.utils.progress import progress_bar
from mindllm.utils.seeds import subject_seed

SHOWN = ("fmri", "shuffled_trials", "null_tokens")
Rows = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Part:
    """Some of the evaluated trials, with the candidates that remain."""

    name: str
    meaning: str
    task: EvaluationSet
    people: list[SubjectPredictions]


def protocols(
    model_card: Mapping[str, Any],
    store: Store,
    task: EvaluationSet,
    gathered: Predictions,
    rows: Rows,
    texts: Rows,
    seed: int,
    progress: Progress | None,
) -> list[dict[str, Any]]:
    """Each protocol with its rows of scores, everybody together; those that the data does not allow are not there.

    rows, texts: the scores of all trials one by one, which are the first protocol; without `texts` no protocol has any.
    """
    single = Part("single trials", "one scan of one trial", task, gathered.subjects)
    parts = [*sub_parts(model_card, store, single)]
    if averaged := average_repetitions(store, task, gathered, progress):
        parts += [averaged, *sub_parts(model_card, store, averaged)]
    return [described(single, rows, texts), *(scored(part, seed, bool(texts)) for part in parts)]


def scored(part: Part, seed: int, java: bool) -> dict[str, Any]:
    """A protocol that is scored here."""
    outcomes = [
        score_predictions(r, part.task, seed=subject_seed(seed, r.subject)) for r in part.people
    ]
    rows = summarize_scores(
        outcomes[0] if len(outcomes) == 1 else pool_subjects(outcomes),
        len(part.task.candidates),
        seed=seed,
    )
    return described(part, rows, text_scores(part.people, part.task, seed) if java else [])


def described(part: Part, rows: Rows, texts: Rows) -> dict[str, Any]:
    """A protocol as report.json keeps it: of its scores those of the brain and its main controls, everybody together."""
    whose = ALL_SUBJECTS if len(part.people) > 1 else part.people[0].subject
    kept = [
        [r for r in some if r["subject"] == whose and r["condition"] in SHOWN]
        for some in (rows, texts)
    ]
    return {
        "name": part.name, "meaning": part.meaning, "people": len(part.people), "stimuli": len(part.task.stimuli),
        "trials": sum(len(r.stimuli) for r in part.people), "candidates": len(part.task.candidates),
        "rows": kept[0], "texts": kept[1],
    }  # fmt: skip


def sub_parts(card: Mapping[str, Any], store: Store, whole: Part) -> Iterator[Part]:
    """Parts of a protocol: the store's named sets of stimuli; people and stimuli seen in training, and new ones."""
    stimuli, people = set(whole.task.stimuli), [r.subject for r in whole.people]
    for name, members in store.stimulus_sets.items():
        if 1 < len(stimuli & set(members)) < len(stimuli):
            yield from part_of(
                whole,
                f"{whole.name}, {name}",
                f"the stimuli of the set {name}",
                people,
                stimuli & set(members),
            )
    for word, known, present in (
        ("people", card.get("subjects"), people),
        ("stimuli", card.get("stimuli"), sorted(stimuli)),
    ):
        seen = set(known or []) & set(present)
        if known is not None and 0 < len(seen) < len(present):
            for state, some in (("seen in training", seen), ("new", set(present) - seen)):
                who, what = (sorted(some), stimuli) if word == "people" else (people, some)
                yield from part_of(
                    whole, f"{whole.name}, {word} {state}", f"{word} {state}", who, what
                )


def part_of(
    whole: Part, name: str, meaning: str, subjects: Sequence[str], stimuli: set[str]
) -> Iterator[Part]:
    """The trials of some people about some stimuli; nothing where fewer than two candidates or no trial remain."""
    task = whole.task
    kept = [i for i, stimulus in enumerate(task.stimuli) if stimulus in stimuli]
    columns = np.unique(task.target_indices[kept])
    if len(columns) < 2:
        return
    people, rows = [], {}
    for readings in whole.people:
        mask = np.isin(readings.stimuli, sorted(stimuli))
        if readings.subject in subjects and mask.any():
            people.append(
                SubjectPredictions(
                    readings.subject, readings.stimuli[mask], part_said(readings, mask, columns)
                )
            )
            rows[readings.subject] = task.trial_indices[readings.subject][mask]
    if people:
        yield Part(name, meaning, replace(
            task, trial_indices=rows, stimuli=[task.stimuli[i] for i in kept], references=[task.references[i] for i in kept],
            candidates=[task.candidates[c] for c in columns], target_indices=np.searchsorted(columns, task.target_indices[kept]),
        ), people)  # fmt: skip


def part_said(
    readings: SubjectPredictions, mask: np.ndarray, columns: np.ndarray
) -> dict[str, ConditionPredictions]:
    """What is said of the kept trials and candidates; scans are shuffled among the kept trials."""
    brain, none = readings.conditions["fmri"], readings.conditions["null_tokens"]
    assert brain.log_likelihoods is not None
    assert brain.null_log_likelihoods is not None
    assert none.log_likelihoods is not None
    blind = brain.null_log_likelihoods[columns]
    own = ConditionPredictions(
        brain.log_likelihoods[mask][:, columns],
        [t for t, m in zip(brain.texts, mask, strict=True) if m],
        blind,
    )
    count = int(mask.sum())
    return {
        "fmri": own,
        "shuffled_trials": own.broadcast_to_trials(count),
        "null_tokens": ConditionPredictions(
            none.log_likelihoods[:, columns], none.texts, blind
        ).broadcast_to_trials(count),
    }


def average_repetitions(
    store: Store, task: EvaluationSet, gathered: Predictions, progress: Progress | None
) -> Part | None:
    """One scan per stimulus and person, the mean of its trials; None where nothing was shown twice."""
    groups, stimuli = {}, {}
    for readings in gathered.subjects:
        rows = task.trial_indices[readings.subject]
        stimuli[readings.subject] = np.unique(readings.stimuli)
        groups[readings.subject] = [rows[readings.stimuli == s] for s in stimuli[readings.subject]]
    most = max(len(rows) for some in groups.values() for rows in some)
    if most < 2:
        return None
    people = []
    with progress_bar(
        progress, "reading averaged repeats", sum(map(len, groups.values()))
    ) as advance:
        for subject, some in groups.items():
            brain = gathered.predictor.predict_trials(store, subject, some, advance)
            none = gathered.predictor.null_predictions
            said = {
                "fmri": brain,
                "shuffled_trials": brain.broadcast_to_trials(len(some)),
                "null_tokens": none.broadcast_to_trials(len(some)),
            }
            people.append(SubjectPredictions(subject, stimuli[subject], said))
    firsts = {subject: np.array([group[0] for group in some]) for subject, some in groups.items()}
    return Part(
        "averaged repeats",
        f"the mean of a stimulus' trials (up to {most})",
        replace(task, trial_indices=firsts),
        people,
    )
