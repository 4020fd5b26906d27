"""Expected embeddings, words, and the reader as a part of a saved model."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mindllm.model.encoding_fit import SubjectFeatures, fit_encoding_model
from mindllm.model.encoding_model import EncodingModel, center_embeddings
from mindllm.model.modeling import MindLLM
from mindllm.model.text_reader import (
    TextReader,
    TextReaderConfig,
    expected_embeddings,
    mean_expected_embeddings,
    quote_sentences,
)
from mindllm.utils.errors import InputError
from tests.conftest import update_manifests

N_TEXTS, SIZE, WIDTH = 24, 6, 16


@pytest.fixture(scope="module")
def embeddings() -> Tensor:
    torch.manual_seed(0)
    return torch.nn.functional.normalize(torch.randn(N_TEXTS, SIZE, dtype=torch.float64), dim=1)


@pytest.fixture(scope="module")
def weights() -> Tensor:
    return torch.randn(SIZE, WIDTH, generator=torch.Generator().manual_seed(1)).double()


def subject(embeddings: Tensor, weights: Tensor, seed: int, repeats: int = 4) -> SubjectFeatures:
    """Trials that are linear in the embeddings of their texts, with noise."""
    texts = torch.arange(N_TEXTS).repeat(repeats)
    noise = torch.randn(len(texts), WIDTH, generator=torch.Generator().manual_seed(seed))
    return SubjectFeatures(3 * embeddings[texts] @ weights + noise, texts)


@pytest.fixture(scope="module")
def encoding_model(embeddings: Tensor, weights: Tensor) -> EncodingModel:
    subjects = {f"sub-0{n}": subject(embeddings, weights, n) for n in (1, 2, 3)}
    return fit_encoding_model(subjects, embeddings)


def test_expected_embeddings_are_near_the_true_ones(
    encoding_model: EncodingModel, embeddings: Tensor, weights: Tensor
) -> None:
    trials = subject(embeddings, weights, seed=9)
    transform = encoding_model.subject_transform(trials.values)
    expected = expected_embeddings(encoding_model, trials.values, transform)
    true = center_embeddings(embeddings, encoding_model.text_center)
    similarity = torch.nn.functional.normalize(expected, dim=1) @ true.T
    assert (similarity.argmax(1) == trials.stimuli).double().mean() > 0.5
    assert expected.norm(dim=1).max() < 2
    # Without a signal they are as short as before the trial.
    noise = torch.zeros_like(trials.values) + trials.values.mean(0)
    silent = expected_embeddings(encoding_model, noise, transform)
    assert silent.norm(dim=1).max() < 0.3 * expected.norm(dim=1).mean()


def test_expected_embeddings_are_the_posterior_mean(encoding_model: EncodingModel) -> None:
    """Without the regression: the mean of embeddings by their probability, by brute force."""
    model = EncodingModel({n: getattr(encoding_model, n).clone() for n in EncodingModel.SHAPES})
    model.regression_gain.fill_(0)
    model.temperature.fill_(1)
    semantic, of_text, of_stimulus = model.signal
    learned = semantic / (1 + semantic * model.precision * model.information[:, None])
    spread = (learned.sum(0) + (SIZE - learned.shape[0]) * semantic) / SIZE
    variance = spread + of_text + of_stimulus + 1
    torch.manual_seed(3)
    outputs = model.query_mean + model.query_std * 0.3 * torch.randn(4, WIDTH).double()
    transform = model.subject_transform()
    trials = model.transform(outputs, transform)
    draws = torch.randn(400_000, SIZE, dtype=torch.float64) / SIZE**0.5
    deviations = trials[:, None] - (draws @ model.weights)[None]
    log_density = -0.5 * (deviations.square() / variance).sum(-1)
    by_draws = log_density.softmax(1) @ draws
    torch.testing.assert_close(
        expected_embeddings(model, outputs, transform), by_draws, atol=0.03, rtol=0
    )


def test_the_mean_is_what_the_responses_to_texts_give(encoding_model: EncodingModel) -> None:
    model = EncodingModel({n: getattr(encoding_model, n).clone() for n in EncodingModel.SHAPES})
    model.regression_gain.fill_(0)
    e = torch.eye(SIZE).double()
    # A trial that is the response to a text: its place among features is found by least squares.
    to_features = model.components @ model.basis
    features = (e @ model.weights + model.center) @ torch.linalg.pinv(to_features)
    outputs = features * model.query_std + model.query_mean
    torch.testing.assert_close(
        expected_embeddings(model, outputs, model.subject_transform()),
        mean_expected_embeddings(model, e),
    )


def test_the_nearest_sentences_come_first() -> None:
    config = TextReaderConfig(n_sentences=2, sentences=("dog", "cat", "sea"))
    reader = TextReader(config, 3, (2, 4))
    reader.sentence_means.copy_(torch.eye(3))
    expected = torch.tensor([[0.1, 0.5, 0.3], [0.9, 0.0, 0.2]])
    assert reader.nearest_sentences(expected) == [["cat", "sea"], ["dog", "sea"]]
    assert reader.nearest_sentences(expected, [1, 9]) == [["sea", "dog"], ["dog", "sea"]]
    assert TextReader(TextReaderConfig(), 3, (2, 4)).nearest_sentences(expected) == [[], []]
    assert reader(expected).shape == (2, 2, 4)
    turns = [{"role": "user", "content": "What?<fMRI>"}, {"role": "assistant", "content": "a cat"}]
    assert quote_sentences(turns, []) == turns
    assert [t["content"] for t in quote_sentences(turns, ["sea"])] == ["What?<fMRI>\nsea", "a cat"]


def test_a_reader_is_saved_with_its_model(
    tiny_model: MindLLM, embeddings: Tensor, tmp_path: Path
) -> None:
    n_queries = tiny_model.encoder.config.num_queries
    torch.manual_seed(0)
    trials = {
        name: SubjectFeatures(torch.randn(48, n_queries), torch.arange(N_TEXTS).repeat(2))
        for name in ("sub-01", "sub-02")
    }
    tiny_model.encoding_model = fit_encoding_model(trials, embeddings)
    tiny_model.sentence_encoder = "encoder"
    tiny_model.save_pretrained(tmp_path / "without")
    without = MindLLM.from_pretrained(tmp_path / "without")
    assert without.text_reader is None
    config = TextReaderConfig(hidden_size=8, n_sentences=1, sentences=("dog", "cat"))
    reader = TextReader(config, SIZE, tuple(tiny_model.null_tokens.shape))
    reader.sentence_means.normal_()
    tiny_model.text_reader = reader
    tiny_model.save_pretrained(tmp_path / "model")
    again = MindLLM.from_pretrained(tmp_path / "model")
    assert again.text_reader is not None
    assert again.text_reader.config == config
    expected = torch.randn(3, SIZE)
    assert torch.equal(again.text_reader(expected), reader(expected))
    assert again.text_reader.nearest_sentences(expected) == reader.nearest_sentences(expected)

    content = json.loads((tmp_path / "model" / "config.json").read_text())
    content["text_reader"]["hidden_size"] = 9
    (tmp_path / "model" / "config.json").write_text(json.dumps(content))
    update_manifests(tmp_path / "model")
    with pytest.raises(InputError, match=r"does not fit config.json: text_reader.layers.0"):
        MindLLM.from_pretrained(tmp_path / "model")

    tiny_model.encoding_model = None
    tiny_model.save_pretrained(tmp_path / "broken")
    with pytest.raises(InputError, match="text reader without the encoding model"):
        MindLLM.from_pretrained(tmp_path / "broken")
