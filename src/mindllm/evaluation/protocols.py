"""Protocols as rows of their own: repetitions averaged or not, stimulus sets, seen and new."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from mindllm.data.store import Store
from mindllm.evaluation.conditions import ALL_SUBJECTS
from mindllm.evaluation.evaluation_set import EvaluationSet
from mindllm.evaluation.predict import Predictions, repetition_groups
from mindllm.evaluation.results import (
    ConditionPredictions,
    MetricRow,
    ProtocolResult,
    SubjectPredictions,
)
from mindllm.evaluation.score import pool_subjects, score_predictions, summarize_scores
from mindllm.evaluation.text_scores import try_text_scores
from mindllm.model.model_card import ModelCard
from mindllm.utils.seeds import subject_seed

PROTOCOL_CONDITIONS = ("fmri", "shuffled_trials", "null_tokens")


@dataclass(frozen=True, slots=True)
class Protocol:
    """Some of the evaluated trials, or means of them, with the candidates that remain."""

    name: str
    description: str
    task: EvaluationSet
    subjects: list[SubjectPredictions]


def score_protocols(
    model_card: ModelCard,
    store: Store,
    task: EvaluationSet,
    predictions: Predictions,
    scores: Sequence[MetricRow],
    texts: Sequence[MetricRow],
    seed: int,
) -> list[ProtocolResult]:
    """Score every protocol that the data allows.

    Parameters
    ----------
    model_card : ModelCard
        Which subjects and stimuli were seen in training.
    store : Store
        Its stimulus sets.
    task : EvaluationSet
        The evaluated trials.
    predictions : Predictions
        Of single trials and of averaged repetitions.
    scores, texts : sequence of MetricRow
        Rows of all trials one by one, which are the first protocol. Without `texts` no protocol
        has text scores.
    seed : int
        Of permutations and bootstrap.

    Returns
    -------
    list of ProtocolResult
        All subjects together.
    """
    single = Protocol("single trials", "one trial each", task, predictions.subjects)
    protocols = list(sub_protocols(model_card, store, single))
    if predictions.averaged:
        averaged = averaged_protocol(task, predictions)
        protocols += [averaged, *sub_protocols(model_card, store, averaged)]
    results = [score_protocol(protocol, seed, bool(texts)) for protocol in protocols]
    return [protocol_result(single, scores, texts), *results]


def averaged_protocol(task: EvaluationSet, predictions: Predictions) -> Protocol:
    """Return the protocol of averaged repetitions; a stimulus stands for its first trial."""
    groups = {
        single.subject: repetition_groups(task.trial_indices[single.subject], single.stimuli)
        for single in predictions.subjects
    }
    most = max(len(rows) for of_subject in groups.values() for rows in of_subject)
    first = {s: np.array([rows[0] for rows in of_subject]) for s, of_subject in groups.items()}
    return Protocol(
        "averaged repetitions",
        f"the mean of a stimulus' trials (up to {most})",
        replace(task, trial_indices=first),
        predictions.averaged,
    )


def score_protocol(protocol: Protocol, seed: int, with_texts: bool) -> ProtocolResult:
    """Score a protocol, with text scores if asked for."""
    subjects = [
        score_predictions(p, protocol.task, seed=subject_seed(seed, p.subject))
        for p in protocol.subjects
    ]
    rows = summarize_scores(
        subjects[0] if len(subjects) == 1 else pool_subjects(subjects),
        len(protocol.task.candidates),
        seed=seed,
    )
    texts = try_text_scores(protocol.subjects, protocol.task, seed)[0] if with_texts else []
    return protocol_result(protocol, rows, texts)


def protocol_result(
    protocol: Protocol, rows: Sequence[MetricRow], texts: Sequence[MetricRow]
) -> ProtocolResult:
    """Keep of a protocol's rows those of fMRI and its main controls, all subjects together."""
    subject = ALL_SUBJECTS if len(protocol.subjects) > 1 else protocol.subjects[0].subject

    def select(rows: Sequence[MetricRow]) -> tuple[MetricRow, ...]:
        return tuple(
            row for row in rows if row.subject == subject and row.condition in PROTOCOL_CONDITIONS
        )

    return ProtocolResult(
        name=protocol.name,
        description=protocol.description,
        n_subjects=len(protocol.subjects),
        n_trials=sum(len(p.stimuli) for p in protocol.subjects),
        n_stimuli=len(protocol.task.stimuli),
        n_candidates=len(protocol.task.candidates),
        rows=select(rows),
        text_rows=select(texts),
    )


def sub_protocols(card: ModelCard, store: Store, protocol: Protocol) -> Iterator[Protocol]:
    """Yield a protocol on each stimulus set, and on subjects and stimuli seen or new."""
    stimuli, subjects = set(protocol.task.stimuli), [p.subject for p in protocol.subjects]
    for name, members in store.stimulus_sets.items():
        common = stimuli & set(members)
        if 1 < len(common) < len(stimuli):
            yield from select_protocol(
                protocol, name, f"the stimuli of the set {name}", subjects, common
            )
    for kind, known, present in (
        ("subjects", card.subjects, subjects),
        ("stimuli", card.stimuli, sorted(stimuli)),
    ):
        in_training = set(known or []) & set(present)
        if known is None or not 0 < len(in_training) < len(present):
            continue
        parts = {"seen in training": in_training, "new": set(present) - in_training}
        for state, selected in parts.items():
            words = f"{kind} {state}"
            if kind == "subjects":
                yield from select_protocol(protocol, words, words, sorted(selected), stimuli)
            else:
                yield from select_protocol(protocol, words, words, subjects, selected)


def select_protocol(
    protocol: Protocol, name: str, description: str, subjects: Sequence[str], stimuli: set[str]
) -> Iterator[Protocol]:
    """Yield a protocol on some subjects and stimuli, unless too few candidates or trials remain."""
    task = protocol.task
    kept = [i for i, stimulus in enumerate(task.stimuli) if stimulus in stimuli]
    columns = np.unique(task.target_indices[kept])
    if len(columns) < 2:
        return
    selected, trial_indices = [], {}
    for predictions in protocol.subjects:
        mask = np.isin(predictions.stimuli, sorted(stimuli))
        if predictions.subject in subjects and mask.any():
            conditions = select_predictions(predictions, mask, columns)
            selected.append(
                SubjectPredictions(predictions.subject, predictions.stimuli[mask], conditions)
            )
            trial_indices[predictions.subject] = task.trial_indices[predictions.subject][mask]
    if not selected:
        return
    part = replace(
        task,
        trial_indices=trial_indices,
        stimuli=[task.stimuli[i] for i in kept],
        references=[task.references[i] for i in kept],
        candidates=[task.candidates[c] for c in columns],
        target_indices=np.searchsorted(columns, task.target_indices[kept]),
    )
    yield Protocol(f"{protocol.name}, {name}", description, part, selected)


def select_predictions(
    predictions: SubjectPredictions, mask: np.ndarray, columns: np.ndarray
) -> dict[str, ConditionPredictions]:
    """Return predictions of some trials (mask, (B,)) and candidates; shuffled among these."""
    fmri, null = predictions.conditions["fmri"], predictions.conditions["null_tokens"]
    assert fmri.log_likelihoods is not None
    assert fmri.null_log_likelihoods is not None
    assert null.log_likelihoods is not None
    null_log_likelihoods = fmri.null_log_likelihoods[columns]
    selected = ConditionPredictions(
        fmri.log_likelihoods[mask][:, columns],
        [text for text, kept in zip(fmri.texts, mask, strict=True) if kept],
        null_log_likelihoods,
        evidence=None if fmri.evidence is None else fmri.evidence[mask][:, columns],
    )
    null = ConditionPredictions(null.log_likelihoods[:, columns], null.texts, null_log_likelihoods)
    n_trials = int(mask.sum())
    return {
        "fmri": selected,
        "shuffled_trials": selected.broadcast_to_trials(n_trials),
        "null_tokens": null.broadcast_to_trials(n_trials),
    }
