"""Checks of weights."""

from collections.abc import Iterable

import torch
from torch import Tensor

from mindllm.utils.errors import InputError


def check_finite_weights(tensors: Iterable[tuple[str, Tensor]], where: str) -> None:
    """Check that no weight is NaN or infinite.

    Parameters
    ----------
    tensors : iterable of (str, Tensor)
        Name and weights, such as `model.named_parameters()`.
    where : str
        What they are of and where they come from, for the message.

    Raises
    ------
    InputError
        If one is; the message names the tensor.

    Examples
    --------
    >>> check_finite_weights([("bias", torch.ones(2))], "model.safetensors")
    """
    for name, tensor in tensors:
        weights = tensor.detach()
        if not weights.is_floating_point() or not weights.numel() or weights.is_meta:
            continue
        low, high = torch.aminmax(weights)  # NaN if one weight is
        if not (low.isfinite() and high.isfinite()):
            count = int((~weights.isfinite()).sum())
            raise InputError(
                f"{where}: {count} of {weights.numel()} weights of {name} are NaN or infinite; "
                "expected finite numbers. The file is damaged or its training diverged: fetch or "
                "train it again, or choose another."
            )
