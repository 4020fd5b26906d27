"""Checks of weights."""

import torch
from torch import nn

from mindllm.utils.errors import InputError


def check_finite_weights(model: nn.Module, name: str) -> None:
    """Check that no weight of a model is NaN or infinite.

    Parameters
    ----------
    model : torch.nn.Module
    name : str
        What it is and where it comes from, for the message.

    Raises
    ------
    InputError
        If one is; the message names the tensor.
    """
    for parameter_name, parameter in model.named_parameters():
        weights = parameter.detach()
        if not weights.is_floating_point() or not weights.numel() or weights.is_meta:
            continue
        low, high = torch.aminmax(weights)  # NaN if one weight is
        if not (low.isfinite() and high.isfinite()):
            count = int((~weights.isfinite()).sum())
            raise InputError(
                f"{name}: {count} of {weights.numel()} weights of {parameter_name} are NaN or "
                "infinite. The file is damaged or its training diverged: fetch it again, or "
                "choose another."
            )
