"""Optimizer and learning rate."""

import math
from collections.abc import Mapping

import torch
from torch import nn

from mindllm.training.configuration import StageConfig

ADAM_BETAS = (0.9, 0.98)
DECAYED_PARTS = (".head.", ".projector.")


def create_optimizer(
    parameters: Mapping[str, nn.Parameter], options: StageConfig
) -> torch.optim.AdamW:
    """Create the optimizer of a stage.

    Weight decay applies to the token head and the projector. Queries, keys and parcel embeddings
    are positions in the brain, and zero is no better a position than another.

    Parameters
    ----------
    parameters : mapping from str to Parameter
        Trainable parameters by name.
    options : StageConfig

    Returns
    -------
    torch.optim.AdamW
        With two parameter groups: with weight decay and without.
    """
    decayed = {n: p for n, p in parameters.items() if any(part in n for part in DECAYED_PARTS)}
    others = [parameter for name, parameter in parameters.items() if name not in decayed]
    groups = [
        {"params": list(decayed.values()), "weight_decay": options.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=options.learning_rate, betas=ADAM_BETAS)


def cosine_schedule_with_warmup(step: int, max_steps: int, warmup_ratio: float) -> float:
    """Factor of the learning rate: a linear rise, then half a cosine down to zero.

    Parameters
    ----------
    step : int
        0-based step of the stage.
    max_steps : int
        Steps of the stage.
    warmup_ratio : float
        Fraction of the steps in which the factor rises; at least one step.

    Returns
    -------
    float
        In [0, 1].

    Examples
    --------
    >>> [round(cosine_schedule_with_warmup(step, 10, 0.2), 2) for step in (0, 1, 2, 6)]
    [0.5, 1.0, 1.0, 0.5]
    """
    warmup_steps = max(1, round(warmup_ratio * max_steps))
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, max_steps - warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * progress))
