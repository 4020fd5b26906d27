"""fMRI tokens before a language model: likelihoods, generation, batches equal to their rows."""

import numpy as np
import pytest
import torch

from mindllm.language.conversation import QUESTION, build_conversation
from mindllm.model import generation, logits
from mindllm.model.candidates import prompt_log_likelihood
from mindllm.model.checkpoint import fingerprint
from mindllm.model.modeling import MindLLM
from mindllm.model.precision import cast_language_model
from mindllm.model.processing import IGNORE_INDEX
from mindllm.utils.errors import InputError
from tests.conftest import TEXTS, make_space


@pytest.fixture
def tokens(tiny_model: MindLLM) -> torch.Tensor:
    space = make_space()
    return tiny_model.encode(np.random.default_rng(0).normal(size=(5, len(space))), space)


def test_the_tree_of_candidates_gives_each_ones_likelihood(
    tiny_model: MindLLM, tokens: torch.Tensor
) -> None:
    candidates = [*TEXTS, "a dog", "a dog runs fast"]  # beginnings of one another
    together = tiny_model.score_candidates(tokens, candidates, batch_size=2)
    for column, candidate in enumerate(candidates):
        alone, _ = prompt_log_likelihood(
            tiny_model,
            tokens,
            [tiny_model.processor(build_conversation(QUESTION, candidate))] * len(tokens),
        )
        torch.testing.assert_close(together[:, column], alone.detach(), rtol=1e-4, atol=1e-4)


def test_the_language_model_computes_in_half_precision_and_the_encoder_does_not(
    tiny_model: MindLLM, tokens: torch.Tensor
) -> None:
    language_model = tiny_model.language_model
    expected = tiny_model.score_candidates(tokens, TEXTS)
    known = fingerprint(language_model.model)
    cast_language_model(language_model, torch.bfloat16)
    assert language_model.model.dtype == torch.bfloat16
    assert tiny_model.projector.weight.dtype == torch.float32
    assert fingerprint(language_model.model) == known  # the same weights
    scores = tiny_model.score_candidates(tokens, TEXTS)
    assert scores.dtype == torch.float32
    assert 0 < (scores - expected).abs().max() < 0.02 * expected.abs().max()
    assert all(tiny_model.generate(tokens[:1], [tiny_model.build_conversation()]))


def test_a_quantized_language_model_keeps_its_precision(tiny_model: MindLLM) -> None:
    tiny_model.language_model.model.is_quantized = True
    with pytest.raises(InputError, match=r"is quantized and cannot compute in torch\.bfloat16"):
        cast_language_model(tiny_model.language_model, torch.bfloat16)


def test_a_mixed_batch_of_conversations_equals_its_rows(
    tiny_model: MindLLM, tokens: torch.Tensor
) -> None:
    questions = [
        "What?",
        "<fMRI> is a scan. What is this person seeing right now?",
        "Which animal is it?",
    ]
    prompts = [
        tiny_model.processor(build_conversation(q, a))
        for q, a in zip(questions, TEXTS, strict=False)
    ]
    together, counts = prompt_log_likelihood(tiny_model, tokens[:3], prompts)
    for row, prompt in enumerate(prompts):
        alone, count = prompt_log_likelihood(tiny_model, tokens[row : row + 1], [prompt])
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-4, atol=1e-4)
        assert counts[row] == count[0]
    asked = [build_conversation(q) for q in questions]
    texts = tiny_model.generate(tokens[:3], asked, max_new_tokens=8)
    assert texts == [
        tiny_model.generate(tokens[i : i + 1], asked[i : i + 1], max_new_tokens=8)[0]
        for i in range(3)
    ]


def test_questions_about_one_scan_share_its_tokens(
    tiny_model: MindLLM, tokens: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions = ["<fMRI> Who?", "<fMRI> Where is it, please?", "<fMRI> What is there?"]
    asked = [build_conversation(question) for question in questions]
    prefixes = []

    def read_prefix(model: object, inputs_embeds: torch.Tensor, length: int) -> object:
        prefixes.append(length)
        return logits.read_prefix(model, inputs_embeds, length)

    monkeypatch.setattr(generation, "read_prefix", read_prefix)
    together = tiny_model.generate(tokens[:1].expand(3, -1, -1), asked, max_new_tokens=8)
    apart = [tiny_model.generate(tokens[:1], [turns], max_new_tokens=8)[0] for turns in asked]
    assert together == apart
    tiny_model.generate(tokens[:3], asked, max_new_tokens=8)
    position = tiny_model.processor(asked[0], generate=True).fmri_token_positions
    of_one_scan, of_three = prefixes
    assert of_one_scan > position[-1]
    assert of_three == position[0]


def test_an_answer_before_the_scan_counts_in_a_batch(
    tiny_model: MindLLM, tokens: torch.Tensor
) -> None:
    before = [{"role": "user", "content": "Ready?"}, {"role": "assistant", "content": "yes"}]
    prompts = [tiny_model.processor([*before, *build_conversation("What?", t)]) for t in TEXTS[:3]]
    together, counts = prompt_log_likelihood(tiny_model, tokens[:3], prompts)
    for row, prompt in enumerate(prompts):
        assert counts[row] == (prompt.labels != IGNORE_INDEX).sum()
        alone, _ = prompt_log_likelihood(tiny_model, tokens[row : row + 1], [prompt])
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-4, atol=1e-4)


def test_the_scan_matters(tiny_model: MindLLM, tokens: torch.Tensor) -> None:
    scores = tiny_model.score_candidates(tokens, TEXTS)
    assert (scores[0] - scores[1]).abs().max() > 1e-3


def test_decode_streams_and_samples(tiny_model: MindLLM) -> None:
    space = make_space()
    values = np.random.default_rng(0).normal(size=(2, len(space)))
    greedy = tiny_model.decode(values, space, max_new_tokens=8)
    heard: list[str] = []
    streamed = tiny_model.generate(
        tiny_model.encode(values[:1], space),
        [build_conversation()],
        on_text=heard.append,
        max_new_tokens=8,
    )
    assert streamed == greedy[:1] == ["".join(heard).strip()]
    torch.manual_seed(0)
    assert (
        len(tiny_model.decode(values, space, max_new_tokens=8, do_sample=True, temperature=2.0))
        == 2
    )


def test_evidence_is_the_gain_over_no_brain(tiny_model: MindLLM, tokens: torch.Tensor) -> None:
    evidence = tiny_model.log_likelihood_ratio(
        tokens, [tiny_model.build_conversation(None, text) for text in TEXTS[:5]]
    )
    gain = (
        tiny_model.score_candidates(tokens, TEXTS[:5]).diag()
        - tiny_model.score_candidates(tiny_model.null_tokens[None], TEXTS[:5])[0]
    )
    torch.testing.assert_close(evidence.cpu(), gain, rtol=1e-4, atol=1e-4)


def test_bad_values(tiny_model: MindLLM) -> None:
    space = make_space()
    with pytest.raises(
        InputError,
        match=r"values of sub-01 have shape \(2, 59\); expected \(60,\) or \(trials, 60\)",
    ):
        tiny_model.encode(np.zeros((2, 59)), space)
    with pytest.raises(InputError, match="NaN or infinite values in 60 of 60 voxels"):
        tiny_model.encode(np.full((2, 60), np.nan), space)


def test_placeholders_and_tokens_must_agree(tiny_model: MindLLM, tokens: torch.Tensor) -> None:
    prompt = tiny_model.processor(build_conversation(answer="a dog"))
    with pytest.raises(InputError, match="places for fMRI tokens"):
        prompt_log_likelihood(tiny_model, tokens[:1, :2], [prompt])
