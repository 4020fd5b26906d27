"""The optimizer's constants and the learning rate."""

import math

ADAM_BETAS = (0.9, 0.98)


def cosine_schedule_with_warmup(step: int, steps: int, warmup_ratio: float) -> float:
    """Share of the learning rate at a step: a linear rise, then half a cosine down to zero."""
    rise = max(1, round(warmup_ratio * steps))
    return (
        (step + 1) / rise
        if step < rise
        else 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))
    )
