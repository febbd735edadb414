"""Intervals of means over prompts, as the videos of one prompt are no independent samples.

From 30 prompts on by resampling them. Of fewer a percentile bootstrap is too narrow (at 8 prompts it leaves the true
mean out one time in nine): Student's t stands in, and Wilson's interval for shares.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000
_SEED = 20  # of the resamples: the same data give the same interval
_NORMAL_95 = 1.959964
_AT_ONCE = 2_000_000  # numbers
FEWEST = 6
"""Prompts from which a difference may be called better or worse: of five even the sign test says nothing."""
_RESAMPLED = 30  # prompts from which the bootstrap is used
_DECIMALS = 12  # of an interval's ends
# 97.5 % quantiles of Student's t with 1, 2, ... degrees of freedom.
_STUDENT = (
    *(12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281),
    *(2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860),
    *(2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484),
)


@dataclass(frozen=True)
class Estimate:
    """A mean over prompts with its 95 % interval; no interval of fewer than two prompts."""

    mean: float
    low: float | None
    high: float | None
    prompts: int

    @property
    def is_clear(self) -> bool:
        """Of a difference: whether it is more than chance. Of fewer than ``FEWEST`` prompts that is not said."""
        if self.low is None or self.high is None or self.prompts < FEWEST:
            return False
        return not self.low <= 0 <= self.high


def estimate(by_prompt: Sequence[float], *, is_share: bool = False) -> Estimate:
    """The mean of values, one for each prompt (of several seeds: their mean), and its interval.

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
    if is_share and (count < _RESAMPLED or ((values == values[0]).all() and mean in (0.0, 1.0))):
        low, high = _wilson(mean, count)
        return Estimate(mean, low, high, count)
    if count < _RESAMPLED:
        half = _STUDENT[count - 2] * float(values.std(ddof=1)) / math.sqrt(count)
        return Estimate(mean, mean - half, mean + half, count)
    random = np.random.Generator(np.random.PCG64(_SEED))
    means = []
    step = max(1, _AT_ONCE // count)
    for start in range(0, RESAMPLES, step):
        chosen = random.integers(count, size=(min(step, RESAMPLES - start), count))
        means.append(values[chosen].mean(axis=1))
    # Thirds add up to 0 but for rounding; an end at 0 must not fall on the other side of it.
    low, high = np.percentile(np.concatenate(means), (2.5, 97.5)).round(_DECIMALS)
    return Estimate(mean, float(low), float(high), count)


def _wilson(share: float, count: int) -> tuple[float, float]:
    spread = _NORMAL_95**2 / count
    middle = (share + spread / 2) / (1 + spread)
    half = math.sqrt(spread * share * (1 - share) + spread**2 / 4) / (1 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)
