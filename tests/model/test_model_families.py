"""Families of causal models: likelihoods and text are those of the model's own forward, or told."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from mindllm.language.conversation import build_conversation
from mindllm.model import candidates, shortcuts
from mindllm.model.candidates import prompt_log_likelihood
from mindllm.model.configuration import MindLLMConfig
from mindllm.model.language_model import FrozenLanguageModel, load_language_model
from mindllm.model.modeling import MindLLM
from mindllm.model.processing import IGNORE_INDEX, EncodedPrompt
from mindllm.model.text_embeddings import embed_texts
from mindllm.utils.errors import InputError

ANSWERS = ["a dog runs", "a dog", "two women sing a song", "a cat"]
QUESTIONS = ["What?", "Which animal is it, please?"]
# Weights are large, so that a wrong mask or scale is seen in the logits.
SIZES = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
GPT_SIZES = {
    "vocab_size": 320,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 256,
    "initializer_range": 0.3,
}
STATE_SIZES = {
    "vocab_size": 320,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "state_size": 8,
    "initializer_range": 0.3,
}
MIXED_LAYERS = ["sliding_attention", "full_attention"]
GEMMA3 = SIZES | {"head_dim": 8, "sliding_window": 16, "layer_types": MIXED_LAYERS}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": SIZES,
    "gpt2": GPT_SIZES,
    "gpt_neo": {
        "vocab_size": 320, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "window_size": 80,
        "attention_types": [[["global", "local"], 1]], "max_position_embeddings": 256,
        "initializer_range": 0.3,
    },
    "gptj": GPT_SIZES | {"rotary_dim": 4},
    "opt": SIZES | {"ffn_dim": 64, "word_embed_proj_dim": 32, "init_std": 0.3},
    "bloom": {
        "vocab_size": 320, "hidden_size": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.3,
    },
    "mpt": {"vocab_size": 320, "d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 256},
    "falcon": SIZES | {"alibi": False},
    "mistral": SIZES | {"sliding_window": 8},
    "qwen2": SIZES,
    "qwen3": SIZES | {"head_dim": 8},
    "gemma2": SIZES | {"head_dim": 8, "sliding_window": 128, "query_pre_attn_scalar": 8},
    "gemma3_text": GEMMA3,
    "gemma3": {
        "text_config": GEMMA3,
        "vision_config": {
            "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
            "num_attention_heads": 2, "image_size": 28, "patch_size": 14,
        },
        "mm_tokens_per_image": 4, "image_token_index": 5, "boi_token_index": 6,
        "eoi_token_index": 7,
    },
    "granite": SIZES | {"logits_scaling": 4.0, "embedding_multiplier": 3.0},
    "cohere": SIZES | {"logit_scale": 0.25},
    "phi3": SIZES,
    "gpt_oss": SIZES | {
        "head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8,
        "layer_types": MIXED_LAYERS,
    },
    "llama4_text": SIZES | {
        "head_dim": 8, "num_local_experts": 2, "intermediate_size_mlp": 64,
        "attention_chunk_size": 16,
    },
    "lfm2": SIZES | {"layer_types": ["conv", "full_attention"]},
    "mamba": STATE_SIZES,
    "mamba2": STATE_SIZES | {"num_heads": 8, "head_dim": 8, "n_groups": 1},
    "bamba": SIZES | {
        "attn_layer_indices": [1], "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8,
    },
    "rwkv": {
        "vocab_size": 320, "hidden_size": 32, "num_hidden_layers": 2, "attention_hidden_size": 32,
    },
}  # fmt: skip
WITHOUT_TREE = {"bloom", "mpt", "mistral", "gemma3_text", "gemma3", "gpt_oss", "lfm2", "mamba",
                "mamba2", "bamba", "rwkv", "llama4_text"}  # fmt: skip
Make = Callable[..., MindLLM]


@pytest.fixture
def make(tiny_llm_folder: Path, tiny_config: MindLLMConfig) -> Make:
    """Make a random model of a family, its tokens much larger than words."""

    def make_model(family: str, attention: str | None = None, **options: Any) -> MindLLM:
        torch.manual_seed(0)
        config = AutoConfig.for_model(family, **FAMILIES[family] | options)
        arguments = {"attn_implementation": attention} if attention else {}
        language_model = AutoModelForCausalLM.from_config(config, **arguments).eval()
        tokenizer = AutoTokenizer.from_pretrained(tiny_llm_folder)
        torch.manual_seed(1)
        frozen = FrozenLanguageModel(family, language_model, tokenizer)
        return MindLLM(tiny_config, {}, frozen).eval()

    return make_model


def embed(model: MindLLM, prompt: EncodedPrompt, tokens: torch.Tensor) -> torch.Tensor:
    """What the language model reads of one prompt and trial."""
    ids = torch.from_numpy(prompt.input_ids)[None]
    positions = torch.from_numpy(prompt.fmri_token_positions)[None]
    return model.prepare_inputs_embeds(ids, positions, tokens[None])


@torch.no_grad()
def forward_log_likelihood(
    model: MindLLM, prompt: EncodedPrompt, tokens: torch.Tensor
) -> torch.Tensor:
    """By the language model's untouched forward: one text, no padding, no cache."""
    logits = model.language_model.model(inputs_embeds=embed(model, prompt, tokens)).logits[0]
    labels = torch.from_numpy(prompt.labels)[1:]
    counted = labels != IGNORE_INDEX
    return -F.cross_entropy(logits[:-1][counted].float(), labels[counted], reduction="sum")


@torch.no_grad()
def forward_text(model: MindLLM, prompt: EncodedPrompt, tokens: torch.Tensor, n: int) -> str:
    """The likeliest tokens by the language model's untouched forward, read anew for each."""
    language_model, ids = model.language_model.model, []
    embeds = embed(model, prompt, tokens)
    while len(ids) < n:
        token = language_model(inputs_embeds=embeds).logits[0, -1].argmax()
        if int(token) == 1:
            break
        ids.append(int(token))
        word = language_model.get_input_embeddings()(token[None, None])
        embeds = torch.cat([embeds, word], 1)
    return model.language_model.tokenizer.decode(ids, skip_special_tokens=True).strip()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_likelihoods_and_text_are_those_of_the_own_forward(
    make: Make, family: str, attention: str
) -> None:
    try:
        model = make(family, attention)
    except ValueError as error:
        if isinstance(error, InputError) or "scaled_dot_product_attention" not in str(error):
            raise
        pytest.skip("this family has no such attention")
    tokens = 3 * torch.randn(2, 3, 8)
    prompts = [model.processor(build_conversation(answer=text)) for text in ANSWERS]
    expected = torch.stack(
        [torch.stack([forward_log_likelihood(model, p, t) for p in prompts]) for t in tokens]
    )
    together = model.score_candidates(tokens, ANSWERS, build_conversation()[0]["content"])
    torch.testing.assert_close(together, expected, atol=1e-3, rtol=0)
    alone = [
        model.score_candidates(tokens[:1], [text], build_conversation()[0]["content"])
        for text in ANSWERS
    ]
    torch.testing.assert_close(torch.cat(alone, 1), expected[:1], atol=1e-3, rtol=0)
    with torch.no_grad():
        rows, _ = prompt_log_likelihood(model, tokens[:1].expand(4, -1, -1), prompts)
    torch.testing.assert_close(rows, expected[0], atol=1e-3, rtol=0)
    assert model.language_model.shortcuts.token_tree == (family not in WITHOUT_TREE)

    asked = [build_conversation(question) for question in QUESTIONS]
    texts = [
        forward_text(model, model.processor(turns, generate=True), row, 8)
        for turns, row in zip(asked, tokens, strict=True)
    ]
    assert model.generate(tokens, asked, max_new_tokens=8) == texts
    assert len(embed_texts(model.language_model, ANSWERS)) == 4


def test_gradients_are_those_of_the_own_forward(make: Make) -> None:
    for family in ("llama", "gemma2", "lfm2", "mamba"):
        model = make(family)
        tokens = torch.randn(3, 8, requires_grad=True)
        prompts = [model.processor(build_conversation(answer=text)) for text in ANSWERS[:2]]
        sums, _ = prompt_log_likelihood(model, tokens.expand(2, -1, -1), prompts)
        (gradient,) = torch.autograd.grad(sums.sum(), tokens)
        logits = [
            model.language_model.model(inputs_embeds=embed(model, p, tokens)).logits[0, :-1]
            for p in prompts
        ]
        labels = [torch.from_numpy(p.labels)[1:] for p in prompts]
        loss = F.cross_entropy(torch.cat(logits), torch.cat(labels), reduction="sum")
        (expected,) = torch.autograd.grad(-loss, tokens)
        torch.testing.assert_close(gradient, expected, atol=1e-3, rtol=1e-3)


def test_a_window_longer_than_the_text_takes_a_tree(make: Make) -> None:
    tokens, scores = torch.randn(2, 3, 8), []
    for window in (200, 70, 60, 8):  # of 45 tokens and a tree of 30
        model = make("mistral", sliding_window=window)
        assert model.language_model.shortcuts.token_tree == (window > 8)
        prompts = [model.processor(model.build_conversation(None, text)) for text in ANSWERS]
        scores.append(model.score_candidates(tokens, ANSWERS))
        expected = [[forward_log_likelihood(model, p, t) for p in prompts] for t in tokens]
        np.testing.assert_allclose(scores[-1], expected, atol=1e-3)
    assert (scores[0] - scores[-1]).abs().max() > 0.01


@pytest.mark.parametrize("nodes", [1, 30, 55])
def test_many_candidates_are_read_as_several_trees(
    make: Make, nodes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokens = make("llama"), torch.randn(3, 3, 8)
    together = model.score_candidates(tokens, ANSWERS)
    monkeypatch.setattr(candidates, "MAX_LOGITS", 320 * 3 * nodes)
    monkeypatch.setattr(candidates, "ROWS_AT_ONCE", 3)
    torch.testing.assert_close(model.score_candidates(tokens, ANSWERS), together, atol=1e-4, rtol=0)


def test_short_cuts_are_found_in_half_precision(tiny_llm_folder: Path) -> None:
    found = load_language_model(tiny_llm_folder, dtype=torch.bfloat16).shortcuts
    assert found == shortcuts.Shortcuts(True, True, True, True, True)


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("bert", SIZES),
        ("xlnet", {"vocab_size": 320, "d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 64}),
    ],
)
def test_what_is_not_causal_is_refused(
    make: Make, family: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FAMILIES, family, options)
    with pytest.raises(
        InputError,
        match=rf"language model {family} cannot be used: it does not read from left to right .*"
        "expected at most 0.001.*Choose another causal language model",
    ):
        make(family)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(
    tiny_llm_folder: Path, tmp_path: Path, value: float
) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_llm_folder)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 4] = value
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny_llm_folder).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"1 of 2048 weights of model.layers.1.mlp.up_proj.weight"):
        load_language_model(tmp_path)
