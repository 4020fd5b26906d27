"""What is kept of an evaluation: one record per trial, and how it was measured."""

import platform
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mindllm.data.splits import in_words
from mindllm.data.store import Store
from mindllm.evaluate.baselines import most_frequent
from mindllm.evaluate.evaluation_set import Task
from mindllm.evaluate.predictor import Reader
from mindllm.evaluate.results import Readings
from mindllm.evaluate.score import PERMUTATIONS, RESAMPLES
from mindllm.metrics.calibration import probabilities
from mindllm.metrics.exact_match import match_credit
from mindllm.metrics.identification import rank
from mindllm.model.modeling import MindLLM
from mindllm.utils.versions import PACKAGES, UNKNOWN, package_version

PAIRED = ("shuffled_pairs", "ridge", "nearest_pattern")


def predict(store: Store, task: Task, reader: Reader, readings: Readings) -> list[dict[str, Any]]:
    """One record per trial: what was shown, what was said, and how likely the truth was with and without the scan.

    evidence: log p(decoded | scan) - log p(decoded | no brain) in nats. `others`: what other readers of the trial said.
    """
    rows, said = task.rows[readings.subject], readings.said["brain"]
    trials = store.trials(readings.subject).iloc[rows]
    shown, true = task.columns(readings.stimuli)
    given, gain, each = said.likelihood, said.gain, np.arange(len(rows))
    assert given is not None
    assert gain is not None
    evidence = reader.evidence(store, readings.subject, [np.array([row]) for row in rows], said.texts)
    right = match_credit(said.texts, task.accepted)[each, shown]
    ranks = {"rank": rank(given, true), "gain_rank": rank(gain, true)}
    best, sure = given.argmax(1), probabilities(given)
    first = np.argsort(-given, axis=1, kind="stable")[:, :5]
    records = []
    for i, (row, trial) in enumerate(zip(rows, trials.to_dict("records"), strict=True)):
        record = {
            "subject": readings.subject, "trial": int(row), "stimulus": trial["stimulus"],
            "session": str(trial["session"]), "repeat": int(trial["repeat"]), "truth": task.candidates[true[i]],
            "accepted": list(task.accepted[shown[i]]), "decoded": said.texts[i], "evidence": float(evidence[i]),
            "exact_match": bool(right[i]), "log_likelihood": float(given[i, true[i]]), "gain": float(gain[i, true[i]]),
        }  # fmt: skip
        record |= {name: float(value[i]) for name, value in ranks.items()}
        record |= {
            "likeliest": [task.candidates[c] for c in first[i]],
            "likeliest_gain": float(gain[i, best[i]]),
            "likeliest_probability": float(sure[i, best[i]]),
        }
        record["others"] = {c: readings.said[c].texts[i] for c in PAIRED if c in readings.said}
        records.append(record)
    return records


def describe(
    model: MindLLM,
    store: Store,
    task: Task,
    people: Sequence[Readings],
    name: str | None,
    seed: int,
    batch_size: int,
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """How it was measured; what the model's card does not tell is 'unknown'."""
    card = model.card
    known = set(card["stimuli"]) if "stimuli" in card else None
    persons = {}
    for subject, rows in task.rows.items():
        shown = set(store.trials(subject)["stimulus"].to_numpy()[rows].tolist())
        persons[subject] = {
            "trials": len(rows), "stimuli": len(shown), "split": task.splits[subject], "voxels": len(store.space(subject)),
            "in_training": subject in card["subjects"] if "subjects" in card else UNKNOWN,
            "chose_checkpoint": chose_checkpoint(card, subject, task.splits[subject]),
            "stimuli_seen_in_training": len(shown & known) if known is not None else UNKNOWN,
            "normalized_with": normalization(store, task, subject),
        }  # fmt: skip
    said = people[0].said
    ties = len(most_frequent(card["answers"])) if card.get("answers") else 0
    return {
        "model": {"name": name or card.get("name", UNKNOWN), "llm": model.llm.name, "llm_fingerprint": model.llm.fingerprint, "trained_on_subjects": card.get("subjects", UNKNOWN), "trained_on_store": card.get("store", UNKNOWN), "training_seed": card.get("seed", UNKNOWN), "training_versions": card.get("versions", UNKNOWN), "encoder": model.encoder.config.model_dump()},
        "data": {"store": store.meta.get("name", UNKNOWN), "origin": store.meta.get("origin", UNKNOWN), "licence": store.meta.get("licence", UNKNOWN), "prepared_with": store.meta.get("version", UNKNOWN), "split": in_words(store.split)},
        "subjects": persons,
        "stimuli": len(task.stimuli),
        "stimuli_seen_in_training": len(known & set(task.stimuli)) if known is not None else UNKNOWN,
        "question": task.question, "question_origin": task.question_origin,
        "candidates": list(task.candidates),
        "no_brain_text": said["no_brain"].texts[0], "question_only_text": said["question_only"].texts[0],
        "zero_text": said["zero"].texts[0], "noise_text": said["noise"].texts[0],
        "constant_text": said["constant"].texts[0] if "constant" in said else UNKNOWN, "constant_ties": ties,
        "seed": seed, "bootstrap_resamples": RESAMPLES, "permutations": PERMUTATIONS, "batch_size": batch_size, "generate_options": {k: str(v) for k, v in options.items()},
        "versions": {"mindllm": package_version("mindllm"), "python": platform.python_version(), **{p: package_version(p) for p in PACKAGES}},
    }  # fmt: skip


def chose_checkpoint(card: Mapping[str, Any], subject: str, split: str) -> bool:
    """Whether these trials helped to choose the model's weights: a validation person's trials, their test split apart."""
    return (
        subject in card.get("validation_subjects", [])
        and split != "test"
        and (subject not in card.get("subjects", []) or split == "val")
    )


def normalization(store: Store, task: Task, subject: str) -> str:
    """What a subject's z-scores were measured on, saying so where the evaluated trials are among them."""
    origin = store.normalized_with(subject)
    among = (store.trials(subject)["split"].to_numpy()[task.rows[subject]] == "train").any()
    return (
        f"{origin} of this person, the evaluated ones among them, without labels"
        if among and origin == "training trials"
        else origin
    )
