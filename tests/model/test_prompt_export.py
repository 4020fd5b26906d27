"""Prompts for serving engines: what a server reads is what the model's own forward reads."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from mindllm.data.store import Store
from mindllm.language.conversation import Conversation, build_conversation
from mindllm.model.language_model import load_language_model
from mindllm.model.modeling import MindLLM
from mindllm.model.prompt_export import (
    RequestOptions,
    build_body,
    embed_prompts,
    embed_scan,
    export_language_model,
    write_prompts,
)
from mindllm.utils.errors import InputError

DIALOGUE: Conversation = [
    {"role": "user", "content": "<fMRI>\nIs there an animal?"},
    {"role": "assistant", "content": "yes"},
    {"role": "user", "content": "Which one?"},
]
CONVERSATIONS = [build_conversation("What?"), DIALOGUE]


@pytest.fixture
def tokens() -> torch.Tensor:
    torch.manual_seed(3)
    return torch.randn(2, 3, 8)


class Engine:
    """What vLLM does with a request, by transformers: load the embeddings, continue them."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder)

    @staticmethod
    def decode(text: str) -> torch.Tensor:
        data = base64.b64decode(text, validate=True)
        tensor = torch.load(io.BytesIO(data), weights_only=True)
        assert tensor.ndim == 2
        return tensor

    def read(self, request: dict[str, Any]) -> torch.Tensor:
        """Embeddings (L, hidden_size) of the prompt of a request."""
        body, embed = request["body"], self.model.get_input_embeddings()
        if request["url"] == "/v1/completions":
            return self.decode(body["prompt_embeds"])
        assert request["url"] == "/v1/chat/completions"
        parts = {
            i: self.decode(part["data"])
            for i, turn in enumerate(body["messages"])
            if not isinstance(turn["content"], str)
            for part in turn["content"]
            if part["type"] == "prompt_embeds"
        }
        ((turn, tensor),) = parts.items()
        messages = [dict(message) for message in body["messages"]]
        messages[turn]["content"] = "\ue000"
        text = self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, **body["chat_template_kwargs"]
        )
        before, after = text.split("\ue000")
        ends = [
            embed(torch.tensor(self.tokenizer(end, add_special_tokens=False)["input_ids"]).long())
            for end in (before, after)
        ]
        return torch.cat([ends[0], tensor.to(ends[0].dtype), ends[1]])

    @torch.no_grad()
    def answer(self, request: dict[str, Any]) -> str:
        body = request["body"]
        assert body["temperature"] == 0
        ids = self.model.generate(
            inputs_embeds=self.read(request)[None].to(self.model.dtype),
            max_new_tokens=body["max_tokens"],
            eos_token_id=body["stop_token_ids"],
            do_sample=False,
        )
        return self.tokenizer.decode(ids[0], skip_special_tokens=True).strip()


def requests_in(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("api", ["completions", "chat"])
def test_an_engine_answers_as_the_model_does(
    tiny_model: MindLLM, tokens: torch.Tensor, tiny_llm_folder: Path, tmp_path: Path, api: Any
) -> None:
    prompts = embed_prompts(tiny_model, tokens, CONVERSATIONS, torch.float32)
    options = RequestOptions("tiny", api, 9)
    write_prompts(tiny_model, prompts, tmp_path / "prompts.jsonl", options)
    engine, requests = Engine(tiny_llm_folder), requests_in(tmp_path / "prompts.jsonl")
    assert [request["custom_id"] for request in requests] == ["volume-0", "volume-1"]
    assert all(request["body"]["model"] == "tiny" for request in requests)
    texts = tiny_model.generate(tokens, CONVERSATIONS, max_new_tokens=9)
    assert [engine.answer(request) for request in requests] == texts
    for request, row, turns in zip(requests, tokens, CONVERSATIONS, strict=True):
        encoded = tiny_model.processor(turns, generate=True)
        expected = tiny_model.prepare_inputs_embeds(
            torch.as_tensor(encoded.input_ids)[None],
            torch.as_tensor(encoded.fmri_token_positions)[None],
            row[None],
        )
        torch.testing.assert_close(engine.read(request), expected[0], rtol=0, atol=0)


def test_half_precision_and_tensors(
    tiny_model: MindLLM, tokens: torch.Tensor, tmp_path: Path
) -> None:
    prompts = embed_prompts(tiny_model, tokens, CONVERSATIONS)
    body = build_body(tiny_model, prompts[0], RequestOptions("tiny"))
    assert Engine.decode(str(body["prompt_embeds"])).dtype == torch.bfloat16
    write_prompts(tiny_model, prompts, tmp_path / "p.safetensors", RequestOptions("tiny"))
    tensors = load_file(tmp_path / "p.safetensors")
    assert {name: tensor.dtype for name, tensor in tensors.items()} == {
        "volume-0": torch.bfloat16,
        "volume-1": torch.bfloat16,
    }
    assert torch.equal(tensors["volume-1"], prompts[1].prompt)
    with pytest.raises(InputError, match="already exists"):
        write_prompts(tiny_model, prompts, tmp_path / "p.safetensors", RequestOptions("tiny"))
    with pytest.raises(InputError, match=r"expected a file that ends in .jsonl or .safetensors"):
        write_prompts(tiny_model, prompts, tmp_path / "p.json", RequestOptions("tiny"))


def test_volumes_of_a_scan(tiny_model: MindLLM, tiny_store: Store) -> None:
    masker = tiny_store.masker("sub-01")
    betas = tiny_store.betas("sub-01", range(10), standardize=True)
    prompts = embed_scan(
        tiny_model,
        masker.inverse_transform(betas),
        masker,
        volumes=[3, 0],
        standardized=True,
        dtype=torch.float32,
    )
    assert [prompt.custom_id for prompt in prompts] == ["volume-3", "volume-0"]
    conversation = tiny_model.build_conversation()
    (expected,) = embed_prompts(
        tiny_model, tiny_model.encode(betas[3:4], masker), [conversation], torch.float32
    )
    torch.testing.assert_close(prompts[0].prompt, expected.prompt, rtol=1e-4, atol=1e-5)


def test_a_turn_that_runs_into_the_template_is_refused(
    tiny_model: MindLLM, tokens: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = tiny_model.processor.chat_template.data_tokenizer
    original = tokenizer.tokenize
    monkeypatch.setattr(
        tokenizer,
        "tokenize",
        lambda text, *spans: original(text if spans else text + "!", *spans),
    )
    with pytest.raises(InputError, match="joins a turn with the chat template around it"):
        embed_prompts(tiny_model, tokens[:1], CONVERSATIONS[:1])


def test_a_named_template_is_for_completions_alone(
    tiny_model: MindLLM, tokens: torch.Tensor
) -> None:
    prompts = embed_prompts(tiny_model, tokens[:1], CONVERSATIONS[:1])
    tiny_model.chat_template = "vicuna"
    with pytest.raises(InputError, match="'vicuna', which the engine does not know"):
        build_body(tiny_model, prompts[0], RequestOptions("tiny", "chat"))
    assert build_body(tiny_model, prompts[0], RequestOptions("tiny"))["prompt_embeds"]


@pytest.mark.parametrize("has_adapter", [True, False])
def test_the_written_language_model_is_the_one_with_the_adapter(
    tiny_model: MindLLM, tokens: torch.Tensor, tmp_path: Path, has_adapter: bool
) -> None:
    language_model = tiny_model.language_model.model
    if has_adapter:
        language_model.add_adapter(LoraConfig(r=2, target_modules=["q_proj", "down_proj"]))
        for name, parameter in language_model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.5)
        language_model.requires_grad_(False)
    tiny_model.save_pretrained(tmp_path / "model")
    is_merged = export_language_model(tmp_path / "model", tmp_path / "merged", dtype=torch.float32)
    assert is_merged == has_adapter
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert not any("lora" in name for name, _ in merged.named_parameters())
    ids = torch.arange(2, 30)[None]
    with torch.no_grad():
        expected, found = language_model(input_ids=ids).logits, merged(input_ids=ids).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    prompts = embed_prompts(tiny_model, tokens, CONVERSATIONS, torch.float32)
    write_prompts(tiny_model, prompts, tmp_path / "p.jsonl", RequestOptions("tiny", "chat", 9))
    answers = [Engine(tmp_path / "merged").answer(r) for r in requests_in(tmp_path / "p.jsonl")]
    assert answers == tiny_model.generate(tokens, CONVERSATIONS, max_new_tokens=9)
    with pytest.raises(InputError, match="already exists"):
        export_language_model(tmp_path / "model", tmp_path / "merged")


def test_another_language_model_is_refused(tiny_model: MindLLM, tmp_path: Path) -> None:
    tiny_model.save_pretrained(tmp_path / "model")
    other = load_language_model(tiny_model.language_model.name).model
    torch.nn.init.normal_(other.get_input_embeddings().weight)
    other.save_pretrained(tmp_path / "other")
    tiny_model.language_model.tokenizer.save_pretrained(tmp_path / "other")
    with pytest.raises(InputError, match=r"is not the one that .* was trained with"):
        export_language_model(tmp_path / "model", tmp_path / "out", tmp_path / "other")
    assert not (tmp_path / "out").exists()
