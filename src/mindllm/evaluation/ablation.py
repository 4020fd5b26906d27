"""Loss of identification without a parcel: its voxels are left out, as if not measured."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
from rich.progress import Progress

from mindllm.data.store import Store
from mindllm.evaluation.cache import PredictionCache, hash_texts
from mindllm.evaluation.evaluation_set import EvaluationSet
from mindllm.evaluation.predictor import Predictor
from mindllm.evaluation.results import AblationRow, ConditionPredictions, SubjectPredictions
from mindllm.metrics.calibration import Estimate
from mindllm.metrics.identification import rank_scores
from mindllm.metrics.inference import bootstrap_interval, subject_means
from mindllm.metrics.registry import METRICS
from mindllm.model.attention_maps import NO_PARCEL, attention_by_parcel
from mindllm.utils.progress import progress_bar
from mindllm.utils.seeds import subject_seed

N_PARCELS = 6
ABLATION_METRICS = ("identification_top1", "identification_2way")
MIN_VOXEL_FRACTION = 0.005
N_TRIALS = 40  # per subject, drawn at random


@dataclass(frozen=True, slots=True)
class ParcelPredictions:
    """Predictions without one parcel, by subject, of the trials that `draw_trials` draws."""

    atlas: str
    parcel: str
    voxel_fraction: float
    subjects: Mapping[str, ConditionPredictions]


def draw_trials(n_trials: int, subject: str, seed: int) -> np.ndarray:
    """Return the numbers of at most 40 of a subject's evaluated trials, drawn at random."""
    order = np.random.default_rng(subject_seed(seed, subject)).permutation(n_trials)
    return np.sort(order[:N_TRIALS])


def predict_ablations(
    predictor: Predictor,
    store: Store,
    seed: int,
    cache: PredictionCache,
    progress: Progress | None,
) -> list[ParcelPredictions]:
    """Predict trials without each of the parcels that get most attention.

    Parameters
    ----------
    predictor : Predictor
        The model and the evaluated trials.
    store : Store
        Where the trials are.
    seed : int
        Of the draw of trials.
    cache : PredictionCache
        Where predictions are saved.
    progress : Progress or None
        Where a bar is drawn.

    Returns
    -------
    list of ParcelPredictions
        Without the subjects that lack the parcel, or have nothing else.
    """
    trial_indices = predictor.evaluation_set.trial_indices
    rows = {s: r[draw_trials(len(r), s, seed)] for s, r in trial_indices.items()}
    parcels = largest_parcels(predictor, store, list(trial_indices))
    ablations = []
    n_scans = len(parcels) * sum(map(len, rows.values()))
    with progress_bar(progress, "leaving out parcels", n_scans) as advance:
        for atlas, parcel, voxel_fraction in parcels:
            subjects = {}
            for subject in trial_indices:
                inside = parcel_voxels(store, subject, atlas, parcel)
                if not inside.any() or inside.all():
                    advance(len(rows[subject]))
                    continue
                groups = [np.array([row]) for row in rows[subject]]
                predict = partial(
                    predictor.predict_trials, store, subject, groups, advance, ~inside
                )
                name = f"without_{hash_texts(atlas, parcel)}"
                subjects[subject] = cache.predictions(subject, name, predict)
            ablations.append(ParcelPredictions(atlas, parcel, voxel_fraction, subjects))
    return ablations


def score_ablations(
    ablations: Sequence[ParcelPredictions],
    task: EvaluationSet,
    subjects: Sequence[SubjectPredictions],
    seed: int,
) -> list[AblationRow]:
    """Compute how much worse the target is identified without each parcel.

    Parameters
    ----------
    ablations : sequence of ParcelPredictions
        Predictions without each parcel.
    task : EvaluationSet
        The evaluated trials.
    subjects : sequence of SubjectPredictions
        Predictions with all voxels.
    seed : int
        Of draw and bootstrap.

    Returns
    -------
    list of AblationRow
        The largest 2-way loss first. Intervals are over subjects and answers.
    """
    rows = []
    for ablation in ablations:
        losses, targets, labels = [], [], []
        for predictions in subjects:
            if predictions.subject not in ablation.subjects:
                continue
            drawn = draw_trials(len(predictions.stimuli), predictions.subject, seed)
            _, target = task.columns(predictions.stimuli[drawn])
            with_parcel = predictions.conditions["fmri"].log_likelihoods
            without = ablation.subjects[predictions.subject].log_likelihoods
            assert with_parcel is not None
            assert without is not None
            full = target_scores(with_parcel[drawn], target)
            losses.append(full - target_scores(without, target))
            targets.append(target)
            labels.append(np.full(len(drawn), predictions.subject))
        rows.append(
            ablation_row(
                ablation,
                np.concatenate(losses),
                np.concatenate(targets),
                np.concatenate(labels),
                seed,
            )
        )
    return sorted(rows, key=lambda row: -row.two_way_loss.value)


def ablation_row(
    ablation: ParcelPredictions,
    losses: np.ndarray,
    targets: np.ndarray,
    subjects: np.ndarray,
    seed: int,
) -> AblationRow:
    """Return the row of one parcel, from losses (B, 2), targets (B,) and subjects (B,)."""
    low, high = bootstrap_interval(losses, targets, subjects, seed=seed)
    mean = subject_means(losses, subjects).mean(0)
    top1, two_way = (Estimate(*map(float, (mean[i], low[i], high[i]))) for i in range(2))
    return AblationRow(
        atlas=ablation.atlas,
        parcel=ablation.parcel,
        voxel_fraction=ablation.voxel_fraction,
        n_subjects=len(ablation.subjects),
        n_trials=len(losses),
        top1_loss=top1,
        two_way_loss=two_way,
    )


def largest_parcels(
    predictor: Predictor, store: Store, subjects: list[str]
) -> list[tuple[str, str, float]]:
    """Return the parcels with the most attention, summed over subjects: atlas, parcel, fraction."""
    table = pd.concat([attention_by_parcel(predictor.model, store.masker(s)) for s in subjects])
    table = table[table["parcel"] != NO_PARCEL].groupby(["atlas", "parcel"])[
        ["attention", "voxel_fraction"]
    ].sum() / len(subjects)
    table = table[table["voxel_fraction"] > MIN_VOXEL_FRACTION]
    table = table.sort_values("attention", ascending=False).head(N_PARCELS).reset_index()
    fractions = table["voxel_fraction"].astype(float)
    return list(zip(table["atlas"], table["parcel"], fractions, strict=True))


def parcel_voxels(store: Store, subject: str, atlas: str, parcel: str) -> np.ndarray:
    """Return which of a subject's voxels belong to a parcel, (n_voxels,) of bool."""
    masker = store.masker(subject)
    if atlas not in masker.parcel_labels:
        return np.zeros(len(masker), bool)
    labels = [n for n, name in masker.parcel_names[atlas].items() if name == parcel]
    return np.isin(masker.parcel_labels[atlas], labels)


def target_scores(log_likelihoods: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return top-1 and 2-way scores of the target (B, 2) from log-likelihoods (B, C)."""
    rows, n_candidates = np.arange(len(targets)), log_likelihoods.shape[1]
    weights = [METRICS[name].weights(n_candidates) for name in ABLATION_METRICS]
    return np.stack([rank_scores(log_likelihoods, w)[rows, targets] for w in weights], 1)
