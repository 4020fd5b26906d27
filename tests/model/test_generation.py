"""What ends an answer, what a language model's own options change, and the limit of positions."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
)

from mindllm.language.conversation import build_conversation
from mindllm.model.configuration import MindLLMConfig
from mindllm.model.language_model import load_language_model
from mindllm.model.modeling import MindLLM
from mindllm.utils.errors import InputError

Load = Callable[..., MindLLM]
LLAMA3 = (
    "{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
PLAIN = "{% for m in messages %}### {{ m.role }}:\n{{ m.content }}\n###\n\n{% endfor %}"


class Say(LogitsProcessor):
    """Makes a language model say a text, and go on with another."""

    def __init__(self, tokenizer: Any, text: str) -> None:
        self.ids = tokenizer(text, add_special_tokens=False)["input_ids"]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        forced = torch.full_like(scores, -torch.inf)
        forced[:, self.ids[min(input_ids.shape[1], len(self.ids) - 1)]] = 0
        return forced


@pytest.fixture
def load(tiny_llm_folder: Path, tiny_config: MindLLMConfig, tmp_path: Path) -> Load:
    """Load the tiny language model with another template or other options of its own."""

    def load_model(
        template: str | None = None, controls: tuple[str, ...] = (), **generation: Any
    ) -> MindLLM:
        model = AutoModelForCausalLM.from_pretrained(tiny_llm_folder)
        tokenizer = AutoTokenizer.from_pretrained(tiny_llm_folder)
        if template:
            tokenizer.chat_template = template
            tokenizer.add_special_tokens({"additional_special_tokens": list(controls)})
            model.resize_token_embeddings(len(tokenizer))
        model.generation_config = GenerationConfig(**generation)
        model.save_pretrained(tmp_path / "llm")
        tokenizer.save_pretrained(tmp_path / "llm")
        torch.manual_seed(1)
        return MindLLM(tiny_config, {}, load_language_model(tmp_path / "llm")).eval()

    return load_model


def say(model: MindLLM, text: str, **options: Any) -> str:
    """What is returned where the language model says a text."""
    processors = LogitsProcessorList([Say(model.language_model.tokenizer, text)])
    tokens = torch.zeros(1, 3, 8)
    (answer,) = model.generate(
        tokens, [build_conversation("What?")], logits_processor=processors, **options
    )
    return answer


def test_an_answer_ends_where_the_template_closes_a_turn(load: Load) -> None:
    model = load(LLAMA3, ("<|start|>", "<|eot|>"))
    assert say(model, "a dog<|eot|><|start|>user\nand a cat") == "a dog"
    assert say(model, "a dog<|im_end|>a cat") == "a dog", "the configuration's end counts as well"


def test_an_answer_ends_at_each_end_of_the_own_options(load: Load) -> None:
    model = load(eos_token_id=[1, 0])
    assert say(model, "a dog<|im_start|>a cat") == "a dog"


def test_an_answer_ends_at_a_text_that_closes_a_turn(load: Load) -> None:
    model = load(PLAIN)
    assert say(model, "a dog\n###\n\n### user:\nand a cat") == "a dog"


def test_streamed_text_ends_likewise_and_thoughts_are_left_out(load: Load) -> None:
    model, pieces = load(LLAMA3, ("<|start|>", "<|eot|>")), []
    say(model, "a dog<|eot|>a cat", on_text=pieces.append)
    assert "".join(pieces) == "a dog"
    assert say(model, "<think>An animal.</think> a dog<|eot|>") == "a dog"


def test_options_that_come_with_a_language_model_change_nothing(load: Load) -> None:
    tokens, turns = torch.randn(2, 3, 8), [build_conversation("What?")] * 2
    plain = load().generate(tokens, turns)
    own = {
        "repetition_penalty": 3.0,
        "no_repeat_ngram_size": 2,
        "do_sample": True,
        "temperature": 5.0,
        "max_new_tokens": 2,
        "num_beams": 3,
    }
    model = load(**own)
    assert model.generate(tokens, turns) == plain
    assert model.generate(tokens, turns, repetition_penalty=3.0) != plain, "but the user's do"


def test_answers_are_cut_at_the_limit_of_positions(
    load: Load, caplog: pytest.LogCaptureFixture
) -> None:
    model, tokens = load(), torch.randn(1, 3, 8)
    length = len(model.processor(build_conversation("x"), generate=True).input_ids)
    question = "x" * (256 - length - 5)
    turns = build_conversation(question)
    assert len(model.processor(turns, generate=True).input_ids) == 250
    (text,) = model.generate(tokens, [turns])
    assert "cut at 6 tokens instead of 48: the prompt has 250" in caplog.text
    assert "at most 256" in caplog.text
    ratio = model.log_likelihood_ratio(tokens, [build_conversation(question, text * 5)])
    assert ratio.isfinite().all()
    assert "an answer is cut: 256 tokens of" in caplog.text
    with pytest.raises(InputError, match=r"has 268 tokens, 3 of them for the scan"):
        model.score_candidates(tokens, ["a very long answer"], question)
    full = build_conversation("x" * (256 - length + 1))
    with pytest.raises(InputError, match=r"a prompt has 256 tokens.*at most 256: no room"):
        model.generate(tokens, [full])
