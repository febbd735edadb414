"""Intervals of means over prompts, as the videos of one prompt are no independent samples.

Means of numbers: from 30 prompts on by resampling them. Of fewer a percentile bootstrap is too narrow (at 8 prompts it
leaves the true mean out one time in nine), and Student's t stands in. Shares have Wilson's interval at any number of
prompts: near 0 and 1 resampling says nothing, or too little (where one of 60 prompts differs, 0 to 5 %; where none
does, 0 to 0). Differences of shares have Bonett and Price's for the same reason.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

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

Values = Float64[np.ndarray, " prompts"]


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


def wilson(hits: float, of: float) -> tuple[float, float]:
    """Lower and upper end of Wilson's interval of a share; (0, 1) of nothing. Numbers need not be whole."""
    if not of:
        return 0.0, 1.0
    share, spread = hits / of, _NORMAL_95**2 / of
    centre = (share + spread / 2) / (1 + spread)
    half = math.sqrt(spread * share * (1 - share) + spread**2 / 4) / (1 + spread)
    return max(0.0, centre - half), min(1.0, centre + half)


def estimate(by_prompt: Sequence[float], *, is_share: bool = False) -> Estimate:
    """The mean of values, one for each prompt (of several seeds: their mean), and its interval.

    Args:
        by_prompt: the values; of a share from 0 to 1.
        is_share: of videos: Wilson's interval.

    Raises:
        ValueError: no values.
    """
    values = _array(by_prompt)
    return _estimate(values, _wilson if is_share else _of_numbers)


def estimate_difference(by_prompt: Sequence[float], *, is_share: bool = False) -> Estimate:
    """The mean of paired differences, one for each prompt, and its interval.

    Args:
        by_prompt: the differences; of shares from -1 to 1.
        is_share: differences of shares. With one seed each, or where all prompts agree, the interval is Bonett and
            Price's: that of the differences with one prompt more that gains and one that loses. Sixty prompts without
            any difference leave room for one of 4 points. The means of several seeds are numbers like others.

    Raises:
        ValueError: no values.
    """
    values = _array(by_prompt)
    counts = is_share and (np.isin(values, (-1, 0, 1)).all() or (values == values[0]).all())
    return _estimate(values, _bonett_price if counts else _of_numbers)


def _array(by_prompt: Sequence[float]) -> Values:
    if not len(by_prompt):
        raise ValueError("an estimate takes one value at least")
    return np.asarray(by_prompt, dtype=np.float64)


def _estimate(values: Values, interval: Callable[[Values], tuple[float, float]]) -> Estimate:
    mean, count = float(values.mean()), len(values)
    if count < 2:
        return Estimate(mean, None, None, count)
    # Thirds add up to 0 but for rounding; an end at 0 must not fall on the other side of it.
    low, high = (round(end, _DECIMALS) for end in interval(values))
    return Estimate(mean, low, high, count)


def _of_numbers(values: Values) -> tuple[float, float]:
    count = len(values)
    if count < _RESAMPLED:
        mean, half = float(values.mean()), _quantile(count) * float(values.std(ddof=1)) / math.sqrt(count)
        return mean - half, mean + half
    random = np.random.Generator(np.random.PCG64(_SEED))
    means = []
    step = max(1, _AT_ONCE // count)
    for start in range(0, RESAMPLES, step):
        chosen = random.integers(count, size=(min(step, RESAMPLES - start), count))
        means.append(values[chosen].mean(axis=1))
    low, high = np.percentile(np.concatenate(means), (2.5, 97.5))
    return float(low), float(high)


def _wilson(values: Values) -> tuple[float, float]:
    """Of as many samples as the prompts are worth: with one seed their number, with several more, the less the seeds
    of a prompt agree. One prompt more of each kind keeps that number finite where all agree."""
    share = float(values.mean())
    padded = np.append(values, (0.0, 1.0))
    middle = float(padded.mean())
    worth = max(1.0, middle * (1 - middle) / float(padded.var())) * len(values)
    return wilson(share * worth, worth)


def _bonett_price(differences: Values) -> tuple[float, float]:
    padded = np.append(differences, (-1.0, 1.0))
    centre = float(padded.mean())
    half = _quantile(len(differences)) * float(padded.std()) / math.sqrt(len(padded))
    return max(-1.0, centre - half), min(1.0, centre + half)


def _quantile(count: int) -> float:
    """97.5 % quantile of a mean of so many values, from 2 on."""
    return _STUDENT[count - 2] if count < _RESAMPLED else _NORMAL_95
