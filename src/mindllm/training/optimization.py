"""Optimizer and learning rate."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from mindllm.training.configuration import StageConfig

ADAM_BETAS = (0.9, 0.98)
DECAYED_PARTS = (".head.", ".projector.")
LANGUAGE_MODEL_PART = ".language_model."
FUSED_DEVICES = ("cpu", "cuda")  # that the fused optimizer runs on in every supported torch


def create_optimizer(
    parameters: Mapping[str, nn.Parameter],
    options: StageConfig,
    language_model_learning_rate: float | None = None,
) -> torch.optim.AdamW:
    """Create the optimizer of a stage.

    Weight decay applies to the token head and the projector. Queries, keys and parcel embeddings
    are positions in the brain, and zero is no better a position than another; the language model
    is to stay near what it was.

    Parameters
    ----------
    parameters : mapping from str to Parameter
        Trainable parameters by name.
    options : StageConfig
    language_model_learning_rate : float, optional
        Of the language model's parameters; by default that of the stage.

    Returns
    -------
    torch.optim.AdamW
        With parameter groups with weight decay, without, and of the language model, each with its
        learning rate after the warmup as `initial_lr`.
    """
    of_model = {n: p for n, p in parameters.items() if LANGUAGE_MODEL_PART in n}
    others = {n: p for n, p in parameters.items() if n not in of_model}
    decayed = [p for n, p in others.items() if any(part in n for part in DECAYED_PARTS)]
    plain = [p for n, p in others.items() if not any(part in n for part in DECAYED_PARTS)]
    rate = options.learning_rate
    groups = [
        {"params": decayed, "weight_decay": options.weight_decay, "initial_lr": rate},
        {"params": plain, "weight_decay": 0.0, "initial_lr": rate},
    ]
    if of_model:
        rate = language_model_learning_rate or rate
        group = {"params": list(of_model.values()), "weight_decay": 0.0, "initial_lr": rate}
        groups.append(group | {"lr": rate})
    # One pass over the weights where the device can do that; the same steps up to rounding.
    fused = all(
        p.device.type in FUSED_DEVICES and p.is_floating_point() for p in parameters.values()
    )
    return torch.optim.AdamW(groups, lr=options.learning_rate, betas=ADAM_BETAS, fused=fused)


class RunningStatistics:
    """Running statistics of batch normalization, over the micro batches of one step.

    Each micro batch begins with those before the step, and the step ends with the mean of what
    they lead to, so that neither order nor process matters.

    Parameters
    ----------
    module : Module

    Examples
    --------
    >>> layer = nn.BatchNorm1d(1)
    >>> statistics = RunningStatistics(layer)
    >>> for value in (0.0, 2.0):
    ...     statistics.begin_micro_batch()
    ...     _ = layer(torch.full((2, 1), value))
    ...     statistics.end_micro_batch()
    >>> statistics.average(statistics.sums, 2)
    >>> layer.running_mean
    tensor([0.1000])
    """

    def __init__(self, module: nn.Module) -> None:
        layers = [layer for layer in module.modules() if isinstance(layer, nn.BatchNorm1d)]
        self.buffers = [
            buffer
            for layer in layers
            for buffer in (layer.running_mean, layer.running_var)
            if buffer is not None
        ]
        counters = [layer.num_batches_tracked for layer in layers]
        self.counters = [counter for counter in counters if counter is not None]
        self.counts = [int(counter) for counter in self.counters]
        self.before = [buffer.clone() for buffer in self.buffers]
        self.sums = [torch.zeros_like(buffer) for buffer in self.buffers]

    def begin_micro_batch(self) -> None:
        """Put the statistics before the step back."""
        self._assign(self.before)

    def end_micro_batch(self) -> None:
        """Add up what the micro batch has led to."""
        for total, buffer in zip(self.sums, self.buffers, strict=True):
            total += buffer

    def average(self, sums: Sequence[Tensor], count: int) -> None:
        """Set the statistics to the mean over `count` micro batches, which add up to `sums`."""
        self._assign([total / count for total in sums])
        for counter, steps_before in zip(self.counters, self.counts, strict=True):
            counter.fill_(steps_before + 1)

    def _assign(self, values: Sequence[Tensor]) -> None:
        for buffer, value in zip(self.buffers, values, strict=True):
            buffer.copy_(value)


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
