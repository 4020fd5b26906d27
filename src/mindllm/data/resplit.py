"""New splits of a finished store: made by one rule, kept beside the data, chosen by name."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from rich.progress import Progress

from mindllm.data.splits import (
    DEFAULT_SPLIT,
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
from mindllm.utils.files import atomic_directory, check_name, check_not_exists, write_json
from mindllm.utils.progress import progress_bar

By = Literal["stimulus", "subject", "cluster", "sessions"]
CLUSTERS = (
    40  # about as many as the stimuli of NSD fall into (Shirakawa et al. 2024, arXiv 2405.10078)
)


def create_split(
    store: Store,
    name: str,
    by: By,
    *,
    fractions: Mapping[str, float] | None = None,
    subjects_by_split: Mapping[str, Sequence[str]] | None = None,
    sessions: int = 1,
    subjects: Sequence[str] | None = None,
    clusters: int = CLUSTERS,
    seed: int = 0,
    progress: Progress | None = None,
) -> Store:
    """Make the split `name` of a store, and open the store with it.

    stimulus  shares of the stimuli (`fractions`, of val and test), drawn at random
    cluster   the same with whole clusters of stimuli that mean similar things: k-means on embeddings of their captions
    subject   the `people` named for test and val are left out of training
    sessions  only the first `sessions` of some people (`subjects`; None: all) train; what they test stays as it was

    The last two start from the split that the store was opened with, the first two anew. Raises InputError for a stimulus in
    two splits, unless people are what is split, an empty split, or a name that is taken.
    """
    if name == DEFAULT_SPLIT:
        raise InputError(
            f"{name!r} is the split that the store was prepared with; choose another name."
        )
    folder = store.path / "splits" / check_name(name, "split")
    check_not_exists(folder)
    trials = {subject: store.trials(subject) for subject in store.subjects}
    about: dict[str, Any] = {"name": name, "by": by, "from": store.split["name"]}
    if by == "sessions":
        found = split_by_sessions(trials, sessions, store.select_subjects(subjects))
        about |= {"sessions": sessions, "subjects": store.select_subjects(subjects)}
    elif by == "subject":
        found = split_by_subject(trials, subjects_by_split or {})
        about |= {
            "people": {split: list(names) for split, names in (subjects_by_split or {}).items()}
        }
    else:
        if store.split_dir:
            raise InputError(
                f"a split by {by} begins anew, not from {store.split['name']!r}. Make it first, then one by subject or sessions from it."
            )
        shares = {split: share for split, share in (fractions or {}).items() if share}
        if not shares:
            raise InputError("a share is needed of the stimuli to test with, e.g. --test 0.2.")
        about |= {"fractions": shares, "seed": seed}
        if by == "stimulus":
            found = split_by_stimulus(trials, shares, seed)
        else:
            source, stimuli, vectors = embed_stimuli(store, trials, progress)
            labels = cluster_embeddings(vectors, clusters, seed)
            found = split_by_cluster(
                trials, dict(zip(stimuli, labels.tolist(), strict=True)), shares, seed
            )
            random = split_by_stimulus(trials, shares, seed)
            about |= {
                "clusters": clusters, "source": source,
                # How close a test stimulus comes to what was trained on: median cosine to the nearest training stimulus.
                "similarity": train_test_similarity(trials, found, stimuli, vectors),
                "similarity_of_a_random_split": train_test_similarity(trials, random, stimuli, vectors),
                "similarity_before": train_test_similarity(trials, {s: t["split"].to_numpy(str) for s, t in trials.items()}, stimuli, vectors),
            }  # fmt: skip
    tables = {subject: trials[subject].assign(split=split) for subject, split in found.items()}
    if by != "subject":
        check_splits(tables)
    counts = pd.concat(tables.values())["split"].value_counts().to_dict()
    if not counts.get("train"):
        raise InputError(
            f"this split leaves no trial to train on; found {counts}. Take smaller shares or fewer people."
        )
    with (
        atomic_directory(folder) as temporary,
        progress_bar(progress, "measuring the training trials", len(tables)) as advance,
    ):
        rows = [
            t[["split"]].assign(subject=s, trial_index=np.arange(len(t))) for s, t in tables.items()
        ]
        pd.concat(rows).to_parquet(temporary / "trials.parquet", index=False)
        for subject, table in tables.items():
            if not store.meta.get("standardized"):
                SessionScaler.fit(store.betas(subject), table).save(temporary / f"{subject}.npz")
            advance(1)
        write_json(temporary / "split.json", about | {"trials": counts})
    return Store(store.path, name)


def embed_stimuli(
    store: Store, trials: Tables, progress: Progress | None
) -> tuple[str, list[str], np.ndarray]:
    """The first source with text about stimuli, the stimuli it tells of, and per stimulus the mean embedding (n, width)."""
    shown = set(pd.concat(trials.values())["stimulus"])
    table = store.conversations[store.conversations["stimulus"].isin(shown)]
    if table.empty:
        raise InputError(
            f"{store.path} has no text about its stimuli, so it is unknown which mean similar things. Add captions first: mindllm prepare instructions."
        )
    source = str(table["source"].iloc[0])
    table = table[table["source"] == source]
    said = [
        " ".join(turn["content"] for turn in turns if turn["role"] == "assistant")
        for turns in table["turns"]
    ]
    texts = sorted(set(said))
    with progress_bar(progress, f"embedding {source}", len(texts)) as advance:
        vectors = embed_sentences(texts, advance=advance)
    place = {text: i for i, text in enumerate(texts)}
    stimuli = sorted(set(table["stimulus"]))
    number = pd.Index(stimuli).get_indexer(table["stimulus"])
    sums = np.zeros((len(stimuli), vectors.shape[1]), np.float32)
    np.add.at(sums, number, vectors[[place[text] for text in said]])
    return source, stimuli, sums / np.linalg.norm(sums, axis=1, keepdims=True)


def train_test_similarity(
    trials: Tables, splits: Mapping[str, np.ndarray], stimuli: Sequence[str], vectors: np.ndarray
) -> float | None:
    """Median over the test stimuli of the cosine to the nearest training stimulus; None without either."""
    rows = pd.concat(
        [t[["stimulus"]].assign(split=splits[s]) for s, t in trials.items()]
    ).drop_duplicates()
    place = {name: i for i, name in enumerate(stimuli)}

    def known(split: str) -> list[int]:
        return [
            place[name]
            for name in rows.loc[rows["split"] == split, "stimulus"].unique()
            if name in place
        ]

    test, train = known("test"), known("train")
    if not test or not train:
        return None
    return float(np.median(nearest_similarity(vectors[test], vectors[train])))
