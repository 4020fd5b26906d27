"""A reader learns from text, says what it was taught, goes on after an interruption, decodes."""

import json
from pathlib import Path

import nibabel as nib
import pytest
import torch
from typer.testing import CliRunner

from mindllm.cli import app
from mindllm.data.store import Store
from mindllm.model.decode_by_reader import decode_by_reader, read_trials, sample_readings
from mindllm.model.modeling import MindLLM
from mindllm.training import train_reader as module
from mindllm.training.posterior_errors import PosteriorErrors
from mindllm.training.text_reader import (
    TextReaderOptions,
    TextReaderTrainer,
)
from mindllm.training.train_reader import train_text_reader
from mindllm.training.trainer import train
from mindllm.utils.errors import InputError
from tests.conftest import make_space
from tests.evaluation.test_cross_validation import make_store
from tests.training.test_trainer import options, same, weights

TINY = TextReaderOptions(
    max_steps=4, batch_size=4, n_texts=0, hidden_size=16, save_steps=2, n_folds=2
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make_store(tmp_path_factory.mktemp("reader") / "store", make_space(), signal=2.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, store: Store, tiny_llm_folder: Path) -> Path:
    """A model that was trained on all three subjects."""
    out = tmp_path_factory.mktemp("model") / "model"
    train(store, out, options(tiny_llm_folder, align=2, language=1))
    return out


@pytest.fixture(scope="module")
def taught(folder: Path, store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a reader of four steps."""
    out = tmp_path_factory.mktemp("taught") / "model"
    train_text_reader(MindLLM.from_pretrained(folder), store, out, TINY, corpus=["a boat sails"])
    return out


def test_a_reader_says_the_sentence_that_it_was_taught(folder: Path) -> None:
    model = MindLLM.from_pretrained(folder)
    assert model.encoding_model is not None
    answers = list(model.model_card.answers or {})[:2]
    size = len(model.encoding_model.text_center)
    means = torch.eye(size).double()[:2]
    errors = PosteriorErrors(1.0, means, torch.zeros_like(means), 1.0, torch.arange(2))
    taught = TextReaderOptions(
        max_steps=60,
        batch_size=8,
        learning_rate=1e-2,
        hidden_size=32,
        n_sentences=1,
        sentence_dropout=0,
    )
    trainer = TextReaderTrainer(model, [], answers, errors, taught)
    assert torch.equal(trainer.means, means)  # those of models that did not know the answers
    first = trainer.loss(answers, trainer.means, [[], []]).item()
    trainer.run()
    last = trainer.loss(
        answers, trainer.means, trainer.reader.nearest_sentences(trainer.means)
    ).item()
    swapped = trainer.loss(answers[::-1], trainer.means, [[], []]).item()
    assert last < 0.95 * first
    assert last < swapped
    (one,), (two,) = sample_readings(model, trainer.means, n_samples=1)
    assert one != two
    assert not any(p.requires_grad for p in trainer.reader.parameters())


def test_only_the_reader_changes(folder: Path, taught: Path, store: Store) -> None:
    before, after = weights(folder), weights(taught)
    assert same(before, {name: after[name] for name in before})
    assert {n.split(".")[0] for n in after.keys() - before.keys()} == {"text_reader"}
    record = json.loads((taught / "text_reader.json").read_text())
    assert (
        record["n_sentences"] == len(MindLLM.from_pretrained(folder).model_card.answers or {}) + 1
    )
    assert [row["step"] for row in record["history"]] == [2, 4]
    assert not (taught / "training").exists()


def test_an_interrupted_training_ends_with_the_same_weights(
    folder: Path, taught: Path, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, corpus = tmp_path / "model", ["a boat sails"]
    save = TextReaderTrainer.save

    def interrupt(trainer: TextReaderTrainer, *arguments: object) -> None:
        save(trainer, *arguments)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    monkeypatch.setattr(TextReaderTrainer, "save", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train_text_reader(MindLLM.from_pretrained(folder), store, out, TINY, corpus=corpus)
    monkeypatch.undo()
    with pytest.raises(InputError, match="holds an unfinished training"):
        train_text_reader(MindLLM.from_pretrained(folder), store, out, TINY, corpus=corpus)
    other = TINY.model_copy(update={"learning_rate": 0.1})
    with pytest.raises(InputError, match=r"learning_rate: 0\.001 then, 0\.1 now"):
        train_text_reader(
            MindLLM.from_pretrained(folder), store, out, other, corpus=corpus, resume=True
        )
    train_text_reader(MindLLM.from_pretrained(folder), store, out, TINY, corpus=corpus, resume=True)
    assert same(weights(out), weights(taught))
    monkeypatch.setattr(module, "measure_errors", None)  # what is finished is not trained again
    again = train_text_reader(
        MindLLM.from_pretrained(folder), store, out, TINY, corpus=corpus, resume=True
    )
    assert again.text_reader is not None


def test_sentences_are_written_once(
    folder: Path, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = MindLLM.from_pretrained(folder)
    calls = []

    def sample(language_model: object, examples: list[str], n_texts: int, **_: object) -> list[str]:
        calls.append(n_texts)
        return ["a made-up sentence"]

    monkeypatch.setattr(module, "sample_texts", sample)
    data = module.collect_data(model, store, store.select_subjects(None), None)
    assert sorted(data.answers) == sorted(model.model_card.answers or {})
    some = TextReaderOptions(n_texts=3)
    first = module.collect_sentences(model, data, ["a boat"], some, tmp_path, None)
    assert first == [*data.answers, "a boat", "a made-up sentence"]
    assert module.collect_sentences(model, data, ["a boat"], some, tmp_path, None) == first
    assert calls == [3]
    module.collect_sentences(model, data, ["a bus"], some, tmp_path, None)
    assert calls == [3, 3]


def test_a_store_of_others_is_refused(folder: Path, tiny_store: Store, tmp_path: Path) -> None:
    model = MindLLM.from_pretrained(folder)
    model.model_card = type(model.model_card)(subjects=["sub-99"])
    with pytest.raises(InputError, match=r"holds none of the subjects .*\(sub-99\)"):
        train_text_reader(model, tiny_store, tmp_path / "out", TINY)


def test_texts_of_trials_are_ranked(taught: Path, store: Store, tmp_path: Path) -> None:
    model, masker = MindLLM.from_pretrained(taught), store.masker("sub-01")
    betas = store.betas("sub-01", standardize=True)
    outputs = model.query_outputs(betas, masker)
    assert model.encoding_model is not None
    transform = model.encoding_model.subject_transform(outputs)
    asked = {"n_samples": 2, "n_best": 9, "texts": ["a dog", "a bus"], "seed": 3}
    state = torch.get_rng_state()
    ranked = read_trials(model, outputs[:2], transform, **asked)
    assert torch.equal(torch.get_rng_state(), state)
    assert ranked == read_trials(model, outputs[:2], transform, **asked)
    for texts in ranked:
        assert {"a dog", "a bus"} <= {text.text for text in texts}
        gains = [text.similarity_gain for text in texts]
        assert gains == sorted(gains, reverse=True)
    image = masker.inverse_transform(betas)
    decoded = decode_by_reader(
        model, image, masker, volumes=[5, 0], texts=["a dog"], n_samples=1, standardized=True
    )
    assert [volume.volume for volume in decoded] == [5, 0]
    model.text_reader = None
    with pytest.raises(InputError, match="has no text reader"):
        decode_by_reader(model, image, masker)


def test_the_commands(folder: Path, store: Store, tmp_path: Path) -> None:
    corpus, out = tmp_path / "corpus.txt", tmp_path / "out"
    corpus.write_text("a boat sails\n")
    words = ["train-reader", str(folder), str(store.path), "--out", str(out), "--n-texts", "0"]
    words += ["--corpus", str(corpus), "--max-steps", "1", "--batch-size", "2"]
    result = CliRunner().invoke(app, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "has a text reader" in " ".join(result.output.split())
    masker, scan = store.masker("sub-01"), tmp_path / "scan.nii.gz"
    nib.save(masker.inverse_transform(store.betas("sub-01")[:8]), scan)
    words = ["decode", str(out), str(scan), "--subject", "sub-01", "--by", "reader", "--json"]
    words += ["--n-samples", "2", "--volumes", "0,1", "--corpus", str(corpus)]
    result = CliRunner().invoke(app, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)
    assert [row["volume"] for row in rows] == [0, 1]
    assert all(0 <= row["probability"] <= 1 for row in rows)
