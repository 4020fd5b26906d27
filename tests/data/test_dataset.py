"""What a training step is told: first a source, then a conversation; of single trials their own."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from mindllm.data.conversations import ConversationDataset
from mindllm.data.dataset import TrialDataset
from mindllm.data.sampler import SubjectBatchSampler, TrialBatch, iter_eval_batches
from mindllm.data.store import Store
from mindllm.data.store_writer import write_store
from mindllm.evaluation.question_answering import collect_questions
from mindllm.language.conversation import build_conversation
from mindllm.utils.errors import InputError
from tests.conftest import make_space

SPACE = make_space(voxels=20)


def rows(
    source: str, question: str, answers: list[str], **about: object
) -> list[dict[str, object]]:
    return [
        {"source": source, "turns": build_conversation(question, a), "answers": answers, **about}
        for a in answers
    ]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Two stimuli four times: a caption, nine questions, and what preceded every second trial."""
    trials = pd.DataFrame({"stimulus": ["a", "b"] * 4})
    talk = [
        *rows("caption", "What?", ["a dog"], stimulus="a"),
        *rows("caption", "What?", ["a cat"], stimulus="b"),
        *[
            row
            for n in range(9)
            for row in rows("vqa", f"Question {n}?", [f"answer {n}"], stimulus="a")
        ],
        *[
            row
            for n in (1, 3, 5, 7)
            for row in rows(
                "before", "What before?", [f"before {n}"], subject="sub-01", trial_index=n
            )
        ],
    ]
    betas = np.random.default_rng(0).normal(size=(8, 20)).astype(np.float32)
    return write_store(
        tmp_path / "store", [(SPACE, betas, trials)], pd.DataFrame(talk), name="talk"
    )


def said(
    batch: TrialBatch, words: ConversationDataset, rng: np.random.Generator | None
) -> list[str]:
    return [turns[-1]["content"] for turns in words.sample_conversations(batch, rng)]


def draw(trials: TrialDataset, seed: int, mix: float = 0.0) -> TrialBatch:
    return SubjectBatchSampler(trials, 8, 1, mixup_prob=mix).sample(np.random.default_rng(seed))


def test_a_source_is_drawn_first(store: Store) -> None:
    trials = TrialDataset(store, ["sub-01"])
    words, rng = ConversationDataset(store, [trials]), np.random.default_rng(0)
    batch = draw(trials, 0)
    found = pd.Series(
        [
            text
            for _ in range(200)
            for s, text in zip(batch.stimuli, said(batch, words, rng), strict=True)
            if s == "a"
        ]
    )
    assert found.eq("a dog").mean() == pytest.approx(0.5, abs=0.06), (
        "one caption weighs as much as nine questions"
    )
    assert found.nunique() == 10
    weighted = ConversationDataset(store, [trials], {"caption": 3.0, "vqa": 1.0})
    found = pd.Series(
        [
            text
            for _ in range(200)
            for s, text in zip(batch.stimuli, said(batch, weighted, rng), strict=True)
            if s == "a"
        ]
    )
    assert found.eq("a dog").mean() == pytest.approx(0.75, abs=0.06)


def test_only_sources_with_a_weight_are_drawn(store: Store) -> None:
    trials = TrialDataset(store, ["sub-01"], sources=["vqa"])
    assert set(trials.table["stimulus"]) == {"a"}
    assert ConversationDataset(store, [trials], {"vqa": 1.0}).sources == ["vqa"]
    with pytest.raises(InputError, match="has no source gqa; it holds before, caption, vqa"):
        ConversationDataset(store, [trials], {"gqa": 1.0})
    with pytest.raises(InputError, match="with a conversation of nothing"):
        TrialDataset(store, ["sub-01"], sources=["nothing"])


def test_what_is_told_of_a_trial_is_told_of_it_alone(store: Store) -> None:
    trials = TrialDataset(store, ["sub-01"], sources=["before"])
    assert trials.table["row"].tolist() == [1, 3, 5, 7]
    words, rng = ConversationDataset(store, [trials], {"before": 1.0}), np.random.default_rng(0)
    batch = next(iter_eval_batches(trials, 8))
    assert said(batch, words, rng) == ["before 1", "before 3", "before 5", "before 7"]
    both = TrialDataset(store, ["sub-01"])
    words = ConversationDataset(store, [both])
    for seed in range(20):
        batch = draw(both, seed, mix=0.5)
        for trial, text in zip(batch.source_trials, said(batch, words, rng), strict=True):
            assert not text.startswith("before") or (trial and text == f"before {trial[1]}"), (
                "mixed of two trials"
            )


def test_validation_hears_the_first_conversation(store: Store) -> None:
    trials = TrialDataset(store, ["sub-01"])
    words = ConversationDataset(store, [trials])
    assert said(next(iter_eval_batches(trials, 8)), words, None) == ["a dog", "a cat"] * 4
    assert words.texts == ["a cat", "a dog"], "codes are aligned with the first source alone"
    assert words.first_answer == {"a": "a dog", "b": "a cat"}


def test_shuffled_pairs_keep_what_belongs_together(store: Store) -> None:
    trials = TrialDataset(store, ["sub-01"])
    before = trials.table.copy()
    trials.permute_pairs(0)
    assert trials.table["row"].tolist() == before["row"].tolist()
    assert trials.table["about"].tolist() != before["row"].tolist()
    assert sorted(trials.table["about"]) == sorted(before["row"])
    assert (
        trials.table["stimulus"] == trials.table["about"].map(before.set_index("row")["stimulus"])
    ).all()
    assert trials.table.groupby("subject").size().equals(before.groupby("subject").size())


def test_trials_of_some_stimuli(store: Store) -> None:
    trials = TrialDataset(store, ["sub-01"])
    _ = trials.stimulus_index
    some = trials.filter_stimuli({"b": 1})
    assert set(some.table["stimulus"]) == {"b"}
    assert set(draw(some, 0).stimuli) == {"b"}
    assert trials.filter_stimuli({"a": 1, "b": 1}) is trials


def test_a_source_is_added_and_replaced_whole(store: Store) -> None:
    count = len(store.conversations)
    store.add_conversations(pd.DataFrame(rows("gqa", "Is it red?", ["no", "yes"], stimulus="b")))
    assert len(store.conversations) == count + 2
    store.add_conversations(pd.DataFrame(rows("gqa", "Is it blue?", ["yes"], stimulus="a")))
    table = Store(store.path).conversations
    assert len(table) == count + 1
    found = table[table["source"] == "gqa"].iloc[0]
    assert found["turns"] == build_conversation("Is it blue?", "yes")
    assert found["answers"] == ["yes"]
    assert table["source"].iloc[0] == "caption", "the first source stays the first"
    assert table.loc[table["source"] == "before", "trial_index"].tolist() == [1, 3, 5, 7]
    with pytest.raises(InputError, match="alternates"):
        store.add_conversations(
            pd.DataFrame([{"source": "x", "stimulus": "a", "turns": [], "answers": ["a"]}])
        )
    assert len(Store(store.path).conversations) == count + 1


def test_a_trial_is_asked_its_own_questions(store: Store) -> None:
    items = collect_questions(store, "before", ["sub-01"], "train", False, "caption")
    assert [(item.trials, item.reference) for item in items] == [
        ((n,), [f"before {n}"]) for n in (1, 3, 5, 7)
    ]
    assert len(collect_questions(store, "vqa", ["sub-01"], "train", False, "caption")) == 4 * 9
    assert len(collect_questions(store, "vqa", ["sub-01"], "train", True, "caption")) == 9
    with pytest.raises(
        InputError, match=r"before asks about single trials, .* leave --average-repetitions out"
    ):
        collect_questions(store, "before", ["sub-01"], "train", True, "caption")
    with pytest.raises(InputError, match="no trial of the split test of sub-01"):
        collect_questions(store, "before", ["sub-01"], "test", False, "caption")


def test_trials_read_together_are_those_read_alone(tiny_store: Store) -> None:
    dataset = TrialDataset(tiny_store, draw_conversations=True)
    indices = [70, 0, 30, 1, 71, 0]
    torch.manual_seed(0)
    together = dataset.__getitems__(indices)
    torch.manual_seed(0)
    for index, sample in zip(indices, together, strict=True):
        alone = dataset[index]
        np.testing.assert_array_equal(sample.betas, alone.betas)
        assert (sample.subject, sample.trial_index) == (alone.subject, alone.trial_index)
        assert (sample.stimulus, sample.conversation) == (alone.stimulus, alone.conversation)
