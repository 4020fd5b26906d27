"""Cross-validation of evidence: what it finds where something is planted, and where nothing is."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from mindllm.cli import app
from mindllm.data.store import Store
from mindllm.data.store_writer import conversations_from_captions, write_store
from mindllm.evaluation.cross_validation import CrossValidation, CrossValidationOptions
from mindllm.fmri.masker import VoxelMasker
from mindllm.language.sentence_embeddings import embed_sentences
from mindllm.model.configuration import MindLLMConfig
from mindllm.utils.errors import InputError

ANSWERS = [
    f"{who} {place}"
    for who in ("a dog", "a cat", "a man with a guitar", "a train", "a pizza", "children")
    for place in ("on a beach", "in a kitchen", "in a street", "on a meadow")
]


def make_store(path: Path, space: VoxelMasker, signal: float, n_test: int = 0) -> Store:
    """Three subjects whose voxels answer linearly to the sentence embeddings."""
    last = 2 * (len(ANSWERS) - n_test)
    rng, subjects = np.random.default_rng(0), []
    stimuli = [f"s{i:02d}" for i in range(2 * len(ANSWERS))]
    captions = [ANSWERS[i // 2] for i in range(len(stimuli))]
    embeddings = embed_sentences(captions)
    weights = rng.normal(size=(embeddings.shape[1], len(space)))
    responses = signal * (embeddings - embeddings.mean(0)) @ weights
    for n in range(3):
        order = np.arange(len(stimuli))
        betas = responses[order] + rng.normal(size=(len(order), len(space)))
        splits = np.where(order < last, "train", "test")
        trials = pd.DataFrame({"stimulus": [stimuli[i] for i in order], "split": splits})
        masker = replace(space, subject=f"sub-{n + 1:02d}")
        subjects.append((masker, betas.astype(np.float32), trials))
    table = pd.DataFrame({"stimulus": stimuli, "caption": captions})
    return write_store(
        path,
        subjects,
        conversations_from_captions(table),
        name="planted",
        source="made by the tests",
        license="MIT",
    )


ENCODER = MindLLMConfig(num_queries=48)
OPTIONS = CrossValidationOptions(n_folds=3, encoder=ENCODER)


def test_planted_meaning_is_read_in_seen_and_new_answers(
    tmp_path: Path, space: VoxelMasker
) -> None:
    store = make_store(tmp_path / "store", space, signal=2.0)
    validation = CrossValidation(store, None, OPTIONS, tmp_path / "cv")
    done: list[int] = []
    results = validation.run(done.append)
    assert sum(done) == validation.n_steps == 3 * 4
    for name, n_candidates in (("seen answers", 24), ("new answers", 8)):
        scores = results[name]
        assert (scores.n_trials, scores.n_candidates) == (3 * 48, n_candidates)
        top1 = "identification_evidence_top1"
        assert scores.value(top1) > 2 / n_candidates
        assert scores.value(top1, "shuffled_trials") == pytest.approx(1 / n_candidates, abs=0.02)
        permuted = scores.value(top1, "trained_on_permuted_pairs")
        assert permuted is not None
        assert permuted < scores.value(top1)
        assert scores.value(top1, "ridge") is not None
    assert results["seen answers"].value(top1, "linear_discriminant") is not None
    # What was kept is read: the same numbers, at once.
    assert CrossValidation(store, None, OPTIONS, tmp_path / "cv").run() == results
    with pytest.raises(InputError, match="another evaluation: its options"):
        CrossValidation(store, None, CrossValidationOptions(n_folds=4), tmp_path / "cv")


def test_new_answers_are_those_of_a_split(tmp_path: Path, space: VoxelMasker) -> None:
    store = make_store(tmp_path / "store", space, signal=2.0, n_test=6)
    options = replace(OPTIONS, test_split="test")
    validation = CrossValidation(store, None, options, left_out=["sub-02"])
    results = validation.run()
    assert validation.n_steps == 2
    sizes = {name: (s.n_subjects, s.n_trials, s.n_candidates) for name, s in results.items()}
    assert sizes == {"seen answers": (1, 2 * 18, 18), "new answers": (1, 2 * 6, 6)}
    assert results["seen answers"].value("identification_evidence_2way") > 0.7
    with pytest.raises(InputError, match="0 of 24 answers are those of the split 'val'"):
        CrossValidation(store, None, replace(OPTIONS, test_split="val"))
    with pytest.raises(InputError, match="cannot leave out sub-09: the subjects that take part"):
        CrossValidation(store, None, OPTIONS, left_out=["sub-09"])


def test_free_text_is_nearer_to_its_answer(
    tmp_path: Path, space: VoxelMasker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Texts to choose among: answers that are shown, and some that no stimulus has."""
    store = make_store(tmp_path / "store", space, signal=2.0)
    others = [
        f"{who} {place}"
        for who in ("puppies", "kittens", "a guitar player", "a locomotive", "a cake", "kids")
        for place in ("at the sea", "beside an oven", "on a road", "in the grass")
    ]
    examples = []

    def write(_: CrossValidation, shown: list[str]) -> list[str]:
        examples.append(shown)
        return others

    monkeypatch.setattr(CrossValidation, "sample", write)
    options = replace(OPTIONS, n_texts=24)
    validation = CrossValidation(store, None, options, tmp_path / "cv")
    steps: list[int] = []
    scores = validation.run(lambda count, _=None: steps.append(count))["free text"]
    assert sum(steps) == validation.n_steps == 3 * 4 + 3
    assert [len(shown) for shown in examples] == [16] * 3
    for fold, shown in zip(validation.folds.folds, examples, strict=True):
        assert not {validation.folds.answers[i] for i in fold} & set(shown)
    assert scores.calibration is None
    two_way = "text_similarity_2way"
    assert scores.value(two_way) > 0.7
    assert scores.value(two_way, "shuffled_trials") == pytest.approx(0.5, abs=0.02)
    assert scores.value(two_way, "trained_on_permuted_pairs") < 0.65
    assert scores.value(two_way, "ridge") > 0.6
    assert len(scores.texts) == scores.n_trials == 3 * 48
    assert {t.text for t in scores.texts} & set(others)
    assert all(t.text != t.answer for t in scores.texts)
    count = len(examples)
    assert CrossValidation(store, None, options, tmp_path / "cv").run()["free text"] == scores
    assert len(examples) == count  # what was written is read


def test_with_nothing_planted_nothing_is_read(tmp_path: Path, space: VoxelMasker) -> None:
    store = make_store(tmp_path / "store", space, signal=0.0)
    for scores in CrossValidation(store, None, OPTIONS).run().values():
        two_way = scores.value("identification_evidence_2way")
        assert two_way is not None
        assert abs(two_way - 0.5) < 0.12
        assert scores.calibration.expected_calibration_error.value < 0.2


def test_the_command_writes_its_tables(tmp_path: Path, space: VoxelMasker) -> None:
    make_store(tmp_path / "store", space, signal=2.0)
    arguments = ["cross-validate", str(tmp_path / "store"), "--out", str(tmp_path / "cv")]
    result = CliRunner().invoke(app, [*arguments, "--folds", "2"], catch_exceptions=False)
    assert result.exit_code == 0
    text = (tmp_path / "cv" / "cross_validation.md").read_text(encoding="utf-8")
    assert "## New answers" in text
    assert "| shrunk LDA |" in text
    names = sorted(path.name for path in (tmp_path / "cv").iterdir())
    tables = ["cross_validation.json", "cross_validation.md"]
    assert names == [*tables, "manifest.json", "reliability.png"]


def test_too_few_subjects_or_answers_are_refused(tmp_path: Path, space: VoxelMasker) -> None:
    store = make_store(tmp_path / "store", space, signal=1.0)
    with pytest.raises(InputError, match="2 subjects: leaving one out needs at least 3"):
        CrossValidation(store, ["sub-01", "sub-02"])
    with pytest.raises(InputError, match="24 answers cannot be divided into 20 folds"):
        CrossValidation(store, None, CrossValidationOptions(n_folds=20))
