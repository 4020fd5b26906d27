"""LoRA training: peft's gradients, nothing else of the language model, saved as peft reads it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from mindllm.data.store import Store
from mindllm.model.candidates import count_prefix_tokens
from mindllm.model.modeling import MindLLM
from mindllm.model.processing import IGNORE_INDEX
from mindllm.training.configuration import StageConfig, TrainConfig
from mindllm.training.lora import is_adapter_weight
from mindllm.training.losses import InstructionBatch
from mindllm.training.trainer import Trainer, train
from mindllm.utils.errors import InputError
from tests.conftest import TEXTS
from tests.training.test_loggers import stop_at
from tests.training.test_trainer import Killed, options, same, weights

LORA = {"r": 3, "alpha": 12, "target_modules": ["q_proj", "v_proj", "down_proj"]}


def adapter_weights(model: MindLLM) -> dict[str, torch.Tensor]:
    parameters = model.language_model.model.named_parameters()
    return {n: p.detach().clone() for n, p in parameters if is_adapter_weight(n)}


def base_weights(model: Any) -> dict[str, torch.Tensor]:
    return {
        name.replace(".base_layer.", "."): p.detach().clone()
        for name, p in model.named_parameters()
        if not is_adapter_weight(name)
    }


@pytest.fixture(scope="module")
def adapted(
    tmp_path_factory: pytest.TempPathFactory, tiny_store: Store, tiny_llm_folder: Path
) -> Path:
    """A model folder after ten steps, four of them with an adapter."""
    out = tmp_path_factory.mktemp("adapted") / "model"
    train(tiny_store, out, options(tiny_llm_folder, lora=LORA | {"dropout": 0.1}))
    return out


def test_gradients_are_those_of_peft(tiny_store: Store, tiny_llm_folder: Path) -> None:
    """Peft reads each conversation alone; here a beginning that all share is read once."""
    trainer = Trainer(tiny_store, tiny_store.subjects, options(tiny_llm_folder, lora=LORA))
    trainer.prepare_stage("instruction_tuning")
    model, loss_fn = trainer.model, trainer.loss_fn.eval()
    torch.manual_seed(0)
    adapter = {
        name: parameter
        for name, parameter in model.language_model.model.named_parameters()
        if is_adapter_weight(name)
    }
    for parameter in adapter.values():
        parameter.data = 0.1 * torch.randn_like(parameter)  # at first, half of them are 0
    (part,) = trainer.draw_batch("instruction_tuning")
    batch = trainer.batches.build_micro_batch(part)
    assert isinstance(batch, InstructionBatch)
    loss = loss_fn(batch)
    loss.backward()

    base = AutoModelForCausalLM.from_pretrained(tiny_llm_folder, dtype=torch.float32).eval()
    config = LoraConfig(r=3, lora_alpha=12, target_modules=LORA["target_modules"])
    direct = get_peft_model(base, config).eval()
    names = {f"base_model.model.{name}": name for name in adapter}
    parameters = {n: p for n, p in direct.named_parameters() if p.requires_grad}
    assert parameters.keys() == names.keys()
    for name, parameter in parameters.items():
        parameter.data = adapter[names[name]].data.clone()
    tokens = model.encoder.head.tokens(loss_fn.embed(batch.trials)).detach()
    assert count_prefix_tokens(model, batch.prompts, tokens) > 0
    embed, total, count = direct.get_input_embeddings(), torch.zeros(()), 0
    for prompt, row in zip(batch.prompts, tokens, strict=True):
        is_word = prompt.input_ids != model.processor.fmri_token_id
        ids = torch.from_numpy(np.where(is_word, prompt.input_ids, 0))
        embeds = embed(ids).clone()
        embeds[torch.from_numpy(prompt.fmri_token_positions)] = model.projector(row)
        logits = direct(inputs_embeds=embeds[None]).logits[0, :-1]
        labels = torch.from_numpy(prompt.labels[1:])
        total = total + F.cross_entropy(logits, labels, ignore_index=IGNORE_INDEX, reduction="sum")
        count += int((labels != IGNORE_INDEX).sum())
    model.projector.zero_grad()
    (total / count).backward()
    assert float(loss.detach()) == pytest.approx(float(total.detach()) / count, abs=1e-5)
    for name, parameter in parameters.items():
        gradient = adapter[names[name]].grad
        assert gradient is not None
        assert gradient.abs().max() > 0
        torch.testing.assert_close(gradient, parameter.grad, atol=1e-6, rtol=1e-4)


def test_only_the_adapter_is_trained_in_instruction_tuning(
    tiny_store: Store, tiny_llm_folder: Path, adapted: Path
) -> None:
    trainer = Trainer(tiny_store, tiny_store.subjects, options(tiny_llm_folder, lora=LORA))
    names = {
        stage: [n for n in trainer.loss_fn.trainable_parameters(stage) if ".language_model." in n]
        for stage in ("alignment", "instruction_tuning")
    }
    assert names["alignment"] == []
    assert len(names["instruction_tuning"]) == 2 * 2 * len(LORA["target_modules"])  # two layers
    model = MindLLM.from_pretrained(adapted)
    base = AutoModelForCausalLM.from_pretrained(tiny_llm_folder, dtype=torch.float32)
    assert same(base_weights(model.language_model.model), base_weights(base))
    changed = [w for n, w in adapter_weights(model).items() if "lora_B" in n]
    assert all(weight.abs().max() > 0 for weight in changed)
    assert not any(p.requires_grad for p in model.language_model.parameters())


def test_the_base_weights_do_not_change_to_the_bit(
    tmp_path: Path, tiny_store: Store, tiny_llm_folder: Path
) -> None:
    model = train(tiny_store, tmp_path / "model", options(tiny_llm_folder, 1, 3, lora=LORA))
    base = AutoModelForCausalLM.from_pretrained(tiny_llm_folder, dtype=torch.float32)
    assert same(base_weights(model.language_model.model), base_weights(base))
    again = MindLLM.from_pretrained(tmp_path / "model")
    assert same(adapter_weights(model), adapter_weights(again))
    assert not (tmp_path / "model" / "training").exists()


def test_plain_peft_loads_the_adapter(
    tiny_store: Store, tiny_llm_folder: Path, adapted: Path
) -> None:
    model = MindLLM.from_pretrained(adapted)
    base = AutoModelForCausalLM.from_pretrained(tiny_llm_folder, dtype=torch.float32)
    ids = torch.tensor([model.processor.encode_text(TEXTS[2], 12)])
    plain = base(input_ids=ids).logits
    loaded = PeftModel.from_pretrained(base, adapted / "adapter").eval()
    expected = model.language_model.model(input_ids=ids).logits
    torch.testing.assert_close(loaded(input_ids=ids).logits, expected, atol=1e-6, rtol=1e-6)
    assert (plain - expected).abs().max() > 1e-4
    assert loaded.peft_config["default"].r == 3
    # What is decoded and scored is the adapted model's.
    subject = tiny_store.subjects[0]
    betas, masker = tiny_store.betas(subject, [0, 1], standardize=True), tiny_store.masker(subject)
    scores = model.log_likelihood(betas, masker, TEXTS)
    model.language_model.model.disable_adapters()
    assert (model.log_likelihood(betas, masker, TEXTS) - scores).abs().max() > 1e-4
    model.language_model.model.enable_adapters()
    torch.testing.assert_close(model.log_likelihood(betas, masker, TEXTS), scores)


@pytest.mark.parametrize("stop", [3, 8])
def test_it_resumes_to_the_same_adapter(
    tmp_path: Path,
    tiny_store: Store,
    tiny_llm_folder: Path,
    adapted: Path,
    stop: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Stopped in the first stage, and in the second with moments of the adapter."""
    save_steps = 1 if stop == 8 else 3
    config = options(tiny_llm_folder, lora=LORA | {"dropout": 0.1}, save_steps=save_steps)
    stop_at(stop, monkeypatch)
    with pytest.raises(Killed):
        train(tiny_store, tmp_path / "model", config)
    monkeypatch.undo()
    train(tiny_store, tmp_path / "model", config, resume=True)
    models = [MindLLM.from_pretrained(folder) for folder in (adapted, tmp_path / "model")]
    assert same(*(adapter_weights(model) for model in models))
    assert same(weights(adapted), weights(tmp_path / "model"))


def test_the_best_adapter_is_kept(
    tmp_path: Path, tiny_store: Store, tiny_llm_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The validation after the first step of the second stage is made the best."""
    config = options(tiny_llm_folder, 1, 3, lora=LORA, eval_steps=1, num_validation_subjects=1)
    kept: list[dict[str, torch.Tensor]] = []
    validate = Trainer.validate

    def validate_first_best(self: Trainer, stage: Any) -> Any:
        entry = validate(self, stage)
        if self.state.step == 2:
            kept.append(adapter_weights(self.model))
            self.state.best_val_loss[stage] = -1.0
        return entry

    monkeypatch.setattr(Trainer, "validate", validate_first_best)
    model = train(tiny_store, tmp_path / "model", config)
    assert same(adapter_weights(model), kept[0])


def test_a_model_with_an_adapter_is_trained_further(
    tmp_path: Path, tiny_store: Store, adapted: Path
) -> None:
    tuning = StageConfig(max_steps=2, batch_size=8)
    common: Any = {"init_from": str(adapted), "instruction_tuning": tuning, "encoding_model": None}
    before = adapter_weights(MindLLM.from_pretrained(adapted))
    train(tiny_store, tmp_path / "on", TrainConfig(**common, lora=LORA))
    train(tiny_store, tmp_path / "off", TrainConfig(**common))
    after = adapter_weights(MindLLM.from_pretrained(tmp_path / "on"))
    assert before.keys() == after.keys()
    assert not same(before, after)
    assert same(before, adapter_weights(MindLLM.from_pretrained(tmp_path / "off")))
    with pytest.raises(InputError, match=r"adapter with r 3, alpha 12 .*asks for r 8, alpha 12"):
        train(tiny_store, tmp_path / "other", TrainConfig(**common, lora=LORA | {"r": 8}))


def test_layers_that_are_not_there(
    tmp_path: Path, tiny_store: Store, tiny_llm_folder: Path
) -> None:
    config = options(tiny_llm_folder, lora={"target_modules": ["no_such_layer"]})
    with pytest.raises(InputError, match=r"cannot be trained by LoRA .*no_such_layer.*Name layers"):
        train(tiny_store, tmp_path / "model", config)
    with pytest.raises(ValueError, match="is trained in instruction_tuning, which has max_steps 0"):
        options(tiny_llm_folder, language=0, lora={})
