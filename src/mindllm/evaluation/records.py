"""What is kept of an evaluation: one record per trial, and how it was measured."""

import platform
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mindllm.data.splits import describe_split
from mindllm.data.store import Store
from mindllm.evaluation.baselines import most_frequent
from mindllm.evaluation.evaluation_set import EvaluationSet
from mindllm.evaluation.predict import N_ORACLE_CLUSTERS, Predictions, PredictOptions
from mindllm.evaluation.results import (
    ModelInfo,
    RunInfo,
    StoreInfo,
    SubjectInfo,
    SubjectPredictions,
    TrialRecord,
)
from mindllm.evaluation.score import N_PERMUTATIONS, N_RESAMPLES
from mindllm.metrics.calibration import (
    CalibrationResult,
    EvidenceCalibration,
    calibration,
    candidate_probabilities,
    evidence_calibration,
)
from mindllm.metrics.captions import java_unavailable_reason
from mindllm.metrics.exact_match import exact_match_scores
from mindllm.metrics.identification import rank
from mindllm.model.model_card import ModelCard
from mindllm.model.modeling import MindLLM
from mindllm.utils.versions import PACKAGES, package_version

# Conditions that predict a text for each trial.
PAIRED_CONDITIONS = ("trained_on_permuted_pairs", "ridge", "nearest_neighbor")
N_TOP_CANDIDATES = 5


def trial_records(
    store: Store,
    task: EvaluationSet,
    predictions: SubjectPredictions,
    log_likelihood_ratios: np.ndarray,
) -> list[TrialRecord]:
    """Make one record per trial of a subject.

    log_likelihood_ratios are those of the generated texts (B,), in nats.
    """
    rows, fmri = task.trial_indices[predictions.subject], predictions.conditions["fmri"]
    log_likelihoods, ratios = fmri.log_likelihoods, fmri.log_likelihood_ratios
    assert log_likelihoods is not None
    assert ratios is not None
    stimulus, target = task.columns(predictions.stimuli)
    correct = exact_match_scores(fmri.texts, task.references)[np.arange(len(rows)), stimulus]
    ranks, llr_ranks = rank(log_likelihoods, target), rank(ratios, target)
    best, probabilities = log_likelihoods.argmax(1), candidate_probabilities(log_likelihoods)
    top = np.argsort(-log_likelihoods, axis=1, kind="stable")[:, :N_TOP_CANDIDATES]
    paired = {
        c: predictions.conditions[c].texts for c in PAIRED_CONDITIONS if c in predictions.conditions
    }
    evidence = evidence_columns(fmri.evidence, target, task.candidates)
    trials = store.trials(predictions.subject).iloc[rows]
    return [
        TrialRecord(
            subject=predictions.subject,
            trial_index=int(rows[i]),
            stimulus=trial["stimulus"],
            session=str(trial["session"]),
            repetition=int(trial["repetition"]),
            target=task.candidates[target[i]],
            references=tuple(task.references[stimulus[i]]),
            prediction=fmri.texts[i],
            log_likelihood_ratio=float(log_likelihood_ratios[i]),
            exact_match=bool(correct[i]),
            target_log_likelihood=float(log_likelihoods[i, target[i]]),
            target_llr=float(ratios[i, target[i]]),
            rank=float(ranks[i]),
            llr_rank=float(llr_ranks[i]),
            top_candidates=tuple(task.candidates[c] for c in top[i]),
            top_candidate_llr=float(ratios[i, best[i]]),
            top_candidate_probability=float(probabilities[i, best[i]]),
            target_evidence=evidence.of_target[i],
            evidence_rank=evidence.ranks[i],
            top_evidence_candidates=evidence.top_candidates[i],
            top_evidence_probability=evidence.top_probabilities[i],
            control_predictions={c: texts[i] for c, texts in paired.items()},
        )
        for i, trial in enumerate(trials.to_dict("records"))
    ]


@dataclass(frozen=True, slots=True)
class EvidenceColumns:
    """What records say of the evidence of B trials; see TrialRecord."""

    of_target: Sequence[float | None]
    ranks: Sequence[float | None]
    top_candidates: Sequence[tuple[str, ...]]
    top_probabilities: Sequence[float | None]


def evidence_columns(
    evidence: np.ndarray | None, target: np.ndarray, candidates: Sequence[str]
) -> EvidenceColumns:
    """Return what records say of evidence (B, C), with the number of each target (B,)."""
    n_trials = len(target)
    if evidence is None:
        nothing = [None] * n_trials
        return EvidenceColumns(nothing, nothing, [()] * n_trials, nothing)
    top = np.argsort(-evidence, axis=1, kind="stable")[:, :N_TOP_CANDIDATES]
    return EvidenceColumns(
        evidence[np.arange(n_trials), target].tolist(),
        rank(evidence, target).tolist(),
        [tuple(candidates[c] for c in row) for row in top],
        candidate_probabilities(evidence).max(1).tolist(),
    )


def calibrate_evidence(
    subjects: Sequence[SubjectPredictions], task: EvaluationSet
) -> EvidenceCalibration | None:
    """Return the calibration of the evidence for candidates; None without encoding model."""
    evidence = [p.conditions["fmri"].evidence for p in subjects]
    values = [part for part in evidence if part is not None]
    if len(values) < len(subjects):
        return None
    targets = np.concatenate([task.columns(p.stimuli)[1] for p in subjects])
    return evidence_calibration(candidate_probabilities(np.concatenate(values)), targets)


def calibrate_records(
    records: Sequence[TrialRecord], evidence: EvidenceCalibration | None
) -> CalibrationResult:
    """Return the calibration of predictions and most likely candidates over all trials."""
    return calibration(
        prediction_llr=np.array([r.log_likelihood_ratio for r in records]),
        prediction_correct=np.array([r.exact_match for r in records], float),
        candidate_llr=np.array([r.top_candidate_llr for r in records]),
        candidate_probability=np.array([r.top_candidate_probability for r in records]),
        candidate_correct=np.array([r.top_candidates[0] == r.target for r in records], float),
        evidence=evidence,
    )


def describe_run(
    model: MindLLM,
    store: Store,
    task: EvaluationSet,
    predictions: Predictions,
    options: PredictOptions,
    model_name: str | None,
) -> RunInfo:
    """Describe how predictions were made; None where the model card does not say.

    model_name: None takes that in the model card. The evaluation fills in the times.
    """
    card, conditions = model.model_card, predictions.subjects[0].conditions
    frequent = conditions.get("most_frequent")
    known = None if card.stimuli is None else set(card.stimuli)
    return RunInfo(
        model=describe_model(model, model_name),
        data=describe_store(store),
        subjects=tuple(describe_subject(model, store, task, s) for s in task.trial_indices),
        n_stimuli=len(task.stimuli),
        n_stimuli_in_training=None if known is None else len(known & set(task.stimuli)),
        question=task.question,
        question_source=task.question_source,
        candidates=tuple(task.candidates),
        controls=options.controls,
        null_tokens_text=conditions["null_tokens"].texts[0],
        question_only_text=conditions["question_only"].texts[0],
        zero_text=conditions["zero"].texts[0],
        noise_text=conditions["noise"].texts[0],
        most_frequent_text=None if frequent is None else frequent.texts[0],
        n_most_frequent=len(most_frequent(card.answers)) if card.answers else 0,
        n_oracle_clusters=N_ORACLE_CLUSTERS,
        skipped_conditions=predictions.skipped_conditions,
        text_scores_skipped=java_unavailable_reason(),
        seed=options.seed,
        n_resamples=N_RESAMPLES,
        n_permutations=N_PERMUTATIONS,
        batch_size=options.batch_size,
        generate_options={k: str(v) for k, v in options.generate_options.items()},
        versions=installed_versions(),
        started="",
        seconds=0.0,
    )


def installed_versions() -> dict[str, str]:
    """Return the versions of this package, Python and the libraries that numbers depend on."""
    versions = {"mindllm": package_version("mindllm"), "python": platform.python_version()}
    return versions | {name: package_version(name) for name in PACKAGES}


def describe_model(model: MindLLM, name: str | None) -> ModelInfo:
    """Return what the model and its card say about it."""
    card = model.model_card
    return ModelInfo(
        name=name or card.name,
        language_model=model.language_model.name,
        language_model_fingerprint=model.language_model.fingerprint,
        trained_on_subjects=None if card.subjects is None else tuple(card.subjects),
        trained_on_store=card.store,
        training_seed=card.seed,
        training_versions=card.versions,
        encoder=model.encoder.config.model_dump(mode="json"),
        language_model_dtype=str(model.language_model.model.dtype).removeprefix("torch."),
    )


def describe_store(store: Store) -> StoreInfo:
    """Return what the store says about itself."""
    return StoreInfo(
        store=store.meta.get("name"),
        source=store.meta.get("source"),
        license=store.meta.get("license"),
        prepared_with=store.meta.get("version"),
        split=describe_split(store.split),
    )


def describe_subject(
    model: MindLLM, store: Store, task: EvaluationSet, subject: str
) -> SubjectInfo:
    """Return what was evaluated of a subject, and what the model was trained on of it."""
    card, masker = model.model_card, store.masker(subject)
    rows, split = task.trial_indices[subject], task.splits[subject]
    stimuli = set(store.trials(subject)["stimulus"].to_numpy()[rows].tolist())
    return SubjectInfo(
        subject=subject,
        n_trials=len(rows),
        n_stimuli=len(stimuli),
        n_voxels=len(masker),
        split=split,
        in_training=None if card.subjects is None else subject in card.subjects,
        chose_checkpoint=chose_checkpoint(card, subject, split),
        n_stimuli_in_training=None if card.stimuli is None else len(stimuli & set(card.stimuli)),
        standardized_with=describe_standardization(store, task, subject),
        covered=model.coverage(masker).covered,
    )


def chose_checkpoint(card: ModelCard, subject: str, split: str) -> bool:
    """Return whether these trials helped to choose the model's weights.

    They did if they are a validation subject's, its test split apart.
    """
    return (
        subject in (card.validation_subjects or [])
        and split != "test"
        and (subject not in (card.subjects or []) or split == "val")
    )


def describe_standardization(store: Store, task: EvaluationSet, subject: str) -> str:
    """Return what a subject's z-scores were fitted on, and whether evaluated trials are in it."""
    fitted_on = store.standardized_with(subject)
    splits = store.trials(subject)["split"].to_numpy()[task.trial_indices[subject]]
    if (splits == "train").any() and fitted_on == "training trials":
        return f"{fitted_on} of this subject, the evaluated ones among them, without labels"
    return fitted_on
