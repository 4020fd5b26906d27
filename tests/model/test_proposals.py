"""Texts to choose among, and the choice."""

from pathlib import Path

import pytest
import torch

from mindllm.model.language_model import load_language_model
from mindllm.model.modeling import MindLLM
from mindllm.model.proposals import (
    collect_proposals,
    rank_texts,
    sample_texts,
    similarity_gains,
)
from mindllm.utils.errors import InputError
from mindllm.utils.text_files import read_corpus

EXAMPLES = [
    "a dog runs on a beach",
    "a woman cuts bread in a kitchen",
    "two children play football",
    "a man reads a book in a park",
]


def test_a_language_model_writes_texts_like_the_examples() -> None:
    language_model = load_language_model()
    state, steps = torch.get_rng_state(), []
    texts = sample_texts(language_model, EXAMPLES, 4, batch_size=6, seed=1, advance=steps.append)
    assert len(texts) == len(set(texts)) == sum(steps) == 4
    assert not set(texts) & set(EXAMPLES)
    assert all(2 <= len(text.split()) <= 30 and "\n" not in text for text in texts)
    assert texts == sample_texts(language_model, EXAMPLES, 4, batch_size=6, seed=1)
    assert texts != sample_texts(language_model, EXAMPLES, 4, batch_size=6, seed=2)
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(InputError, match="after examples, and there are none"):
        sample_texts(language_model, [" "], 3)


def test_the_choice_makes_use_of_texts_that_mean_the_same_and_no_hub_is_chosen() -> None:
    e = torch.eye(4, dtype=torch.float64)
    hub = torch.ones(4, dtype=torch.float64)  # similar to all
    embeddings = torch.stack([e[0], e[0] + 0.1 * e[1], e[2], e[3], hub])
    evidence = torch.tensor([[2.0, 2.0, 2.2, 0.0, 0.5]])
    gains = similarity_gains(evidence, embeddings)
    assert gains.argmax() in (0, 1)  # two that say the same, against one with more evidence
    assert torch.allclose(
        similarity_gains(torch.zeros(2, 5), embeddings), torch.zeros(2, 5).double()
    )
    ((best, second, *rest),) = rank_texts(list("abcde"), evidence, embeddings, n_best=4)
    assert {best.text, second.text} == {"a", "b"}
    assert len(rest) == 2
    assert best.evidence == 2.0
    assert best.probability == pytest.approx(float(evidence.double().softmax(1)[0, 0]))
    assert best.similarity_gain == pytest.approx(float(gains.max()))


def test_a_corpus_is_a_text_per_line(tmp_path: Path) -> None:
    file = tmp_path / "corpus.txt"
    file.write_bytes("\ufeffa dog\r\n\n  two   cats \r\n".encode())
    assert read_corpus(file) == ["a dog", "two cats"]
    file.write_text("\n \n")
    with pytest.raises(InputError, match="holds no text; expected a corpus of one text per line"):
        read_corpus(file)
    with pytest.raises(InputError, match="expected a corpus"):
        read_corpus(tmp_path / "nowhere.txt")


def test_proposals_of_a_model(tiny_model: MindLLM) -> None:
    with pytest.raises(InputError, match="give a corpus"):
        collect_proposals(tiny_model, n_texts=0)
    assert collect_proposals(tiny_model, ["a", "b", "a"], n_texts=0) == ["a", "b"]
