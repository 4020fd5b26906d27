"""Confusion by category: the category of the most likely candidate against the target's."""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from mindllm.data.store import Store
from mindllm.evaluation.baselines import AnswerEmbeddings
from mindllm.evaluation.evaluation_set import EvaluationSet
from mindllm.evaluation.results import ConfusionResult, SubjectPredictions

MAX_CLUSTERS = 12
MAX_CATEGORIES = 3 * MAX_CLUSTERS
COLUMN = "category"


@dataclass(frozen=True, slots=True)
class Categories:
    """Names, the category number of each candidate (C,), and their source in words."""

    names: tuple[str, ...]
    of_candidates: np.ndarray
    source: str


def confusion(
    store: Store,
    task: EvaluationSet,
    subjects: list[SubjectPredictions],
    embeddings: AnswerEmbeddings,
    seed: int = 0,
) -> ConfusionResult | None:
    """Count trials by category of the target and of the most likely candidate.

    Parameters
    ----------
    store : Store
        Its trials tables may have a column `category`.
    task : EvaluationSet
        Candidates and targets.
    subjects : list of SubjectPredictions
        Predictions from fMRI.
    embeddings : AnswerEmbeddings
        Clustered where there is no such column.
    seed : int
        Of k-means.

    Returns
    -------
    ConfusionResult or None
        None where there are fewer than two categories.
    """
    categories = read_categories(store, task) or cluster_categories(task, embeddings, seed)
    if categories is None or len(categories.names) < 2:
        return None
    counts = np.zeros((len(categories.names), len(categories.names)), int)
    for predictions in subjects:
        log_likelihoods = predictions.conditions["fmri"].log_likelihoods
        assert log_likelihoods is not None
        _, target = task.columns(predictions.stimuli)
        of_candidates = categories.of_candidates
        np.add.at(counts, (of_candidates[target], of_candidates[log_likelihoods.argmax(1)]), 1)
    target_fraction, predicted_fraction = counts.sum(1) / counts.sum(), counts.sum(0) / counts.sum()
    return ConfusionResult(
        categories=categories.names,
        counts=tuple(tuple(row) for row in counts.tolist()),
        source=categories.source,
        accuracy=float(np.trace(counts) / counts.sum()),
        chance_level=float(target_fraction @ predicted_fraction),
    )


def read_categories(store: Store, task: EvaluationSet) -> Categories | None:
    """Return categories from the trials tables: of a candidate, the most frequent of its stimuli's.

    None where a stimulus has none, or there are more than 36.
    """
    of_stimuli: dict[str, str] = {}
    for subject in task.trial_indices:
        trials = store.trials(subject)
        if COLUMN in trials:
            of_stimuli |= dict(zip(trials["stimulus"], trials[COLUMN].astype(str), strict=True))
    if set(task.stimuli) - set(of_stimuli):
        return None
    counts = [Counter[str]() for _ in task.candidates]
    for stimulus, candidate in zip(task.stimuli, task.target_indices, strict=True):
        counts[candidate][of_stimuli[stimulus]] += 1
    chosen = [count.most_common(1)[0][0] for count in counts]
    names = sorted(set(chosen))
    if len(names) > MAX_CATEGORIES:
        return None
    numbers = np.array([names.index(name) for name in chosen])
    return Categories(tuple(names), numbers, f"the column “{COLUMN}” of the trials")


def cluster_categories(
    task: EvaluationSet, embeddings: AnswerEmbeddings, seed: int
) -> Categories | None:
    """Return clusters of the candidates as categories; None for fewer than six candidates."""
    n_clusters = min(MAX_CLUSTERS, len(task.candidates) // 3)
    if n_clusters < 2:
        return None
    clusters = embeddings.clusters(n_clusters, seed)
    central = clusters.transform(embeddings.of_candidates).argmin(0)
    return Categories(
        tuple(f"like “{task.candidates[i]}”" for i in central),
        clusters.labels_,
        f"{n_clusters} clusters of the answers' embeddings, named by their most central answer",
    )
