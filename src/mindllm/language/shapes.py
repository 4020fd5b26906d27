"""Shapes of language models, for which no weights are needed."""

from pathlib import Path
from typing import Any

from transformers import AutoConfig

from mindllm.language.hub import load_local_first, model_not_found_message
from mindllm.utils.errors import InputError
from mindllm.utils.files import read_json

Sizes = tuple[int, int, int, int, int, int, bool]
# From the config.json of each model: layers, hidden and intermediate size, heads, key-value heads,
# words, and whether input and output embeddings are one matrix.
SHAPES: dict[str, tuple[str, Sizes]] = {
    "vicuna-7b": ("llama", (32, 4096, 11008, 32, 32, 32000, False)),
    "vicuna-13b": ("llama", (40, 5120, 13824, 40, 40, 32000, False)),
    "llama-3.1-8b": ("llama", (32, 4096, 14336, 32, 8, 128256, False)),
    "qwen2.5-0.5b": ("qwen2", (24, 896, 4864, 14, 2, 151936, True)),
    "qwen2.5-7b": ("qwen2", (28, 3584, 18944, 28, 4, 152064, False)),
    "smollm2-135m": ("llama", (30, 576, 1536, 9, 3, 49152, True)),
    "smollm2-1.7b": ("llama", (24, 2048, 8192, 32, 32, 49152, True)),
}
FIELDS = (
    "num_hidden_layers",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
    "tie_word_embeddings",
)


def read_shape(name: str) -> Any:
    """Configuration of a language model, without its weights.

    Parameters
    ----------
    name : str
        A name of `SHAPES`, a config.json, a folder that holds one, or a hub id.

    Returns
    -------
    transformers.PretrainedConfig

    Raises
    ------
    InputError
        If it is none of these, or the file describes no language model.

    Examples
    --------
    >>> read_shape("vicuna-7b").hidden_size
    4096
    """
    if name in SHAPES:
        return named_shape(name)
    path = Path(name)
    if path.is_file() and path.suffix == ".json":
        content = read_json(path, "a configuration of a language model (config.json)")
        return shape_of_content(content, path)
    try:
        return load_local_first(name, AutoConfig.from_pretrained)
    except InputError as error:
        raise InputError(f"{error} Shapes that need no file: {', '.join(SHAPES)}.") from error
    except (OSError, ValueError, KeyError) as error:
        reason = model_not_found_message(name, f"{type(error).__name__}: {error}")
        raise InputError(f"{reason} Shapes that need no file: {', '.join(SHAPES)}.") from error


def named_shape(name: str) -> Any:
    """Configuration of a shape of `SHAPES`."""
    model_type, sizes = SHAPES[name]
    return AutoConfig.for_model(model_type, **dict(zip(FIELDS, sizes, strict=True)))


def shape_of_content(content: Any, path: Path) -> Any:
    """Configuration of the content of a config.json; InputError if it is of no model."""
    model_type = content.get("model_type") if isinstance(content, dict) else None
    if not isinstance(model_type, str):
        raise InputError(
            f"{path} has no model_type; expected the config.json of a language model of "
            "transformers."
        )
    options = {key: value for key, value in content.items() if key != "model_type"}
    try:
        return AutoConfig.for_model(model_type, **options)
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} cannot be read as a {model_type} model ({error}). Expected the config.json of "
            "a language model of transformers."
        ) from error
