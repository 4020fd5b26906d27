"""Attributions of words sum to the change of their log-likelihood, and are those of the betas."""

import numpy as np
import pytest
import torch
from captum.attr import IntegratedGradients

from mindllm.explain.attribution import (
    AttributionConfig,
    attribute_words,
    group_into_words,
    word_scorer,
)
from mindllm.fmri.masker import VoxelMasker
from mindllm.model.modeling import MindLLM
from mindllm.utils.errors import InputError

ANSWER = "two people eat pizza"
EXACT = AttributionConfig(n_steps=16, tolerance=1e-3, max_pieces=64)


@pytest.fixture
def betas(space: VoxelMasker) -> np.ndarray:
    return 3 * np.random.default_rng(0).normal(size=len(space)).astype(np.float32)


def test_attributions_of_every_word_sum_to_its_change(
    tiny_model: MindLLM, space: VoxelMasker, betas: np.ndarray
) -> None:
    result = attribute_words(tiny_model, space, betas, ANSWER, config=EXACT)
    assert result.words == ("two", "people", "eat", "pizza")
    assert np.abs(result.error).max() < 2e-3
    change = result.log_likelihood - result.at_zero
    assert np.abs(change).max() > 0.01
    np.testing.assert_allclose(result.voxels.sum(1), change, atol=2e-3)


def test_words_have_the_log_likelihood_of_the_model(
    tiny_model: MindLLM, space: VoxelMasker, betas: np.ndarray
) -> None:
    """All words and the end of the turn make the log-likelihood of the answer."""
    score, words = word_scorer(tiny_model, ANSWER, None)
    outputs = tiny_model.query_outputs(betas, space)
    with torch.no_grad():
        of_words = float(score(outputs).sum())
    whole = float(tiny_model.log_likelihood(betas, space, [ANSWER]))
    assert len(words) == 4
    assert whole < of_words < 0


def test_attributions_are_integrated_gradients_of_the_betas(
    tiny_model: MindLLM, space: VoxelMasker, betas: np.ndarray
) -> None:
    result = attribute_words(tiny_model, space, betas, ANSWER, words=[3], config=EXACT)
    score, _ = word_scorer(tiny_model, ANSWER, None)
    voxels = tiny_model.encoder.prepare_voxels(space)
    expected = IntegratedGradients(
        lambda x: score(tiny_model.encoder.attend(voxels, x))[:, 3]
    ).attribute(torch.from_numpy(betas)[None], n_steps=300)[0]
    np.testing.assert_allclose(result.voxels[0], expected.detach().numpy(), atol=1e-3)
    assert result.words == ("pizza",)


@pytest.mark.parametrize("words", [[4], [-1], []])
def test_a_word_that_is_not_there_is_refused(
    tiny_model: MindLLM, space: VoxelMasker, betas: np.ndarray, words: list[int]
) -> None:
    with pytest.raises(InputError, match="has words 0 to 3"):
        attribute_words(tiny_model, space, betas, ANSWER, words=words)


def test_one_trial_at_a_time(tiny_model: MindLLM, space: VoxelMasker, betas: np.ndarray) -> None:
    with pytest.raises(InputError, match="one trial at a time, found 2"):
        attribute_words(tiny_model, space, np.stack([betas, betas]), ANSWER)


def test_tokens_are_grouped_into_words(tiny_model: MindLLM) -> None:
    tokenizer = tiny_model.language_model.tokenizer
    ids = tokenizer("a umbrella, grün", add_special_tokens=False)["input_ids"]
    words, numbers = group_into_words(tokenizer, ids)
    assert words == ["a", "umbrella,", "grün"]
    assert len(numbers) == len(ids) > 3
    assert numbers == sorted(numbers)
