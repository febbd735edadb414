"""The softmax mass that queries find among keys: ``log mean exp`` of their scores, beside the output of attention.

The fused kernels of torch keep it to themselves, so it costs the product of queries and keys once more. Computed some
queries at a time: no score matrix of a whole block is ever in memory.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from arl2.kernels.attention.ranges import Ranges

_PIECE = 256  # queries


def log_mean_mass(
    *,
    q: Float[Tensor, "batch queries heads head"],
    k: Float[Tensor, "batch keys heads head"],
    scale: float | None = None,
) -> Float[Tensor, "batch queries heads"]:
    """``log(mean_j exp(scale q . k_j))`` over all keys, at least float32. Differentiable."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    keys = k.permute(0, 2, 3, 1)  # [B H D K]
    parts = []
    for piece in q.split(_PIECE, dim=1):
        scores = piece.transpose(1, 2) @ keys
        wide = scores.to(torch.promote_types(scores.dtype, torch.float32))
        parts.append((scale * wide).logsumexp(-1).transpose(1, 2))
    return torch.cat(parts, dim=1) - math.log(k.shape[1])


def range_log_mean_mass(
    *,
    q: Float[Tensor, "batch tokens heads head"],
    k: Float[Tensor, "batch keys heads head"],
    ranges: Ranges,
    scale: float | None = None,
) -> Float[Tensor, "batch tokens heads"]:
    """The same where each range of queries sees its ranges of keys alone."""
    parts = []
    for one in ranges:
        seen = torch.cat([k[:, start:stop] for start, stop in one.keys], dim=1)
        parts.append(log_mean_mass(q=q[:, one.start : one.stop], k=seen, scale=scale))
    return torch.cat(parts, dim=1)
