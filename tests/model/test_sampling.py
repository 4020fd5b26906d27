"""Sampling by row, and guidance against the null tokens."""

import pytest
import torch
from pydantic import ValidationError
from transformers import LogitsProcessorList

from mindllm.language.conversation import build_conversation
from mindllm.model.generation import end_token_ids
from mindllm.model.modeling import MindLLM
from mindllm.model.sampling import GenerationOptions, GuidedRows, RowSampler
from mindllm.model.streaming import GenerationRequest, answer_requests
from mindllm.utils.errors import InputError

CONVERSATIONS = [build_conversation("What?"), build_conversation("Is it a red car or a dog?")]
NO_IDS = torch.zeros(1, 0, dtype=torch.int64)


@pytest.fixture
def tokens() -> torch.Tensor:
    torch.manual_seed(3)
    return torch.randn(2, 3, 8)


def guided_by_hand(model: MindLLM, tokens: torch.Tensor, turns: list[dict], scale: float) -> str:
    """The guided greedy text, by the language model's own forward of the growing sequences."""
    prompt = model.processor(turns, generate=True)
    ids = torch.as_tensor(prompt.input_ids)[None].repeat(2, 1)
    positions = torch.as_tensor(prompt.fmri_token_positions)[None].repeat(2, 1)
    both = torch.stack([tokens, model.null_tokens])
    written: list[int] = []
    embed = model.language_model.model.get_input_embeddings()
    for _ in range(8):
        embeds = model.prepare_inputs_embeds(ids, positions, both)
        embeds = torch.cat([embeds, embed(torch.tensor([written] * 2).long())], 1)
        logits = model.language_model.model(inputs_embeds=embeds).logits[:, -1].log_softmax(-1)
        written.append(int((logits[1] + scale * (logits[0] - logits[1])).argmax()))
        if written[-1] in end_token_ids(model):
            break
    return model.language_model.tokenizer.decode(written, skip_special_tokens=True).strip()


@pytest.mark.parametrize("scale", [0.0, 2.5])
@torch.no_grad()
def test_guidance_is_that_of_the_formula(
    tiny_model: MindLLM, tokens: torch.Tensor, scale: float
) -> None:
    tiny_model.null_tokens.normal_()
    texts = tiny_model.generate(tokens, CONVERSATIONS, max_new_tokens=8, guidance_scale=scale)
    pairs = zip(tokens, CONVERSATIONS, strict=True)
    assert texts == [guided_by_hand(tiny_model, row, turns, scale) for row, turns in pairs]
    plain = tiny_model.generate(tokens, CONVERSATIONS, max_new_tokens=8)
    assert texts != plain
    assert plain == tiny_model.generate(tokens, CONVERSATIONS, max_new_tokens=8, guidance_scale=1.0)
    null = tiny_model.null_tokens.expand(2, -1, -1)
    without = tiny_model.generate(null, CONVERSATIONS, max_new_tokens=8)
    assert (texts == without) == (scale == 0), "a scale of 0 is the text without the scan"


@torch.no_grad()
def test_rows_with_and_without_guidance_share_a_batch(
    tiny_model: MindLLM, tokens: torch.Tensor
) -> None:
    tiny_model.null_tokens.normal_()
    options = [
        GenerationOptions(max_new_tokens=8),
        GenerationOptions(max_new_tokens=5, guidance_scale=3.0, temperature=1.2, seed=1),
    ]
    requests = [
        GenerationRequest(row, turns, option)
        for row, turns, option in zip(tokens, CONVERSATIONS, options, strict=True)
    ]
    together = answer_requests(tiny_model, requests)
    assert together == [answer_requests(tiny_model, [request])[0] for request in requests]
    assert (
        together[0].text == tiny_model.generate(tokens[:1], CONVERSATIONS[:1], max_new_tokens=8)[0]
    )


@torch.no_grad()
def test_guided_text_is_sampled_and_streamed(tiny_model: MindLLM, tokens: torch.Tensor) -> None:
    tiny_model.null_tokens.normal_()
    options = {"max_new_tokens": 8, "do_sample": True, "temperature": 2.0, "guidance_scale": 1.5}
    torch.manual_seed(0)
    first = tiny_model.generate(tokens, CONVERSATIONS, **options)
    second = tiny_model.generate(tokens, CONVERSATIONS, **options)
    torch.manual_seed(0)
    assert tiny_model.generate(tokens, CONVERSATIONS, **options) == first != second
    pieces: list[str] = []
    (text,) = tiny_model.generate(
        tokens[:1], CONVERSATIONS[:1], pieces.append, max_new_tokens=8, guidance_scale=2.0
    )
    assert "".join(pieces).strip() == text != ""


def test_what_cannot_be_guided_is_refused(tiny_model: MindLLM, tokens: torch.Tensor) -> None:
    with pytest.raises(InputError, match=r"found num_beams\. Leave one of them out"):
        tiny_model.generate(tokens, CONVERSATIONS, num_beams=2, guidance_scale=2.0)
    for scale in (-1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match=r"expected a number from 0; 1 is no guidance"):
            tiny_model.generate(tokens, CONVERSATIONS, guidance_scale=scale)


def test_excluded_tokens_stay_excluded() -> None:
    scores = torch.tensor([[1.0, -torch.inf, 0.0], [0.5, -torch.inf, -torch.inf]])
    guided = GuidedRows([2.0], LogitsProcessorList())(NO_IDS.expand(2, -1), scores)
    assert guided.isneginf().tolist() == [[False, True, True]] * 2


def test_tokens_are_drawn_by_temperature_top_p_and_top_k() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0])
    ids = NO_IDS.expand(2000, -1)
    for limit in ({"top_p": 0.8}, {"top_k": 3}):  # the fourth is beyond either
        options = [GenerationOptions(temperature=2.0, seed=n, **limit) for n in range(2000)]
        drawn = RowSampler(options, torch.device("cpu"))(ids, logits.expand(2000, -1).clone())
        rates = torch.bincount(drawn.argmax(1), minlength=4) / 2000
        assert (rates[:3] - logits[:3].div(2).softmax(0)).abs().max() < 0.04
        assert rates[3] == 0
    greedy = RowSampler([GenerationOptions()], torch.device("cpu"))
    assert torch.equal(greedy(NO_IDS, logits[None].clone()), logits[None])


@pytest.mark.parametrize(
    "options",
    [
        {"max_new_tokens": 0},
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"top_p": 0},
        {"top_k": -1},
        {"stop": ("",)},
        {"seed": -1},
        {"guidance_scale": -1},
        {"n_beams": 2},
    ],
)
def test_bad_options_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        GenerationOptions.model_validate(options)
