"""What the reading loses without a region: its voxels are left out, as if they had not been measured."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from rich.progress import Progress

from mindllm.data.store import Store
from mindllm.evaluation.evaluation_set import EvaluationSet
from mindllm.evaluation.predictor import Predictor
from mindllm.evaluation.results import ConditionPredictions, SubjectPredictions
from mindllm.metrics.identification import rank_scores
from mindllm.metrics.inference import bootstrap_interval, subject_means
from mindllm.metrics.registry import METRICS
from mindllm.model.attention_maps import NOWHERE, attention_by_parcel
from mindllm.utils.progress import progress_bar
from mindllm.utils.seeds import subject_seed

REGIONS = 6
SCORES = ("top1", "2way")  # of identification
MIN_SHARE = 0.005  # of the voxels
TRIALS = 40  # per person, drawn at random


def ablation(
    reader: Predictor,
    store: Store,
    task: EvaluationSet,
    people: Sequence[SubjectPredictions],
    seed: int,
    progress: Progress | None,
) -> list[dict[str, Any]]:
    """The regions that the model looks at most, and how much worse the truth is identified without each.

    Intervals over people and answers. Regions overlap where parcellations do. Sorted by the loss, the largest first.
    """
    chosen, out = largest_parcels(reader, store, list(task.trial_indices)), []
    drawn = {
        r.subject: np.sort(
            np.random.default_rng(subject_seed(seed, r.subject)).permutation(len(r.stimuli))[
                :TRIALS
            ]
        )
        for r in people
    }
    reads = sum(map(len, drawn.values()))
    with progress_bar(progress, "leaving out regions", len(chosen) * reads) as advance:
        for parcellation, region, share in chosen:
            apart, shown, whose = [], [], []
            for readings in people:
                some = drawn[readings.subject]
                inside = members(store, readings.subject, parcellation, region)
                if not inside.any() or inside.all():
                    advance(len(some))
                    continue
                rows = [np.array([row]) for row in task.trial_indices[readings.subject][some]]
                left = reader.predict_trials(store, readings.subject, rows, advance, voxels=~inside)
                stimuli = readings.stimuli[some]
                apart.append(
                    credit(readings.conditions["fmri"], some, task, stimuli)
                    - credit(left, slice(None), task, stimuli)
                )
                shown.append(task.columns(stimuli)[1])
                whose.append(np.full(len(some), readings.subject))
            lost, persons = np.concatenate(apart), np.concatenate(whose)
            low, high = bootstrap_interval(lost, np.concatenate(shown), persons, seed=seed)
            mean = subject_means(lost, persons).mean(0)
            out.append({"parcellation": parcellation, "region": region, "voxel_share": share, "people": len(apart), "trials": len(lost)} | {
                f"{name}_{part}": float(value[i]) for i, name in enumerate(SCORES) for part, value in (("loss", mean), ("low", low), ("high", high))
            })  # fmt: skip
    return sorted(out, key=lambda row: -row["2way_loss"])


def largest_parcels(
    reader: Predictor, store: Store, subjects: list[str]
) -> list[tuple[str, str, float]]:
    """The regions with the most attention, summed over people: parcellation, region, share of the voxels."""
    table = pd.concat([attention_by_parcel(reader.model, store.masker(s)) for s in subjects])
    table = table[table["region"] != NOWHERE].groupby(["parcellation", "region"])[
        ["attention", "voxel_share"]
    ].sum() / len(subjects)
    table = (
        table[table["voxel_share"] > MIN_SHARE]
        .sort_values("attention", ascending=False)
        .head(REGIONS)
    )
    table = table.reset_index()
    return list(
        zip(table["parcellation"], table["region"], table["voxel_share"].astype(float), strict=True)
    )


def members(store: Store, subject: str, parcellation: str, region: str) -> np.ndarray:
    """(V,): which of a person's voxels belong to a region."""
    space = store.masker(subject)
    if parcellation not in space.parcel_labels:
        return np.zeros(len(space), bool)
    numbers = [n for n, name in space.parcel_names[parcellation].items() if name == region]
    return np.isin(space.parcel_labels[parcellation], numbers)


def credit(
    said: ConditionPredictions, rows: np.ndarray | slice, task: EvaluationSet, stimuli: np.ndarray
) -> np.ndarray:
    """(B, len(SCORES)): the credit of the truth in some rows of what was said."""
    assert said.log_likelihoods is not None
    _, true = task.columns(stimuli)
    weights = [METRICS[f"identification_{name}"].weights(len(task.candidates)) for name in SCORES]
    return np.stack(
        [rank_scores(said.log_likelihoods[rows], w)[np.arange(len(true)), true] for w in weights], 1
    )
