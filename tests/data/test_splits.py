"""Splits of a finished store: nothing leaks, clusters stay whole, subjects are left out."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mindllm.data.dataset import TrialDataset
from mindllm.data.resplit import create_split, train_test_similarity
from mindllm.data.splits import split_by_cluster, split_by_sessions, split_by_subject
from mindllm.data.store import Store
from mindllm.data.store_writer import conversations_from_captions, write_store
from mindllm.language.sentence_embeddings import embed_sentences, nearest_similarity
from mindllm.utils.errors import InputError
from tests.conftest import make_space, update_manifests

THINGS = {
    "animal": [
        "a dog runs on grass",
        "a puppy plays with a ball",
        "a cat sleeps on a sofa",
        "two cats look at a bird",
        "a horse stands in a field",
        "a cow eats grass",
    ],
    "food": [
        "a pizza with cheese",
        "a plate of pasta",
        "a bowl of fruit salad",
        "a slice of chocolate cake",
        "a sandwich with ham",
        "fries and a burger on a plate",
    ],
    "traffic": [
        "a red bus on a street",
        "cars wait at a traffic light",
        "a truck drives on a highway",
        "a train arrives at a station",
        "a bicycle leans on a wall",
        "a motorcycle parked on a road",
    ],
    "sport": [
        "a man plays tennis",
        "a woman swings a tennis racket",
        "boys play soccer",
        "a player kicks a football",
        "a baseball batter hits a ball",
        "a surfer rides a wave",
    ],
}
NAMES = [f"{kind}{n}" for kind, texts in THINGS.items() for n in range(len(texts))]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Three people, 24 stimuli twice in four sessions, the second on a level of its own."""
    rng, people = np.random.default_rng(0), []
    for n in range(3):
        space = make_space(f"sub-{n + 1:02d}", 40, seed=n)
        trials = pd.DataFrame(
            {"stimulus": NAMES * 2, "session": np.repeat(["1", "2", "10", "11"], 12)}
        )
        people.append((space, rng.normal(100, 5, (48, 40)).astype(np.float32), trials))
    texts = [text for some in THINGS.values() for text in some]
    return write_store(
        tmp_path / "store",
        people,
        conversations_from_captions(pd.DataFrame({"stimulus": NAMES, "caption": texts})),
        name="things",
    )


def splits_of(store: Store) -> pd.DataFrame:
    return pd.concat(
        [store.trials(s).assign(subject=s, row=range(len(store.trials(s)))) for s in store.subjects]
    )


def test_by_stimulus_is_kept_with_the_store(store: Store) -> None:
    made = create_split(
        store, "quarter", "stimulus", fractions={"test": 0.25, "val": 0.125}, seed=3
    )
    found = splits_of(Store(store.path, "quarter"))
    assert found.groupby("stimulus")["split"].nunique().max() == 1
    assert found.drop_duplicates("stimulus")["split"].value_counts().to_dict() == {
        "train": 15,
        "test": 6,
        "val": 3,
    }
    assert made.split["by"] == "stimulus"
    assert made.split["seed"] == 3
    assert made.splits == ["quarter"]
    assert splits_of(Store(store.path))["split"].eq("train").all(), (
        "the split of the data itself stays as it was"
    )
    assert len(TrialDataset(made, store.subjects, "test")) == 36
    again = create_split(store, "again", "stimulus", fractions={"test": 0.25, "val": 0.125}, seed=3)
    assert splits_of(again)["split"].tolist() == found["split"].tolist()


def test_statistics_see_the_training_trials_of_the_split_alone(store: Store) -> None:
    made = create_split(store, "half", "stimulus", fractions={"test": 0.25})
    betas = np.lib.format.open_memmap(store.path / "subjects" / "sub-01" / "betas.npy", mode="r+")
    betas[(made.trials("sub-01")["split"] == "test").to_numpy()] += np.linspace(
        0, 500, 40
    )  # what is tested moves
    betas.flush()
    update_manifests(store.path)
    other = create_split(Store(store.path), "moved", "stimulus", fractions={"test": 0.25})
    np.testing.assert_array_equal(other.scaler("sub-01").mean, made.scaler("sub-01").mean)
    assert other.scaler("sub-01").fitted_on == "training trials"


def test_whole_clusters_are_held_out_and_farther_away(store: Store) -> None:
    made = create_split(store, "meaning", "cluster", fractions={"test": 0.25}, clusters=4, seed=1)
    found = splits_of(made).drop_duplicates("stimulus").set_index("stimulus")["split"]
    kinds = found.groupby(found.index.str.rstrip("0123456789")).nunique()
    assert (kinds == 1).all(), "animals, food, traffic and sport are one cluster each"
    assert (found == "test").sum() == 6
    about = made.split
    assert about["similarity"] < about["similarity_of_a_random_split"] - 0.1
    assert about["similarity_before"] is None, "nothing was tested before"
    assert about["source"] == "caption"


@given(
    sizes=st.lists(st.integers(1, 6), min_size=5, max_size=12),
    share=st.floats(0.05, 0.5),
    seed=st.integers(0, 50),
)
@settings(max_examples=50, deadline=None)
def test_no_cluster_crosses_a_split(sizes: list[int], share: float, seed: int) -> None:
    clusters = {f"{c}-{n}": c for c, size in enumerate(sizes) for n in range(size)}
    trials = {"sub-01": pd.DataFrame({"stimulus": [*clusters, "unknown"], "split": "train"})}
    if not round(share * len(sizes)):
        with pytest.raises(InputError, match="leaves the split test empty"):
            split_by_cluster(trials, clusters, {"test": share}, seed)
        return
    if max(sizes) >= (1 - share) * len(clusters):
        return  # one cluster may be all that is left
    found = pd.Series(
        split_by_cluster(trials, clusters, {"test": share}, seed)["sub-01"],
        index=trials["sub-01"]["stimulus"],
    )
    assert found.pop("unknown") == "unused"
    labels = pd.Series(clusters).loc[found.index]
    assert (found.groupby(labels).nunique() == 1).all()
    assert share * len(clusters) <= (found == "test").sum() < share * len(clusters) + max(sizes)


def test_people_left_out(store: Store) -> None:
    made = create_split(
        store, "zero-shot", "subject", subjects_by_split={"test": ["sub-03"], "val": ["sub-02"]}
    )
    found = splits_of(made).groupby("subject")["split"].unique().map(list).to_dict()
    assert found == {"sub-01": ["train"], "sub-02": ["val"], "sub-03": ["test"]}
    tables = {
        "a": pd.DataFrame({"split": ["train", "test", "val"]}),
        "b": pd.DataFrame({"split": ["train", "test", "val"]}),
    }
    assert split_by_subject(tables, {"test": ["b"]})["b"].tolist() == ["unused", "test", "unused"]
    assert split_by_subject(tables, {"val": ["b"]})["b"].tolist() == ["val", "unused", "val"]
    assert split_by_subject(tables, {"val": ["b"]})["a"].tolist() == ["train", "test", "val"]
    assert split_by_subject(tables, {"test": ["b"]})["a"].tolist() == ["train", "unused", "val"], (
        "who is left out is tested"
    )


def test_few_sessions(store: Store) -> None:
    base = create_split(store, "quarter", "stimulus", fractions={"test": 0.25})
    made = create_split(base, "one-hour", "sessions", sessions=1, subjects=["sub-02"])
    found = splits_of(made)
    mine = found[found["subject"] == "sub-02"]
    assert set(mine.loc[mine["split"] == "train", "session"]) == {"1"}
    assert (mine["split"] == "test").sum() == 12, "what is tested stays"
    assert (found[found["subject"] == "sub-01"]["split"] == "train").sum() == 36
    assert made.split["from"] == "quarter"
    two = split_by_sessions({"sub-02": store.trials("sub-02")}, 3)["sub-02"]
    assert set(store.trials("sub-02")["session"][two == "train"]) == {"1", "2", "10"}, (
        "in the order of the trials"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "a/b", "by": "stimulus"}, "cannot name a split"),
        ({"name": "x", "by": "stimulus"}, "a share is needed"),
        (
            {"name": "x", "by": "subject", "subjects_by_split": {"test": ["sub-09"]}},
            "no subject sub-09; there are sub-01",
        ),
        (
            {
                "name": "x",
                "by": "subject",
                "subjects_by_split": {"test": ["sub-01"], "val": ["sub-01"]},
            },
            "each for one of them",
        ),
        (
            {
                "name": "x",
                "by": "subject",
                "subjects_by_split": {"test": ["sub-01", "sub-02", "sub-03"]},
            },
            "leave some to train on",
        ),
        ({"name": "x", "by": "sessions", "sessions": 5}, "has 4 sessions; the first 5"),
        ({"name": "x", "by": "sessions", "sessions": 4}, "the first 4 sessions changes nothing"),
        ({"name": "x", "by": "subject"}, "each for one of them; found nobody"),
        (
            {"name": "x", "by": "cluster", "fractions": {"test": 0.2}, "clusters": 99},
            "expected from 2 to 24",
        ),
        (
            {"name": "x", "by": "cluster", "fractions": {"test": 0.2}, "clusters": 2},
            "leaves the split test empty",
        ),
    ],
)
def test_what_cannot_be_split(store: Store, options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        create_split(store, **options)
    assert not list(store.path.glob("splits/*")), "nothing half-made is left"


def test_people_left_out_of_a_split_by_stimulus(store: Store) -> None:
    base = create_split(store, "quarter", "stimulus", fractions={"test": 0.25})
    found = splits_of(
        create_split(
            base, "new-person-new-stimulus", "subject", subjects_by_split={"test": ["sub-03"]}
        )
    )
    theirs = found[found["subject"] == "sub-03"]
    assert theirs["split"].value_counts().to_dict() == {"unused": 36, "test": 12}
    trained = set(found.loc[found["split"] == "train", "stimulus"])
    assert not trained & set(theirs.loc[theirs["split"] == "test", "stimulus"])
    with pytest.raises(InputError, match="a split by stimulus begins anew, not from 'quarter'"):
        create_split(base, "other", "stimulus", fractions={"test": 0.25})


def test_names_are_taken_once_and_must_be_known(store: Store) -> None:
    create_split(store, "one", "stimulus", fractions={"test": 0.25})
    with pytest.raises(InputError, match="already exists"):
        create_split(store, "one", "stimulus", fractions={"test": 0.25})
    with pytest.raises(InputError, match="no split 'other'; it holds default, one"):
        Store(store.path, "other")


def test_meaning_is_near_where_words_differ() -> None:
    vectors = embed_sentences(["a dog runs", "a puppy is running", "a plane in the sky"])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    near = nearest_similarity(vectors[:1], vectors[1:])
    assert near[0] == pytest.approx(vectors[0] @ vectors[1])
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.3
    np.testing.assert_allclose(
        embed_sentences(["a plane in the sky", "a dog runs"])[::-1], vectors[[0, 2]], atol=1e-5
    )


def test_overlap_counts_each_stimulus_once() -> None:
    vectors = np.eye(3, dtype=np.float32)[[0, 0, 1, 2]]
    trials = {"a": pd.DataFrame({"stimulus": ["w", "x", "y", "z", "y"]})}
    split = {"a": np.array(["train", "test", "test", "train", "test"])}
    assert train_test_similarity(trials, split, ["w", "x", "y", "z"], vectors) == pytest.approx(0.5)
