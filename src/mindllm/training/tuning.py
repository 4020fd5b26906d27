"""The language model in a training: adapters, all weights, 4 bits, recomputation, compilation."""

import importlib.util
from typing import Any

import torch
from transformers import BitsAndBytesConfig
from transformers.modeling_layers import GradientCheckpointingLayer

from mindllm.model.language_model import FrozenLanguageModel
from mindllm.training.configuration import TrainConfig
from mindllm.training.lora import add_lora, enable_adapter_dropout
from mindllm.utils.errors import InputError

FULL_LEARNING_RATE = 2e-5  # of all weights of a language model
QUANTIZER = "bitsandbytes"


def quantization_config(config: TrainConfig) -> BitsAndBytesConfig | None:
    """How the weights of the language model are stored while an adapter is trained.

    Parameters
    ----------
    config : TrainConfig

    Returns
    -------
    transformers.BitsAndBytesConfig or None
        None: as they are.

    Raises
    ------
    InputError
        If bitsandbytes, which does it, is not installed.

    References
    ----------
    Dettmers et al. 2023, QLoRA: Efficient finetuning of quantized LLMs, arXiv 2305.14314.
    """
    if not (config.lora and config.lora.quantization):
        return None
    if importlib.util.find_spec(QUANTIZER) is None:
        raise InputError(
            f"`lora: {{quantization: {config.lora.quantization}}}` needs {QUANTIZER}, which is not "
            "installed. Install it: pip install 'mindllm[qlora]'; or leave quantization out."
        )
    is_half = config.dtype != "float32" and torch.cuda.is_available()
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16 if is_half else torch.float32,
    )


def prepare_language_model(language_model: FrozenLanguageModel, config: TrainConfig) -> None:
    """Give a language model what the options of a training ask for, but for `torch_compile`.

    Parameters
    ----------
    language_model : FrozenLanguageModel
        Changed in place.
    config : TrainConfig

    Raises
    ------
    InputError
        If it has no layers of the kind that an option needs, or an adapter beside which its own
        weights cannot be trained.
    """
    model = language_model.model
    if config.gradient_checkpointing:
        if not checkpointed_layers(model):
            raise InputError(
                f"language model {language_model.name} has no layers that can be computed again "
                "for their gradient. Leave gradient_checkpointing out."
            )
        # Renamed in transformers 5.x.
        renamed = getattr(model, "activation_checkpointing_enable", None)
        (renamed or model.gradient_checkpointing_enable)({"use_reentrant": False})
    if config.lora:
        add_lora(language_model, config.lora, config.seed)
    if config.train_language_model:
        if getattr(model, "peft_config", None):
            raise InputError(
                "the model to train further has a LoRA adapter, beside which `train_language_model`"
                " cannot train the language model. Train the adapter on by `lora`, or begin with "
                "another model."
            )
        language_model.is_modified = True


def checkpointed_layers(model: Any) -> list[GradientCheckpointingLayer]:
    """Layers of a language model that can be computed again for their gradient."""
    return [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]


def set_modes(language_model: FrozenLanguageModel, config: TrainConfig) -> None:
    """Set the modes of a step: dropout is off but for an adapter's, and what is asked for is on.

    Parameters
    ----------
    language_model : FrozenLanguageModel
    config : TrainConfig
    """
    language_model.eval()
    enable_adapter_dropout(language_model)
    if config.gradient_checkpointing:
        for layer in checkpointed_layers(language_model.model):
            layer.training = True  # its parts stay in evaluation mode


def learning_rate(config: TrainConfig) -> float | None:
    """Learning rate of what is trained of the language model; None: that of the stage."""
    if config.language_model_learning_rate is None and config.train_language_model:
        return FULL_LEARNING_RATE
    return config.language_model_learning_rate


def compile_language_model(language_model: FrozenLanguageModel) -> None:
    """Compile the layers of a language model; the output layer stays as it is.

    Parameters
    ----------
    language_model : FrozenLanguageModel
        Changed in place, but for the names of its weights.

    Raises
    ------
    InputError
        If no compiler works on its device.
    """
    model = language_model.model
    try:
        torch.compile(torch.sin)(torch.zeros(64, device=model.device))
    except Exception as error:  # of dynamo, inductor, triton or the compiler
        reason = next((line for line in str(error).splitlines() if line.strip()), "")
        raise InputError(
            f"torch_compile: no compiler works for {model.device.type} "
            f"({type(error).__name__}: {reason[:200]}). Install a C++ compiler such as g++, and "
            "triton for a GPU, or leave torch_compile out."
        ) from error
    model.base_model.compile(dynamic=True)


def undo_compilation(language_model: FrozenLanguageModel) -> None:
    """Let a language model compute as before `compile_language_model`."""
    language_model.model.base_model._compiled_call_impl = None
