"""Sums of log decays inside a chunk, exact enough that the difference of two of them is right to float32.

A float32 sum would lose the small decays that follow a strong one: beside -1e4 nothing below 1e-3 counts. In float64 it
is one ``cumsum``. A device without float64 holds each sum as two float32 numbers, ``high + low`` with ``high`` the sum
rounded, and adds such pairs with the rounding error of every addition kept (Knuth's TwoSum): about 48 bits. The
difference of two sums is ``(high - high') + (low - low')``. Its first part is exact where the two are within a factor
of two of each other (Sterbenz) and rounded once elsewhere, so the error is at most two roundings of the difference
itself, and 2**-44 of the sum.
"""

import torch.nn.functional as F
from torch import Tensor

from arl2.float64 import has_float64

Sums = tuple[Tensor, ...]  # one float64 tensor, or ``(high, low)`` in float32; the first alone is the rounded sum


def cumulative(log_decay: Tensor, dim: int) -> Sums:
    """Sums of all entries up to each one along ``dim``."""
    if has_float64(log_decay.device):
        return (log_decay.double().cumsum(dim),)
    high = log_decay.float().movedim(dim, -1)
    low = high.new_zeros(high.shape)
    step = 1
    while step < high.shape[-1]:  # after each round an entry is the sum of twice as many
        earlier_high, earlier_low = (F.pad(part[..., :-step], (step, 0)) for part in (high, low))
        total = high + earlier_high
        added = total - high
        lost = (high - (total - added)) + (earlier_high - added) + (low + earlier_low)
        high = total + lost
        low = lost - (high - total)
        step *= 2
    return high.movedim(-1, dim), low.movedim(-1, dim)


def difference(later: Sums, earlier: Sums) -> Tensor:
    """``later - earlier``, which broadcast: in float64, or right to float32."""
    whole, *rest = [a - b for a, b in zip(later, earlier, strict=True)]
    return whole + rest[0] if rest else whole
