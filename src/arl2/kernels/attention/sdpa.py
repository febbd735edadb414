"""Attention through ``scaled_dot_product_attention``: one call, or one call per range of queries.

The loop over ranges is exact and does no masked work, so on a CPU, and for a handful of long blocks anywhere, it is
as cheap as the visible keys allow.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from arl2.kernels.attention.ranges import Ranges, is_block_diagonal


def softmax_attention(
    *,
    q: Float[Tensor, "batch queries heads head"],
    k: Float[Tensor, "batch keys heads head"],
    v: Float[Tensor, "batch keys heads value"],
    scale: float | None = None,
) -> Float[Tensor, "batch queries heads value"]:
    """``softmax(scale q k^T) v``, in the inputs' dtype."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, scale=scale).transpose(1, 2)


def range_attention(
    *,
    q: Float[Tensor, "batch tokens heads head"],
    k: Float[Tensor, "batch tokens heads head"],
    v: Float[Tensor, "batch tokens heads value"],
    ranges: Ranges,
    scale: float | None = None,
) -> Float[Tensor, "batch tokens heads value"]:
    """Attention in which each range of queries sees its ranges of keys alone."""
    if is_block_diagonal(ranges, q.shape[1]):
        return _block_diagonal(q, k, v, len(ranges), scale)
    outputs = []
    for part in ranges:
        seen_k = torch.cat([k[:, start:stop] for start, stop in part.keys], dim=1)
        seen_v = torch.cat([v[:, start:stop] for start, stop in part.keys], dim=1)
        outputs.append(softmax_attention(q=q[:, part.start : part.stop], k=seen_k, v=seen_v, scale=scale))
    return torch.cat(outputs, dim=1)


def _block_diagonal(q: Tensor, k: Tensor, v: Tensor, blocks: int, scale: float | None) -> Tensor:
    q_b, k_b, v_b = (x.unflatten(1, (blocks, -1)).flatten(0, 1) for x in (q, k, v))
    o = softmax_attention(q=q_b, k=k_b, v=v_b, scale=scale)
    return o.unflatten(0, (-1, blocks)).flatten(1, 2)
