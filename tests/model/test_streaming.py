"""Requests that are answered together, streamed, stopped and cancelled."""

import threading
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from transformers import LogitsProcessor, LogitsProcessorList, TextIteratorStreamer

from mindllm.language.conversation import Conversation, build_conversation
from mindllm.model import streaming
from mindllm.model.language_model import load_language_model
from mindllm.model.modeling import MindLLM
from mindllm.model.sampling import GenerationOptions, RowSampler
from mindllm.model.streaming import (
    GenerationRequest,
    TextStream,
    answer_requests,
)
from mindllm.utils.errors import InputError

DIALOGUE: Conversation = [
    {"role": "user", "content": "<fMRI>\nIs there an animal?"},
    {"role": "assistant", "content": "yes"},
    {"role": "user", "content": "Which one is it, and what does it do?"},
]
CONVERSATIONS = [
    build_conversation("What?"),
    build_conversation("a red car on the beach", fmri_first=True),
    DIALOGUE,
    [{"role": "system", "content": "a dog"}, *build_conversation("Who is it?")],
]


@pytest.fixture
def tokens() -> torch.Tensor:
    torch.manual_seed(3)
    return torch.randn(len(CONVERSATIONS), 3, 8)


def requests_of(tokens: torch.Tensor, *options: GenerationOptions) -> list[GenerationRequest]:
    chosen = options if len(options) > 1 else options * len(CONVERSATIONS)
    return [
        GenerationRequest(row, turns, option)
        for row, turns, option in zip(tokens, CONVERSATIONS, chosen, strict=True)
    ]


@pytest.fixture
def say(monkeypatch: pytest.MonkeyPatch) -> Callable[[MindLLM, str], None]:
    """Make the language model say a text, and repeat its last token."""

    def force(model: MindLLM, text: str) -> None:
        ids = model.language_model.tokenizer(text, add_special_tokens=False)["input_ids"]

        class Forced(LogitsProcessor):
            def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
                forced = torch.full_like(scores, -torch.inf)
                forced[:, ids[min(input_ids.shape[1], len(ids) - 1)]] = 0
                return forced

        def make(options: object, device: object) -> LogitsProcessor:
            return Forced()

        monkeypatch.setattr(streaming, "RowSampler", make)

    return force


def test_requests_in_one_batch_get_the_text_that_each_gets_alone(
    tiny_model: MindLLM, tokens: torch.Tensor
) -> None:
    lengths = [GenerationOptions(max_new_tokens=n) for n in (9, 4, 12, 7)]
    requests = requests_of(tokens, *lengths)
    together = answer_requests(tiny_model, requests)
    assert together == [answer_requests(tiny_model, [request])[0] for request in requests]
    for answer, row, turns, option in zip(together, tokens, CONVERSATIONS, lengths, strict=True):
        text = tiny_model.generate(row[None], [turns], max_new_tokens=option.max_new_tokens)
        assert text == [answer.text]
        assert answer.prompt_tokens == len(tiny_model.processor(turns, generate=True).input_ids)
        assert answer.completion_tokens <= option.max_new_tokens
    assert {answer.finish_reason for answer in together} <= {"stop", "length"}
    assert len({answer.text for answer in together}) > 1


def test_families_that_cannot_pad_answer_likewise(
    tiny_model: MindLLM, tokens: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = requests_of(tokens, GenerationOptions(max_new_tokens=6))
    padded = answer_requests(tiny_model, requests)
    monkeypatch.setattr(
        streaming, "group_prompts", lambda prompts, pad: [[i] for i in range(len(prompts))]
    )
    assert answer_requests(tiny_model, requests) == padded


def test_seeds_belong_to_requests(tiny_model: MindLLM, tokens: torch.Tensor) -> None:
    options = [GenerationOptions(max_new_tokens=8, temperature=1.5, seed=n) for n in range(4)]
    state = torch.random.get_rng_state()
    requests = requests_of(tokens, *options)
    first, again = answer_requests(tiny_model, requests), answer_requests(tiny_model, requests)
    alone = answer_requests(tiny_model, requests[2:3])
    assert first == again
    assert first[2:3] == alone
    assert torch.equal(torch.random.get_rng_state(), state), "the global state is not touched"
    greedy = answer_requests(tiny_model, requests_of(tokens, GenerationOptions(max_new_tokens=8)))
    assert [a.text for a in greedy] != [a.text for a in first]


def test_a_stop_string_ends_an_answer_and_is_never_streamed(
    tiny_model: MindLLM, tokens: torch.Tensor, say: Callable[[MindLLM, str], None]
) -> None:
    say(tiny_model, "a dog runs on the#beach END of it")
    options, pieces = GenerationOptions(stop=("END", "# ")), []
    request = GenerationRequest(tokens[0], CONVERSATIONS[0], options, pieces.append)
    (answer,) = answer_requests(tiny_model, [request])
    assert (answer.text, answer.finish_reason) == ("a dog runs on the#beach", "stop")
    assert "".join(pieces) == answer.text
    assert len(pieces) > 5
    for start, end in pairwise(range(len(pieces) + 1)):
        assert "END" not in "".join(pieces[start:end])


def test_thoughts_and_half_characters_are_not_streamed(
    tiny_model: MindLLM, tokens: torch.Tensor, say: Callable[[MindLLM, str], None]
) -> None:
    say(tiny_model, "<think>An animal?</think> a dög 🐕<|im_end|>")
    pieces: list[str] = []
    request = GenerationRequest(tokens[0], CONVERSATIONS[0], on_text=pieces.append)
    (answer,) = answer_requests(tiny_model, [request])
    assert answer.text == "".join(pieces) == "a dög 🐕"
    assert all("\ufffd" not in piece for piece in pieces)
    assert answer.finish_reason == "stop"
    ids = tiny_model.language_model.tokenizer("<think>An animal?</think> a dög 🐕")["input_ids"]
    assert answer.completion_tokens == len(ids) + 1, "with the token that ends it"


def test_a_thread_streams_what_generate_returns(tiny_model: MindLLM, tokens: torch.Tensor) -> None:
    with TextStream(
        tiny_model, tokens[0], CONVERSATIONS[0], GenerationOptions(max_new_tokens=9)
    ) as stream:
        pieces = list(stream)
    assert "".join(pieces) == stream.result.text
    assert [stream.result.text] == tiny_model.generate(
        tokens[:1], CONVERSATIONS[:1], max_new_tokens=9
    )
    assert list(stream) == [], "it is read once"


def test_what_goes_wrong_in_the_thread_is_raised_where_it_is_read(tiny_model: MindLLM) -> None:
    stream = TextStream(tiny_model, torch.zeros(2, 8), CONVERSATIONS[0])
    with pytest.raises(InputError, match=r"request 0: fMRI tokens of shape \(2, 8\); expected"):
        list(stream)
    with pytest.raises(InputError, match=r"expected \(3, 8\)"):
        _ = stream.result


def test_one_of_several_answers_is_cancelled(
    tiny_model: MindLLM, tokens: torch.Tensor, say: Callable[[MindLLM, str], None]
) -> None:
    say(tiny_model, "abcdefghijklmnop")
    cancelled, pieces = threading.Event(), []

    def hear(piece: str) -> None:
        pieces.append(piece)
        if len(pieces) == 3:
            cancelled.set()

    options = GenerationOptions(max_new_tokens=12)
    requests = [
        GenerationRequest(tokens[0], CONVERSATIONS[0], options, hear, cancelled),
        GenerationRequest(tokens[1], CONVERSATIONS[1], options),
    ]
    first, second = answer_requests(tiny_model, requests)
    assert (first.finish_reason, first.completion_tokens) == ("cancelled", 4)
    assert (second.finish_reason, second.completion_tokens) == ("length", 12)
    assert second.text.startswith(first.text)


def test_leaving_the_block_cancels(tiny_model: MindLLM, tokens: torch.Tensor) -> None:
    options = GenerationOptions(max_new_tokens=200, temperature=1.0, seed=5)
    with TextStream(tiny_model, tokens[0], CONVERSATIONS[0], options) as stream:
        next(iter(stream))
    assert stream.result.finish_reason in ("cancelled", "stop")
    assert stream.result.completion_tokens < 200


def test_no_answer_is_cut_for_anothers_sake(
    tiny_model: MindLLM, tokens: torch.Tensor, say: Callable[[MindLLM, str], None]
) -> None:
    say(tiny_model, "a")
    long = build_conversation("x" * 200)
    options = GenerationOptions(max_new_tokens=60)
    requests = [
        GenerationRequest(tokens[0], CONVERSATIONS[0], options),
        GenerationRequest(tokens[1], long, options),
    ]
    short_answer, long_answer = answer_requests(tiny_model, requests)
    assert short_answer.completion_tokens == 60
    assert long_answer.prompt_tokens + long_answer.completion_tokens == 256
    assert long_answer.finish_reason == "length"


def test_streamers_of_transformers_are_taken(
    tiny_llm_folder: Path, tiny_model: MindLLM, tokens: torch.Tensor
) -> None:
    tokenizer = load_language_model(tiny_llm_folder).tokenizer
    streamer = TextIteratorStreamer(tokenizer, skip_special_tokens=True, timeout=60)
    (text,) = tiny_model.generate(
        tokens[:1], CONVERSATIONS[:1], streamer=streamer, max_new_tokens=9
    )
    assert "".join(streamer).strip() == text
    with pytest.raises(InputError, match="both take text"):
        tiny_model.generate(tokens[:1], CONVERSATIONS[:1], print, streamer=streamer)
    with pytest.raises(InputError, match="text of 2 conversations cannot be streamed as one"):
        tiny_model.generate(tokens[:2], CONVERSATIONS[:2], streamer=streamer)


def test_processors_of_transformers_still_apply(tiny_model: MindLLM, tokens: torch.Tensor) -> None:
    processors = LogitsProcessorList([RowSampler([GenerationOptions()], tiny_model.device)])
    plain = tiny_model.generate(tokens[:1], CONVERSATIONS[:1], max_new_tokens=5)
    assert plain == tiny_model.generate(
        tokens[:1], CONVERSATIONS[:1], max_new_tokens=5, logits_processor=processors
    )
