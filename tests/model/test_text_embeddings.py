"""Texts as vectors: layers that are not needed are not read, and nothing else changes."""

import pytest
import torch

from mindllm.model import text_embeddings as module
from mindllm.model.language_model import FrozenLanguageModel
from mindllm.model.text_embeddings import embed_texts, find_layers, read_hidden

TEXTS = ["a dog runs on a beach with a ball", "two cats", "a man in a kitchen", "a horse", "rain"]


def embed_alone(language_model: FrozenLanguageModel, text: str) -> torch.Tensor:
    """Mean over tokens of the hidden layer, by a complete forward of one text."""
    ids = torch.tensor([language_model.tokenizer(text, add_special_tokens=True)["input_ids"]])
    with torch.no_grad():
        return read_hidden(language_model.model, ids, torch.ones_like(ids)).mean(1)[0]


def test_texts_are_embedded_in_their_order_and_without_padding(
    tiny_llm: FrozenLanguageModel,
) -> None:
    counts: list[int] = []
    embeddings = embed_texts(tiny_llm, TEXTS, 2, lambda count, *_: counts.append(count))
    expected = torch.stack([embed_alone(tiny_llm, text) for text in TEXTS])
    torch.testing.assert_close(embeddings, expected, atol=1e-5, rtol=1e-4)
    assert sum(counts) == len(TEXTS)


def count_last_layer(language_model: FrozenLanguageModel) -> int:
    """How many batches of five, of one text each, reach the last layer."""
    layers, calls = find_layers(language_model.model), []
    assert layers is not None
    handle = layers[-1].register_forward_hook(lambda *_: calls.append(1))
    embed_texts(language_model, TEXTS, 1)
    handle.remove()
    return len(calls)


def test_later_layers_are_read_once_to_check(tiny_llm: FrozenLanguageModel) -> None:
    assert count_last_layer(tiny_llm) == 1


def test_all_layers_are_read_where_the_short_cut_differs(
    tiny_llm: FrozenLanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = embed_texts(tiny_llm, TEXTS)
    other = module.read_hidden_alone
    monkeypatch.setattr(module, "read_hidden_alone", lambda *inputs: other(*inputs) + 1)
    assert count_last_layer(tiny_llm) == len(TEXTS)
    monkeypatch.setattr(module, "find_layers", lambda model: None)
    monkeypatch.setattr(module, "read_hidden_alone", other)
    torch.testing.assert_close(embed_texts(tiny_llm, TEXTS), expected)
