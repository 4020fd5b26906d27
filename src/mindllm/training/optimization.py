"""The optimizer's constants and the learning rate."""

import math

BETAS = (0.9, 0.98)


def schedule(step: int, steps: int, warmup: float) -> float:
    """Share of the learning rate at a step: a linear rise, then half a cosine down to zero."""
    rise = max(1, round(warmup * steps))
    return (step + 1) / rise if step < rise else 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))
