"""What is kept of an evaluation: one record per trial, and how it was measured."""

import platform
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mindllm.data.splits import describe_split
from mindllm.data.store import Store
from mindllm.evaluation.baselines import most_frequent
from mindllm.evaluation.evaluation_set import EvaluationSet
from mindllm.evaluation.predictor import Predictor
from mindllm.evaluation.results import SubjectPredictions
from mindllm.evaluation.score import PERMUTATIONS, RESAMPLES
from mindllm.metrics.calibration import probabilities
from mindllm.metrics.exact_match import exact_match_scores
from mindllm.metrics.identification import rank
from mindllm.model.modeling import MindLLM
from mindllm.utils.versions import PACKAGES, UNKNOWN, package_version

PAIRED = ("trained_on_permuted_pairs", "ridge", "nearest_neighbor")


def trial_records(
    store: Store, task: EvaluationSet, reader: Predictor, readings: SubjectPredictions
) -> list[dict[str, Any]]:
    """One record per trial: what was shown, what was said, and how likely the truth was with and without the scan.

    evidence: log p(decoded | scan) - log p(decoded | no brain) in nats. `others`: what other readers of the trial said.
    """
    rows, said = task.trial_indices[readings.subject], readings.conditions["fmri"]
    trials = store.trials(readings.subject).iloc[rows]
    shown, true = task.columns(readings.stimuli)
    given, gain, each = said.log_likelihoods, said.log_likelihood_ratios, np.arange(len(rows))
    assert given is not None
    assert gain is not None
    evidence = reader.log_likelihood_ratio(
        store, readings.subject, [np.array([row]) for row in rows], said.texts
    )
    right = exact_match_scores(said.texts, task.references)[each, shown]
    ranks = {"rank": rank(given, true), "gain_rank": rank(gain, true)}
    best, sure = given.argmax(1), probabilities(given)
    first = np.argsort(-given, axis=1, kind="stable")[:, :5]
    records = []
    for i, (row, trial) in enumerate(zip(rows, trials.to_dict("records"), strict=True)):
        record = {
            "subject": readings.subject, "trial_index": int(row), "stimulus": trial["stimulus"],
            "session": str(trial["session"]), "repetition": int(trial["repetition"]), "truth": task.candidates[true[i]],
            "accepted": list(task.references[shown[i]]), "decoded": said.texts[i], "evidence": float(evidence[i]),
            "exact_match": bool(right[i]), "log_likelihood": float(given[i, true[i]]), "gain": float(gain[i, true[i]]),
        }  # fmt: skip
        record |= {name: float(value[i]) for name, value in ranks.items()}
        record |= {
            "likeliest": [task.candidates[c] for c in first[i]],
            "likeliest_gain": float(gain[i, best[i]]),
            "likeliest_probability": float(sure[i, best[i]]),
        }
        record["others"] = {
            c: readings.conditions[c].texts[i] for c in PAIRED if c in readings.conditions
        }
        records.append(record)
    return records


def describe_run(
    model: MindLLM,
    store: Store,
    task: EvaluationSet,
    people: Sequence[SubjectPredictions],
    name: str | None,
    seed: int,
    batch_size: int,
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """How it was measured; what the model's card does not tell is 'unknown'."""
    card = model.model_card
    known = set(card["stimuli"]) if "stimuli" in card else None
    persons = {}
    for subject, rows in task.trial_indices.items():
        shown = set(store.trials(subject)["stimulus"].to_numpy()[rows].tolist())
        persons[subject] = {
            "trials": len(rows), "stimuli": len(shown), "split": task.splits[subject], "voxels": len(store.masker(subject)),
            "in_training": subject in card["subjects"] if "subjects" in card else UNKNOWN,
            "chose_checkpoint": chose_checkpoint(card, subject, task.splits[subject]),
            "stimuli_seen_in_training": len(shown & known) if known is not None else UNKNOWN,
            "normalized_with": describe_standardization(store, task, subject),
        }  # fmt: skip
    said = people[0].conditions
    ties = len(most_frequent(card["answers"])) if card.get("answers") else 0
    return {
        "model": {"name": name or card.get("name", UNKNOWN), "llm": model.language_model.name, "llm_fingerprint": model.language_model.fingerprint, "trained_on_subjects": card.get("subjects", UNKNOWN), "trained_on_store": card.get("store", UNKNOWN), "training_seed": card.get("seed", UNKNOWN), "training_versions": card.get("versions", UNKNOWN), "encoder": model.encoder.config.model_dump()},
        "data": {"store": store.meta.get("name", UNKNOWN), "source": store.meta.get("source", UNKNOWN), "license": store.meta.get("license", UNKNOWN), "prepared_with": store.meta.get("version", UNKNOWN), "split": describe_split(store.split)},
        "subjects": persons,
        "stimuli": len(task.stimuli),
        "stimuli_seen_in_training": len(known & set(task.stimuli)) if known is not None else UNKNOWN,
        "question": task.question, "question_origin": task.question_origin,
        "candidates": list(task.candidates),
        "null_tokens_text": said["null_tokens"].texts[0], "question_only_text": said["question_only"].texts[0],
        "zero_text": said["zero"].texts[0], "noise_text": said["noise"].texts[0],
        "constant_text": said["most_frequent"].texts[0] if "most_frequent" in said else UNKNOWN, "constant_ties": ties,
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


def describe_standardization(store: Store, task: EvaluationSet, subject: str) -> str:
    """What a subject's z-scores were measured on, saying so where the evaluated trials are among them."""
    origin = store.standardized_with(subject)
    among = (
        store.trials(subject)["split"].to_numpy()[task.trial_indices[subject]] == "train"
    ).any()
    return (
        f"{origin} of this person, the evaluated ones among them, without labels"
        if among and origin == "training trials"
        else origin
    )
