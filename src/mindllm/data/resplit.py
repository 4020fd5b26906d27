"""New splits of a finished store: made by one rule, kept beside the data, chosen by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from rich.progress import Progress

from mindllm.data.conversations import assistant_text
from mindllm.data.splits import (
    DEFAULT_SPLIT,
    SplitBySubject,
    Tables,
    check_splits,
    split_by_cluster,
    split_by_sessions,
    split_by_stimulus,
    split_by_subject,
)
from mindllm.data.store import Store
from mindllm.fmri.scaling import SessionScaler
from mindllm.language.sentence_embeddings import (
    cluster_embeddings,
    embed_sentences,
    nearest_similarity,
)
from mindllm.utils.errors import InputError
from mindllm.utils.files import check_name, check_not_exists, write_json
from mindllm.utils.folders import atomic_directory
from mindllm.utils.manifest import Manifest
from mindllm.utils.progress import progress_bar

By = Literal["stimulus", "subject", "cluster", "sessions"]
# About as many as the stimuli of NSD fall into (Shirakawa et al. 2024, arXiv 2405.10078).
CLUSTERS = 40


@dataclass(frozen=True)
class SplitOptions:
    """Options of all rules; each takes its own.

    Parameters
    ----------
    fractions : mapping from str to float
        Of the stimuli, for val and test ("stimulus", "cluster").
    subjects_by_split : mapping from str to sequence of str
        Subjects left out for val and test ("subject").
    sessions : int
        How many train ("sessions").
    subjects : sequence of str, optional
        Whose sessions ("sessions"); all by default.
    clusters : int
        How many ("cluster").
    seed : int
        Of the random draws.
    progress : Progress, optional
        Where bars are drawn.
    """

    fractions: Mapping[str, float] = field(default_factory=dict)
    subjects_by_split: Mapping[str, Sequence[str]] = field(default_factory=dict)
    sessions: int = 1
    subjects: Sequence[str] | None = None
    clusters: int = CLUSTERS
    seed: int = 0
    progress: Progress | None = None


@dataclass(frozen=True)
class AssignedSplit:
    """What a rule gives: the split of each subject's trials, and what is noted about it."""

    by_subject: SplitBySubject
    notes: Mapping[str, Any]


def create_split(store: Store, name: str, by: By, **options: Any) -> Store:
    """Create the split `name` of a store, and open the store with it.

    Parameters
    ----------
    store : Store
        Splits by subject and sessions start from the split that it was opened with.
    name : str
    by : {"stimulus", "cluster", "subject", "sessions"}
        stimulus: fractions of the stimuli, drawn at random.
        cluster: the same with whole clusters of stimuli of like meaning: k-means on the sentence
        embeddings of their texts.
        subject: subjects are left out of training.
        sessions: only the first sessions of some subjects train.
    **options
        Fields of `SplitOptions`.

    Returns
    -------
    Store
        Opened with the new split.

    Raises
    ------
    InputError
        If the name is taken, a stimulus is in two splits (unless subjects are what is split), or
        no training trial is left.
    """
    settings = SplitOptions(**options)
    folder = new_split_path(store, name)
    assigned = SPLITTERS[by](store, settings)
    trials = {subject: store.trials(subject) for subject in store.subjects}
    tables = {s: trials[s].assign(split=splits) for s, splits in assigned.by_subject.items()}
    if by != "subject":
        check_splits(tables)
    counts = pd.concat(tables.values())["split"].value_counts().to_dict()
    if not counts.get("train"):
        raise InputError(
            f"this split leaves no trial to train on; found {counts}. "
            "Take smaller shares or fewer subjects."
        )
    notes = {"name": name, "by": by, "from": store.split["name"], **assigned.notes}
    write_split(folder, store, tables, notes | {"trials": counts}, settings.progress)
    return Store(store.path, name)


def new_split_path(store: Store, name: str) -> Path:
    """Folder of a split that does not exist yet."""
    if name == DEFAULT_SPLIT:
        raise InputError(
            f"{name!r} is the split that the store was prepared with; choose another name."
        )
    folder = store.path / "splits" / check_name(name, "split")
    check_not_exists(folder)
    return folder


def write_split(
    folder: Path,
    store: Store,
    tables: Tables,
    notes: Mapping[str, Any],
    progress: Progress | None,
) -> None:
    """Write the splits of all trials, and scalers fitted on their training trials."""
    with (
        atomic_directory(folder) as temporary,
        progress_bar(progress, "measuring the training trials", len(tables)) as advance,
    ):
        rows = [
            table[["split"]].assign(subject=subject, trial_index=np.arange(len(table)))
            for subject, table in tables.items()
        ]
        pd.concat(rows).to_parquet(temporary / "trials.parquet", index=False)
        for subject, table in tables.items():
            if not store.meta.get("standardized"):
                scaler = SessionScaler.fit(store.betas(subject), table)
                scaler.save(temporary / f"{subject}.npz")
            advance(1)
        write_json(temporary / "split.json", notes)
        Manifest.create(temporary)


def _trials(store: Store) -> Tables:
    return {subject: store.trials(subject) for subject in store.subjects}


def _fractions(store: Store, options: SplitOptions, by: str) -> dict[str, float]:
    """The fractions asked for; splits of stimuli start from the default split."""
    if store.split_dir:
        raise InputError(
            f"a split by {by} begins anew, not from {store.split['name']!r}. "
            "Make it first, then one by subject or sessions from it."
        )
    fractions = {split: f for split, f in options.fractions.items() if f}
    if not fractions:
        raise InputError("a share is needed of the stimuli to test with, e.g. --test 0.2.")
    return fractions


def assign_by_stimulus(store: Store, options: SplitOptions) -> AssignedSplit:
    """Fractions of the stimuli."""
    fractions = _fractions(store, options, "stimulus")
    splits = split_by_stimulus(_trials(store), fractions, options.seed)
    return AssignedSplit(splits, {"fractions": fractions, "seed": options.seed})


def assign_by_cluster(store: Store, options: SplitOptions) -> AssignedSplit:
    """Whole clusters of stimuli; notes how close test stimuli come to training stimuli."""
    fractions = _fractions(store, options, "cluster")
    trials = _trials(store)
    source, stimuli, embeddings = embed_stimuli(store, trials, options.progress)
    labels = cluster_embeddings(embeddings, options.clusters, options.seed)
    clusters = dict(zip(stimuli, labels.tolist(), strict=True))
    splits = split_by_cluster(trials, clusters, fractions, options.seed)
    default = {subject: table["split"].to_numpy(str) for subject, table in trials.items()}
    compared = {
        "similarity": splits,
        "similarity_of_a_random_split": split_by_stimulus(trials, fractions, options.seed),
        "similarity_before": default,
    }
    notes = {
        key: train_test_similarity(trials, other, stimuli, embeddings)
        for key, other in compared.items()
    }
    settings = {"fractions": fractions, "seed": options.seed}
    return AssignedSplit(
        splits, {**settings, "clusters": options.clusters, "source": source, **notes}
    )


def assign_by_subject(store: Store, options: SplitOptions) -> AssignedSplit:
    """Subjects left out of training."""
    splits = split_by_subject(_trials(store), options.subjects_by_split)
    left_out = {split: list(names) for split, names in options.subjects_by_split.items()}
    return AssignedSplit(splits, {"subjects_by_split": left_out})


def assign_by_sessions(store: Store, options: SplitOptions) -> AssignedSplit:
    """The first sessions of some subjects."""
    subjects = store.select_subjects(options.subjects)
    splits = split_by_sessions(_trials(store), options.sessions, subjects)
    return AssignedSplit(splits, {"sessions": options.sessions, "subjects": subjects})


SPLITTERS: dict[str, Callable[[Store, SplitOptions], AssignedSplit]] = {
    "stimulus": assign_by_stimulus,
    "cluster": assign_by_cluster,
    "subject": assign_by_subject,
    "sessions": assign_by_sessions,
}


def embed_stimuli(
    store: Store, trials: Tables, progress: Progress | None
) -> tuple[str, list[str], np.ndarray]:
    """Sentence embeddings of stimuli, from the texts of the first source about them.

    Parameters
    ----------
    store : Store
    trials : mapping from str to DataFrame
    progress : Progress, optional

    Returns
    -------
    source : str
    stimuli : list of str
        Those that have text.
    embeddings : ndarray of shape (n_stimuli, dim)
        Unit vectors: the mean over a stimulus' texts.

    Raises
    ------
    InputError
        If no stimulus has text.
    """
    shown = set(pd.concat(trials.values())["stimulus"])
    table = store.conversations[store.conversations["stimulus"].isin(shown)]
    if table.empty:
        raise InputError(
            f"{store.path} has no text about its stimuli, so it is unknown which mean similar "
            "things. Add captions first: mindllm prepare instructions."
        )
    source = str(table["source"].iloc[0])
    table = table[table["source"] == source]
    texts = [assistant_text(turns) for turns in table["turns"]]
    distinct = sorted(set(texts))
    with progress_bar(progress, f"embedding {source}", len(distinct)) as advance:
        vectors = embed_sentences(distinct, advance=advance)
    row = {text: i for i, text in enumerate(distinct)}
    stimuli = sorted(set(table["stimulus"]))
    number = pd.Index(stimuli).get_indexer(table["stimulus"])
    sums = np.zeros((len(stimuli), vectors.shape[1]), np.float32)
    np.add.at(sums, number, vectors[[row[text] for text in texts]])
    return source, stimuli, sums / np.linalg.norm(sums, axis=1, keepdims=True)


def train_test_similarity(
    trials: Tables, splits: SplitBySubject, stimuli: Sequence[str], embeddings: np.ndarray
) -> float | None:
    """Median over test stimuli of the cosine to the nearest training stimulus; None without."""
    tables = [t[["stimulus"]].assign(split=splits[s]) for s, t in trials.items()]
    pairs = pd.concat(tables).drop_duplicates()
    row = {stimulus: i for i, stimulus in enumerate(stimuli)}

    def rows(split: str) -> list[int]:
        of_split = pairs.loc[pairs["split"] == split, "stimulus"].unique()
        return [row[stimulus] for stimulus in of_split if stimulus in row]

    test, train = rows("test"), rows("train")
    if not test or not train:
        return None
    return float(np.median(nearest_similarity(embeddings[test], embeddings[train])))
