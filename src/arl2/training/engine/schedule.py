"""Learning rate: linear warm-up, then a cosine down to a fraction of the peak."""

import math


def learning_rate_factor(step: int, progress: float, *, warmup_steps: int, final: float) -> float:
    """What the peak learning rate is multiplied by.

    Args:
        step: optimizer step, from 0; warm-up counts these.
        progress: how much of the run is done, 0 to 1, by steps or by minutes: the cosine follows it.
        warmup_steps: steps until the peak; 0 for none.
        final: factor at the end of the run.
    """
    warm = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
    cosine = 0.5 + 0.5 * math.cos(math.pi * min(max(progress, 0.0), 1.0))
    return warm * (final + (1 - final) * cosine)
