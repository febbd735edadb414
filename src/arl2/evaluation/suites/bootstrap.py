"""Intervals of means over prompts: by resampling prompts, as the videos of one prompt are no independent samples."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000
_SEED = 20  # of the resamples: the same data give the same interval
_NORMAL_95 = 1.959964
_AT_ONCE = 2_000_000  # numbers


@dataclass(frozen=True)
class Estimate:
    """A mean over prompts with its 95 % interval; no interval of fewer than two prompts."""

    mean: float
    low: float | None
    high: float | None
    prompts: int


def estimate(by_prompt: Sequence[float], *, is_share: bool = False) -> Estimate:
    """The mean of values, one for each prompt (of several seeds: their mean), and its bootstrap interval.

    Where all prompts of a share agree resampling says nothing, and Wilson's interval stands in.

    Raises:
        ValueError: no values.
    """
    values = np.asarray(by_prompt, dtype=np.float64)
    count = len(values)
    if not count:
        raise ValueError("an estimate takes one value at least")
    mean = float(values.mean())
    if count < 2:
        return Estimate(mean, None, None, count)
    if is_share and (values == values[0]).all() and mean in (0.0, 1.0):
        low, high = _wilson(mean, count)
        return Estimate(mean, low, high, count)
    random = np.random.Generator(np.random.PCG64(_SEED))
    means = []
    step = max(1, _AT_ONCE // count)
    for start in range(0, RESAMPLES, step):
        chosen = random.integers(count, size=(min(step, RESAMPLES - start), count))
        means.append(values[chosen].mean(axis=1))
    low, high = np.percentile(np.concatenate(means), (2.5, 97.5))
    return Estimate(mean, float(low), float(high), count)


def _wilson(share: float, count: int) -> tuple[float, float]:
    spread = _NORMAL_95**2 / count
    middle = (share + spread / 2) / (1 + spread)
    half = math.sqrt(spread * share * (1 - share) + spread**2 / 4) / (1 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)
