"""LoRA: small matrices beside some layers of the language model, trained in its place."""

from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from torch import nn

from mindllm.model.language_model import FrozenLanguageModel
from mindllm.training.configuration import LoraOptions
from mindllm.utils.errors import InputError


def add_lora(language_model: FrozenLanguageModel, options: LoraOptions, seed: int) -> None:
    """Add a LoRA adapter to a language model, or take the one that it has.

    A new adapter changes nothing before it is trained. Its weights are float32, whatever those of
    the language model.

    Parameters
    ----------
    language_model : FrozenLanguageModel
        Changed in place; its own weights stay as they are.
    options : LoraOptions
    seed : int
        Of the first weights.

    Raises
    ------
    InputError
        If it has no such layers, or an adapter with other options.

    References
    ----------
    Hu et al. 2022, LoRA: Low-rank adaptation of large language models, arXiv 2106.09685.
    """
    model = language_model.model
    if getattr(model, "peft_config", None):
        check_same_adapter(language_model, options)
    else:
        add_adapter(model, options, seed, language_model.name)
    for name, parameter in model.requires_grad_(False).eval().named_parameters():
        if is_adapter_weight(name):
            parameter.data = parameter.data.float()


def add_adapter(model: Any, options: LoraOptions, seed: int, name: str) -> None:
    """Add a new adapter to a model of transformers, which `name` names in an error."""
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=options.r,
        lora_alpha=options.alpha,
        lora_dropout=options.dropout,
        target_modules=options.target_modules,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            model.add_adapter(config)
        except (ValueError, TypeError) as error:
            raise InputError(
                f"language model {name} cannot be trained by LoRA ({error}). Name layers that it "
                "has in `lora: {target_modules: [...]}`, e.g. q_proj and v_proj."
            ) from error


def check_same_adapter(language_model: FrozenLanguageModel, options: LoraOptions) -> None:
    """Raise InputError unless the adapter that a language model comes with has these options."""
    (config,) = language_model.model.peft_config.values()
    targets = set(options.target_modules or config.target_modules)
    expected = (options.r, options.alpha, targets)
    actual = (config.r, config.lora_alpha, set(config.target_modules))
    if actual != expected:
        raise InputError(
            f"the model to train further has a LoRA adapter with r {actual[0]}, alpha {actual[1]:g}"
            f" and the layers {', '.join(sorted(actual[2]))}; `lora` asks for r {options.r}, alpha "
            f"{options.alpha:g} and {', '.join(sorted(targets))}. Give the same options, or "
            "`lora: null` to leave the adapter as it is."
        )


def is_adapter_weight(name: str) -> bool:
    """Whether a parameter's name is one of LoRA's."""
    return ".lora_" in name


def enable_adapter_dropout(module: nn.Module) -> None:
    """Switch the dropout of LoRA layers on; the language model's own stays off."""
    for layer in module.modules():
        if isinstance(layer, LoraLayer):
            layer.lora_dropout.train()
