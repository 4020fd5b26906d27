"""Answers chosen by likelihood, from images."""

from pathlib import Path

import numpy as np
import pytest
import torch

from mindllm.data.store import Store
from mindllm.model.decode_by_likelihood import choose_by_likelihood
from mindllm.model.modeling import MindLLM
from mindllm.utils.errors import InputError

ANSWERS = [["a dog", "two dogs"], ["a red car"]]


def test_probabilities_are_those_of_the_wordings(
    tiny_model: MindLLM, tiny_store: Store, tmp_path: Path
) -> None:
    tiny_model.null_tokens.normal_()
    masker = tiny_store.masker("sub-01")
    betas = tiny_store.betas("sub-01", range(10), standardize=True)
    img = masker.inverse_transform(betas)
    chosen = choose_by_likelihood(
        tiny_model, img, masker, ANSWERS, question="Which?", standardized=True, volumes=[3, 0]
    )
    assert [volume.volume for volume in chosen] == [3, 0]
    texts = [text for wordings in ANSWERS for text in wordings]
    scores = tiny_model.log_likelihood(betas[[3, 0]], masker, texts, "Which?").double()
    null = tiny_model.score_candidates(tiny_model.null_tokens[None], texts, "Which?").double()
    for volume, row in zip(chosen, scores, strict=True):
        joint = row.exp()
        expected = torch.stack([joint[0] + joint[1], joint[2]])
        np.testing.assert_allclose(volume.log_likelihoods, expected.log(), rtol=1e-5)
        np.testing.assert_allclose(volume.probabilities, expected / expected.sum(), rtol=1e-4)
        without = null[0].exp()
        ratios = (expected / torch.stack([without[0] + without[1], without[2]])).log()
        np.testing.assert_allclose(volume.log_likelihood_ratios, ratios, atol=1e-4)
    assert chosen[0].probabilities != chosen[1].probabilities


def test_one_answer_is_no_choice(tiny_model: MindLLM, tiny_store: Store) -> None:
    with pytest.raises(InputError, match=r"1 answers to choose from by likelihood; expected two"):
        choose_by_likelihood(tiny_model, "scan.nii", tiny_store.masker("sub-01"), ANSWERS[:1])
