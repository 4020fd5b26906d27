"""Options of a training that concern the language model, each on a tiny one."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from transformers.models.llama.modeling_llama import LlamaMLP

from mindllm.data.store import Store
from mindllm.model.checkpoint import fingerprint
from mindllm.model.language_model import load_language_model
from mindllm.model.modeling import MindLLM
from mindllm.training import tuning
from mindllm.training.configuration import StageConfig, TrainConfig
from mindllm.training.trainer import Trainer, train
from mindllm.utils.errors import InputError
from tests.conftest import TEXTS
from tests.training.test_accumulation import CALM, gradients_of_a_step
from tests.training.test_accumulation import options as calm_options
from tests.training.test_loggers import stop_at
from tests.training.test_lora import LORA, adapter_weights
from tests.training.test_trainer import Killed, options, same, weights

STAGE = "instruction_tuning"
needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)


def language_model_weights(model: MindLLM) -> dict[str, torch.Tensor]:
    parameters = model.language_model.model.named_parameters()
    return {name: parameter.detach().clone() for name, parameter in parameters}


# All weights.


@pytest.fixture(scope="module")
def tuned(
    tmp_path_factory: pytest.TempPathFactory, tiny_store: Store, tiny_llm_folder: Path
) -> Path:
    """A model folder after ten steps, four of which train the language model too."""
    out = tmp_path_factory.mktemp("tuned") / "model"
    train(tiny_store, out, options(tiny_llm_folder, train_language_model=True))
    return out


def test_a_trained_language_model_is_kept_and_loaded(
    tmp_path: Path, tiny_llm_folder: Path, tuned: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = MindLLM.from_pretrained(tuned)
    assert "differs" not in caplog.text
    base = AutoModelForCausalLM.from_pretrained(tiny_llm_folder, dtype=torch.float32)
    before, after = dict(base.named_parameters()), language_model_weights(model)
    assert before.keys() == after.keys()
    assert not any(torch.equal(before[name], after[name]) for name in before)
    assert model.language_model.name == str(tiny_llm_folder)
    plain = AutoModelForCausalLM.from_pretrained(tuned / "language_model", dtype=torch.float32)
    assert same(dict(plain.named_parameters()), after)
    model.save_pretrained(tmp_path / "copy")
    assert same(language_model_weights(MindLLM.from_pretrained(tmp_path / "copy")), after)
    with pytest.raises(InputError, match=r"holds a language model of its own.*Leave .* out"):
        MindLLM.from_pretrained(tuned, language_model=tiny_llm_folder)


def test_a_trained_language_model_resumes_to_the_same_weights(
    tmp_path: Path,
    tiny_store: Store,
    tiny_llm_folder: Path,
    tuned: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = options(tiny_llm_folder, train_language_model=True, save_steps=1)
    stop_at(8, monkeypatch)
    with pytest.raises(Killed):
        train(tiny_store, tmp_path / "model", config)
    monkeypatch.undo()
    train(tiny_store, tmp_path / "model", config, resume=True)
    models = [MindLLM.from_pretrained(folder) for folder in (tuned, tmp_path / "model")]
    assert same(*(language_model_weights(model) for model in models))
    assert same(weights(tuned), weights(tmp_path / "model"))


def test_a_trained_language_model_is_trained_further(
    tmp_path: Path, tiny_store: Store, tuned: Path
) -> None:
    tuning_options = StageConfig(max_steps=2, batch_size=8)
    common: Any = {"init_from": str(tuned), "instruction_tuning": tuning_options}
    before = language_model_weights(MindLLM.from_pretrained(tuned))
    for name, trained in (("on", True), ("off", False)):
        config = TrainConfig(**common, train_language_model=trained, encoding_model=None)
        train(tiny_store, tmp_path / name, config)
        after = language_model_weights(MindLLM.from_pretrained(tmp_path / name))
        assert same(before, after) != trained


def test_learning_rates_of_the_language_model(tiny_store: Store, tiny_llm_folder: Path) -> None:
    def rates(**others: Any) -> list[float]:
        trainer = Trainer(tiny_store, tiny_store.subjects, options(tiny_llm_folder, **others))
        trainer.prepare_stage(STAGE)
        assert trainer.optimizer is not None
        return [group["initial_lr"] for group in trainer.optimizer.param_groups]

    assert rates() == [1e-3, 1e-3]
    assert rates(train_language_model=True) == [1e-3, 1e-3, 2e-5]
    assert rates(lora=LORA) == [1e-3, 1e-3, 1e-3]
    assert rates(lora=LORA, language_model_learning_rate=1e-4) == [1e-3, 1e-3, 1e-4]


def test_options_that_cannot_be(tmp_path: Path, tiny_store: Store, tiny_llm_folder: Path) -> None:
    for others, message in (
        ({"train_language_model": True, "lora": {}}, "exclude each other; leave one out"),
        ({"train_language_model": True, "language": 0}, "which has max_steps 0; give it steps"),
        ({"language_model_learning_rate": 1e-5}, "is for a language model that is trained"),
    ):
        with pytest.raises(ValueError, match=message):
            options(tiny_llm_folder, **others)
    with pytest.raises(ValueError, match=r"needs weights in float32.*mixed_precision: bf16"):
        TrainConfig(train_language_model=True, dtype="bfloat16")
    adapted = tmp_path / "adapted"
    train(tiny_store, adapted, options(tiny_llm_folder, 1, 1, lora=LORA, encoding_model=None))
    config = TrainConfig(init_from=str(adapted), train_language_model=True)
    with pytest.raises(InputError, match=r"has a LoRA adapter, beside which"):
        train(tiny_store, tmp_path / "model", config)


# The same gradients in less memory or time.


@pytest.mark.parametrize("lora", [None, LORA])
def test_recomputed_layers_have_the_same_gradients(
    tiny_store: Store, tiny_llm_folder: Path, lora: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_backward, recomputed = [False], [0]
    forward, backward = LlamaMLP.forward, torch.Tensor.backward

    def count_forward(*arguments: Any) -> Any:
        recomputed[0] += is_backward[0]
        return forward(*arguments)

    def mark_backward(*arguments: Any, **others: Any) -> None:
        is_backward[0] = True
        backward(*arguments, **others)
        is_backward[0] = False

    monkeypatch.setattr(LlamaMLP, "forward", count_forward)
    monkeypatch.setattr(torch.Tensor, "backward", mark_backward)

    def step(**others: Any) -> tuple[float, dict[str, torch.Tensor]]:
        config = calm_options(tiny_llm_folder, (8, 8), **CALM, lora=lora, **others)
        return gradients_of_a_step(tiny_store, config, STAGE)

    loss, expected = step()
    assert recomputed == [0]
    again, gradients = step(gradient_checkpointing=True)
    assert recomputed == [2]  # layers
    assert again == pytest.approx(loss, abs=1e-6)
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-6, rtol=1e-4)


def test_layers_that_cannot_be_recomputed(
    tiny_store: Store, tiny_llm_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "checkpointed_layers", lambda model: [])
    config = options(tiny_llm_folder, gradient_checkpointing=True)
    with pytest.raises(InputError, match=r"no layers that can be computed again.*Leave .* out"):
        Trainer(tiny_store, tiny_store.subjects, config)


def test_bfloat16_where_it_is_asked_for_alone(tiny_store: Store, tiny_llm_folder: Path) -> None:
    dtypes: dict[str, torch.dtype] = {}
    config = options(tiny_llm_folder, mixed_precision="bf16", lora=LORA)
    trainer = Trainer(tiny_store, tiny_store.subjects, config)
    language_model = trainer.model.language_model.model
    layers = {
        "keys": trainer.model.encoder.coord_proj[0],
        "memory": trainer.model.encoder.head,
        "mlp": language_model.model.layers[0].mlp,
        "logits": language_model.lm_head,
    }
    for name, layer in layers.items():
        layer.register_forward_hook(
            lambda _layer, _inputs, output, name=name: dtypes.update({name: output.dtype})
        )
    loss_module, optimizer = trainer.prepare_stage(STAGE)
    result = trainer.take_step(STAGE, loss_module, optimizer)
    assert dtypes == {"keys": torch.float32, "mlp": torch.bfloat16, "logits": torch.bfloat16}
    assert {p.dtype for p in trainer.loss_fn.parameters()} == {torch.float32}
    exact = Trainer(tiny_store, tiny_store.subjects, options(tiny_llm_folder, lora=LORA))
    expected = exact.take_step(STAGE, *exact.prepare_stage(STAGE))
    assert result.loss != expected.loss
    assert result.loss == pytest.approx(expected.loss, rel=0.02)
    assert result.grad_norm == pytest.approx(expected.grad_norm, rel=0.1)


def test_without_a_compiler(
    tiny_store: Store, tiny_llm_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(function: Any) -> Any:
        raise RuntimeError("g++ not found")

    monkeypatch.setattr(torch, "compile", fail)
    with pytest.raises(
        InputError, match=r"no compiler works for cpu \(RuntimeError: g\+\+ not found\).*Install"
    ):
        Trainer(tiny_store, tiny_store.subjects, options(tiny_llm_folder, torch_compile=True))


@pytest.mark.slow
def test_a_compiled_language_model_has_the_same_gradients(
    tiny_store: Store, tiny_llm_folder: Path
) -> None:
    plain, compiled = (
        gradients_of_a_step(
            tiny_store,
            calm_options(tiny_llm_folder, (8, 8), **CALM, lora=LORA, torch_compile=is_compiled),
            STAGE,
        )
        for is_compiled in (False, True)
    )
    assert compiled[0] == pytest.approx(plain[0], abs=1e-5)
    for name, gradient in compiled[1].items():
        torch.testing.assert_close(gradient, plain[1][name], atol=1e-5, rtol=1e-3)


# Four bits.


@needs_bitsandbytes
def test_an_adapter_is_trained_on_four_bits(
    tmp_path: Path, tiny_store: Store, tiny_llm_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its gradients are those of the dequantized weights; what is saved is the adapter alone."""
    lora = LORA | {"quantization": "4bit"}
    config = options(tiny_llm_folder, 2, 4, lora=lora, save_steps=1, encoding_model=None)
    model = train(tiny_store, tmp_path / "model", config)
    quantized = model.language_model.model
    assert quantized.is_loaded_in_4bit
    stop_at(4, monkeypatch)
    with pytest.raises(Killed):
        train(tiny_store, tmp_path / "again", config)
    monkeypatch.undo()
    again = train(tiny_store, tmp_path / "again", config, resume=True)
    assert same(adapter_weights(model), adapter_weights(again))
    assert same(weights(tmp_path / "model"), weights(tmp_path / "again"))
    (stored,) = (tmp_path / "model" / "adapter").glob("*.safetensors")
    assert all(".lora_" in name for name in load_file(stored))
    base = AutoModelForCausalLM.from_pretrained(
        tiny_llm_folder,
        dtype=torch.float32,
        quantization_config=BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4"),
    )
    ids = torch.tensor([model.processor.encode_text(TEXTS[2], 12)])
    tuning_free = base(input_ids=ids).logits
    loaded = PeftModel.from_pretrained(base, tmp_path / "model" / "adapter").train()
    expected = quantized(input_ids=ids).logits
    torch.testing.assert_close(loaded(input_ids=ids).logits, expected, atol=0.02, rtol=0)
    assert (tuning_free - expected).abs().max() > 1e-4


@needs_bitsandbytes
def test_gradients_through_four_bits(tiny_llm_folder: Path) -> None:
    """Those of the weights that the four bits stand for."""
    import bitsandbytes

    config = tuning.quantization_config(TrainConfig(lora={"quantization": "4bit"}))
    quantized = load_language_model(tiny_llm_folder, quantization_config=config)
    plain = load_language_model(tiny_llm_folder)
    assert fingerprint(quantized.model) == fingerprint(plain.model)
    n_quantized = 0
    for name, layer in quantized.model.named_modules():
        if isinstance(layer, bitsandbytes.nn.Linear4bit):
            weight = plain.model.get_submodule(name).weight
            state = layer.weight.quant_state
            weight.data = bitsandbytes.functional.dequantize_4bit(layer.weight.data, state)
            n_quantized += 1
    assert n_quantized == 14  # of two layers
    gradients = []
    for language_model in (quantized, plain):
        torch.manual_seed(0)
        embeds = torch.randn(2, 7, 32, requires_grad=True)
        language_model.model(inputs_embeds=embeds).logits.square().mean().backward()
        gradients.append(embeds.grad)
    assert gradients[1].abs().max() > 0
    torch.testing.assert_close(gradients[0], gradients[1])


def test_four_bits_without_the_library(
    tiny_store: Store, tiny_llm_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "QUANTIZER", "no_such_library")
    config = options(tiny_llm_folder, lora={"quantization": "4bit"})
    with pytest.raises(InputError, match=r"needs no_such_library.*pip install 'mindllm\[qlora\]'"):
        Trainer(tiny_store, tiny_store.subjects, config)
