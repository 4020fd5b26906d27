"""The noise ceiling, from repeats: how much of a voxel's variance depends on the stimulus, and how well a person's own other
repeats name it.
"""

from typing import Any

import numpy as np

from mindllm.data.store import Store
from mindllm.evaluation.baselines import standard
from mindllm.evaluation.evaluation_set import EvaluationSet
from mindllm.metrics.identification import rank_scores, top_k_weights
from mindllm.metrics.inference import bootstrap_interval

RELIABLE = 0.1  # share of explainable variance


def noise_ceiling(store: Store, task: EvaluationSet, subject: str) -> dict[str, Any] | None:
    """One person's noise ceiling over the evaluated trials; None where fewer than two stimuli were shown more than once.

    Explainable variance per voxel: 1 - noise / total, with noise the mean variance within stimuli (Allen et al. 2022, NSD,
    for single trials).  own_repeats_top1: the stimulus whose other trials' mean pattern correlates most with the trial is
    named; the share of trials in which its answer is right. All voxels count alike, so a good decoder may do better.
    """
    rows = task.trial_indices[subject]
    shown, true = task.columns(store.trials(subject)["stimulus"].to_numpy()[rows])
    counts = np.bincount(shown, minlength=len(task.stimuli))
    if (counts > 1).sum() < 2:
        return None
    keep = counts[shown] > 1
    rows, shown, true = rows[keep], shown[keep], true[keep]
    values = store.betas(subject, rows, standardize=True)
    sums = np.zeros((len(task.stimuli), values.shape[1]), np.float64)
    np.add.at(sums, shown, values)
    counts = np.bincount(shown, minlength=len(task.stimuli))
    means = sums / np.maximum(counts, 1)[:, None]
    noise = ((values - means[shown]) ** 2).sum(0) / (len(rows) - (counts > 0).sum())
    total = values.var(0, ddof=1)
    explainable = np.clip(
        1 - np.divide(noise, total, out=np.ones_like(noise), where=total > 0), 0, 1
    )
    stimuli = np.flatnonzero(counts)
    patterns, hits = standard(means[stimuli]), []
    for value, stimulus, answer in zip(values, shown, true, strict=True):
        others = patterns.copy()
        place = int(np.searchsorted(stimuli, stimulus))
        others[place] = standard((sums[stimulus] - value)[None])[0]
        near = standard(value[None].astype(float)) @ others.T
        credit = rank_scores(near, top_k_weights(len(stimuli), 1))[0]
        hits.append(credit[task.target_indices[stimuli] == answer].sum())
    low, high = bootstrap_interval(np.array(hits), true)
    return {
        "repeats": float(counts[stimuli].mean()),
        "explainable_median": float(np.median(explainable)),
        "reliable_voxels": float((explainable > RELIABLE).mean()),
        "own_repeats_top1": float(np.mean(hits)), "ci_low": float(low), "ci_high": float(high), "stimuli": len(stimuli),
    }  # fmt: skip
