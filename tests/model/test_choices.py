"""Questions with given answers, by the evidence of texts."""

import numpy as np
import pytest
import torch

from mindllm.model.choices import answer_evidence, names
from mindllm.utils.errors import InputError

TEXTS = ["a dog runs", "Dogs sleep", "a hot-dog stand", "a cat sleeps", "dogma"]


def test_an_answer_is_as_likely_as_the_texts_that_name_it_on_average() -> None:
    evidence = torch.tensor(np.random.default_rng(0).normal(size=(3, 5)) * 3)
    density = evidence.exp()
    found = answer_evidence(TEXTS, evidence, [["dog", "dogs"], ["sleep", "sleeps"]])
    expected = torch.stack([density[:, :3].mean(1), density[:, [1, 3]].mean(1)], 1)
    assert torch.allclose(found.exp(), expected)
    yes_no = answer_evidence(TEXTS, evidence, [["cat"]])
    rest = density[:, [0, 1, 2, 4]].mean(1)
    assert torch.allclose(yes_no.exp(), torch.stack([density[:, 3], rest], 1))
    assert torch.isfinite(answer_evidence(TEXTS, evidence * 1e4, [["cat"]])).all()


def test_whole_words_in_any_case() -> None:
    assert [names(text, ["dog", "dogs"]) for text in TEXTS] == [True, True, True, False, False]
    assert names("what? (a+b)", ["(a"]) is False  # no word begins at a bracket
    assert names("on a beach", ["a beach"])


def test_an_answer_that_no_text_names_is_refused() -> None:
    with pytest.raises(InputError, match="none of 5 texts names zebra or zebras"):
        answer_evidence(TEXTS, torch.zeros(1, 5), [["dog"], ["zebra", "zebras"]])
    with pytest.raises(InputError, match="names anything but a or"):
        answer_evidence(["a b", "a"], torch.zeros(1, 2), [["a or", "a"]])
