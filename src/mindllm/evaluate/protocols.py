"""Protocols as rows of their own: single trials and averaged repeats, named sets of stimuli, people and stimuli seen or new."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from rich.progress import Progress

from mindllm.data.store import Store
from mindllm.evaluate.conditions import ALL
from mindllm.evaluate.evaluation_set import Task
from mindllm.evaluate.predict import Gathered
from mindllm.evaluate.results import Readings, Said
from mindllm.evaluate.score import judge, pool, tabulate
from mindllm.evaluate.text_scores import text_scores
from mindllm.utils.progress import counting
from mindllm.utils.seeds import own_seed

SHOWN = ("brain", "shuffled", "no_brain")
Rows = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Part:
    """Some of the evaluated trials, with the candidates that remain."""

    name: str
    meaning: str
    task: Task
    people: list[Readings]


def protocols(
    model_card: Mapping[str, Any],
    store: Store,
    task: Task,
    gathered: Gathered,
    rows: Rows,
    texts: Rows,
    seed: int,
    progress: Progress | None,
) -> list[dict[str, Any]]:
    """Each protocol with its rows of scores, everybody together; those that the data does not allow are not there.

    rows, texts: the scores of all trials one by one, which are the first protocol; without `texts` no protocol has any.
    """
    single = Part("single trials", "one scan of one trial", task, gathered.people)
    parts = [*sub_parts(model_card, store, single)]
    if averaged := average(store, task, gathered, progress):
        parts += [averaged, *sub_parts(model_card, store, averaged)]
    return [described(single, rows, texts), *(scored(part, seed, bool(texts)) for part in parts)]


def scored(part: Part, seed: int, java: bool) -> dict[str, Any]:
    """A protocol that is scored here."""
    outcomes = [judge(r, part.task, seed=own_seed(seed, r.subject)) for r in part.people]
    rows = tabulate(outcomes[0] if len(outcomes) == 1 else pool(outcomes), len(part.task.candidates), seed=seed)
    return described(part, rows, text_scores(part.people, part.task, seed) if java else [])


def described(part: Part, rows: Rows, texts: Rows) -> dict[str, Any]:
    """A protocol as report.json keeps it: of its scores those of the brain and its main controls, everybody together."""
    whose = ALL if len(part.people) > 1 else part.people[0].subject
    kept = [[r for r in some if r["subject"] == whose and r["condition"] in SHOWN] for some in (rows, texts)]
    return {
        "name": part.name, "meaning": part.meaning, "people": len(part.people), "stimuli": len(part.task.stimuli),
        "trials": sum(len(r.stimuli) for r in part.people), "candidates": len(part.task.candidates),
        "rows": kept[0], "texts": kept[1],
    }  # fmt: skip


def sub_parts(card: Mapping[str, Any], store: Store, whole: Part) -> Iterator[Part]:
    """Parts of a protocol: the store's named sets of stimuli; people and stimuli seen in training, and new ones."""
    stimuli, people = set(whole.task.stimuli), [r.subject for r in whole.people]
    for name, members in store.sets.items():
        if 1 < len(stimuli & set(members)) < len(stimuli):
            yield from part_of(
                whole, f"{whole.name}, {name}", f"the stimuli of the set {name}", people, stimuli & set(members)
            )
    for word, known, present in (
        ("people", card.get("subjects"), people),
        ("stimuli", card.get("stimuli"), sorted(stimuli)),
    ):
        seen = set(known or []) & set(present)
        if known is not None and 0 < len(seen) < len(present):
            for state, some in (("seen in training", seen), ("new", set(present) - seen)):
                who, what = (sorted(some), stimuli) if word == "people" else (people, some)
                yield from part_of(whole, f"{whole.name}, {word} {state}", f"{word} {state}", who, what)


def part_of(whole: Part, name: str, meaning: str, subjects: Sequence[str], stimuli: set[str]) -> Iterator[Part]:
    """The trials of some people about some stimuli; nothing where fewer than two candidates or no trial remain."""
    task = whole.task
    kept = [i for i, stimulus in enumerate(task.stimuli) if stimulus in stimuli]
    columns = np.unique(task.truth[kept])
    if len(columns) < 2:
        return
    people, rows = [], {}
    for readings in whole.people:
        mask = np.isin(readings.stimuli, sorted(stimuli))
        if readings.subject in subjects and mask.any():
            people.append(Readings(readings.subject, readings.stimuli[mask], part_said(readings, mask, columns)))
            rows[readings.subject] = task.rows[readings.subject][mask]
    if people:
        yield Part(name, meaning, replace(
            task, rows=rows, stimuli=[task.stimuli[i] for i in kept], accepted=[task.accepted[i] for i in kept],
            candidates=[task.candidates[c] for c in columns], truth=np.searchsorted(columns, task.truth[kept]),
        ), people)  # fmt: skip


def part_said(readings: Readings, mask: np.ndarray, columns: np.ndarray) -> dict[str, Said]:
    """What is said of the kept trials and candidates; scans are shuffled among the kept trials."""
    brain, none = readings.said["brain"], readings.said["no_brain"]
    assert brain.likelihood is not None
    assert brain.blind is not None
    assert none.likelihood is not None
    blind = brain.blind[columns]
    own = Said(brain.likelihood[mask][:, columns], [t for t, m in zip(brain.texts, mask, strict=True) if m], blind)
    count = int(mask.sum())
    return {
        "brain": own,
        "shuffled": own.for_all(count),
        "no_brain": Said(none.likelihood[:, columns], none.texts, blind).for_all(count),
    }


def average(store: Store, task: Task, gathered: Gathered, progress: Progress | None) -> Part | None:
    """One scan per stimulus and person, the mean of its trials; None where nothing was shown twice."""
    groups, stimuli = {}, {}
    for readings in gathered.people:
        rows = task.rows[readings.subject]
        stimuli[readings.subject] = np.unique(readings.stimuli)
        groups[readings.subject] = [rows[readings.stimuli == s] for s in stimuli[readings.subject]]
    most = max(len(rows) for some in groups.values() for rows in some)
    if most < 2:
        return None
    people = []
    with counting(progress, "reading averaged repeats", sum(map(len, groups.values()))) as advance:
        for subject, some in groups.items():
            brain = gathered.reader.scans(store, subject, some, advance)
            none = gathered.reader.no_brain
            said = {"brain": brain, "shuffled": brain.for_all(len(some)), "no_brain": none.for_all(len(some))}
            people.append(Readings(subject, stimuli[subject], said))
    firsts = {subject: np.array([group[0] for group in some]) for subject, some in groups.items()}
    return Part(
        "averaged repeats", f"the mean of a stimulus' trials (up to {most})", replace(task, rows=firsts), people
    )
