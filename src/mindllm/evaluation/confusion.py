"""Confusion by category: into which kinds of answers a scan is read, right or wrong."""

from collections import Counter
from typing import Any

import numpy as np

from mindllm.data.store import Store
from mindllm.evaluation.baselines import AnswerEmbeddings
from mindllm.evaluation.evaluation_set import EvaluationSet
from mindllm.evaluation.results import SubjectPredictions

MOST = 12
COLUMN = "category"


def confusion(
    store: Store,
    task: EvaluationSet,
    people: list[SubjectPredictions],
    meanings: AnswerEmbeddings,
    seed: int = 0,
) -> dict[str, Any] | None:
    """Counts of trials (G, G), true category by that of the likeliest candidate, and where the categories come from.

    Categories are the column `category` of the trials, where the store has it, else clusters of the answers' embeddings,
    named by their most central answer. None where there are fewer than two.
    """
    names, of_candidate, origin = told(store, task) or clustered(task, meanings, seed)
    if len(names) < 2:
        return None
    table = np.zeros((len(names), len(names)), int)
    for readings in people:
        likelihood = readings.conditions["fmri"].log_likelihoods
        assert likelihood is not None
        _, true = task.columns(readings.stimuli)
        np.add.at(table, (of_candidate[true], of_candidate[likelihood.argmax(1)]), 1)
    share = table.sum(1) / table.sum()
    read = table.sum(0) / table.sum()
    return {
        "categories": names,
        "counts": table.tolist(),
        "origin": origin,
        "right": float(np.trace(table) / table.sum()),
        "chance_level": float(share @ read),
    }


def told(store: Store, task: EvaluationSet) -> tuple[list[str], np.ndarray, str] | None:
    """Categories from the trials tables: names, and that of each candidate (C,), the most frequent of its stimuli's."""
    found: dict[str, str] = {}
    for subject in task.trial_indices:
        trials = store.trials(subject)
        if COLUMN in trials:
            found |= dict(zip(trials["stimulus"], trials[COLUMN].astype(str), strict=True))
    if set(task.stimuli) - set(found):
        return None
    counts = [Counter[str]() for _ in task.candidates]
    for stimulus, candidate in zip(task.stimuli, task.target_indices, strict=True):
        counts[candidate][found[stimulus]] += 1
    chosen = [count.most_common(1)[0][0] for count in counts]
    names = sorted(set(chosen))
    if len(names) > 3 * MOST:
        return None
    return (
        names,
        np.array([names.index(name) for name in chosen]),
        f"the column “{COLUMN}” of the trials",
    )


def clustered(
    task: EvaluationSet, meanings: AnswerEmbeddings, seed: int
) -> tuple[list[str], np.ndarray, str]:
    """Clusters of the candidates: names, and that of each candidate (C,)."""
    k = min(MOST, len(task.candidates) // 3)
    if k < 2:
        return [], np.zeros(len(task.candidates), int), ""
    found = meanings.clusters(k, seed)
    central = [task.candidates[i] for i in found.transform(meanings.of_candidates).argmin(0)]
    return (
        [f"like “{text}”" for text in central],
        found.labels_,
        f"{k} clusters of the answers' embeddings, named by their most central answer",
    )
