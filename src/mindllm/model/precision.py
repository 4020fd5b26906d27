"""The precision that a language model computes in."""

import torch

from mindllm.model.language_model import FrozenLanguageModel
from mindllm.utils.errors import InputError


def cast_language_model(language_model: FrozenLanguageModel, dtype: torch.dtype) -> None:
    """Compute in another precision.

    Short cuts stay those that were tried as loaded: in half precision a wrong one is harder
    to tell from rounding.

    Parameters
    ----------
    language_model : FrozenLanguageModel
    dtype : torch.dtype
        float32, bfloat16 or float16.

    Raises
    ------
    InputError
        If the weights are quantized.

    Examples
    --------
    >>> cast_language_model(model.language_model, torch.bfloat16)  # doctest: +SKIP
    """
    if getattr(language_model.model, "is_quantized", False):
        raise InputError(
            f"language model {language_model.name} is quantized and cannot compute in {dtype}. "
            "Leave the precision as it is."
        )
    language_model.model.to(dtype)
