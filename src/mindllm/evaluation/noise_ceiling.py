"""Noise ceiling from repetitions: explainable variance, and identification by own repetitions."""

import numpy as np

from mindllm.data.store import Store
from mindllm.evaluation.baselines import unit_rows
from mindllm.evaluation.evaluation_set import EvaluationSet
from mindllm.evaluation.results import NoiseCeiling
from mindllm.metrics.identification import rank_scores, top_k_weights
from mindllm.metrics.inference import bootstrap_interval

RELIABLE_VARIANCE = 0.1  # fraction of explainable variance of a reliable voxel


def noise_ceiling(store: Store, task: EvaluationSet, subject: str) -> NoiseCeiling | None:
    """Estimate one subject's noise ceiling over the evaluated trials.

    Parameters
    ----------
    store : Store
        Where the betas are.
    task : EvaluationSet
        Which trials.
    subject : str
        Whose.

    Returns
    -------
    NoiseCeiling or None
        None where fewer than two stimuli were repeated. leave_one_repetition_out_top1 is the
        fraction of trials whose answer is that of the stimulus whose other trials' mean pattern
        correlates most with the trial. All voxels count alike, so a good decoder may do better.

    References
    ----------
    Explainable variance 1 - noise / total, with noise the mean variance within stimuli, for single
    trials: Allen et al. 2022, Nature Neuroscience 25.
    """
    rows = task.trial_indices[subject]
    stimulus, target = task.columns(store.trials(subject)["stimulus"].to_numpy()[rows])
    counts = np.bincount(stimulus, minlength=len(task.stimuli))
    if (counts > 1).sum() < 2:
        return None
    repeated = counts[stimulus] > 1
    rows, stimulus, target = rows[repeated], stimulus[repeated], target[repeated]
    betas = store.betas(subject, rows, standardize=True)
    counts = np.bincount(stimulus, minlength=len(task.stimuli))
    sums = np.zeros((len(task.stimuli), betas.shape[1]), np.float64)
    np.add.at(sums, stimulus, betas)
    means = sums / np.maximum(counts, 1)[:, None]
    explainable = explainable_variance(betas, means[stimulus], int((counts > 0).sum()))
    scores = leave_one_out_scores(betas, stimulus, sums, means, task.target_indices)
    low, high = bootstrap_interval(scores, target)
    return NoiseCeiling(
        subject=subject,
        n_repetitions=float(counts[counts > 0].mean()),
        median_explainable_variance=float(np.median(explainable)),
        reliable_voxel_fraction=float((explainable > RELIABLE_VARIANCE).mean()),
        leave_one_repetition_out_top1=float(np.mean(scores)),
        ci_low=float(low),
        ci_high=float(high),
        n_stimuli=int((counts > 0).sum()),
    )


def explainable_variance(betas: np.ndarray, means: np.ndarray, n_stimuli: int) -> np.ndarray:
    """Return the fraction of variance that depends on the stimulus (n_voxels,).

    betas and means are (B, n_voxels): of each trial, and the mean of its stimulus.
    """
    noise = ((betas - means) ** 2).sum(0) / (len(betas) - n_stimuli)
    total = betas.var(0, ddof=1)
    noise_fraction = np.divide(noise, total, out=np.ones_like(noise), where=total > 0)
    return np.clip(1 - noise_fraction, 0, 1)


def leave_one_out_scores(
    betas: np.ndarray,
    stimulus: np.ndarray,
    sums: np.ndarray,
    means: np.ndarray,
    target_indices: np.ndarray,
) -> np.ndarray:
    """Return top-1 scores of B trials by the mean patterns of the other trials, (B,).

    betas are (B, n_voxels), stimulus (B,) its number, sums and means (S, n_voxels) over the trials
    of each stimulus, target_indices (S,) its answer.
    """
    stimuli = np.unique(stimulus)
    patterns = unit_rows(means[stimuli])
    weights = top_k_weights(len(stimuli), 1)
    scores = []
    for trial, number in zip(betas, stimulus, strict=True):
        others = patterns.copy()
        others[np.searchsorted(stimuli, number)] = unit_rows((sums[number] - trial)[None])[0]
        similarity = unit_rows(trial[None].astype(float)) @ others.T
        earned = rank_scores(similarity, weights)[0]
        scores.append(earned[target_indices[stimuli] == target_indices[number]].sum())
    return np.array(scores)
