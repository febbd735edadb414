"""Attention through ``scaled_dot_product_attention``: one call, or one call per range of queries.

The loop over ranges is exact and does no masked work, so on a CPU, and for a handful of long blocks anywhere, it is
as cheap as the visible keys allow.
"""

import itertools

import torch
from jaxtyping import Float
from torch import Tensor

from arl2.kernels.attention.ranges import Ranges, is_block_diagonal
from arl2.kernels.attention.variants import OWN, attend


def softmax_attention(
    *,
    q: Float[Tensor, "batch queries heads head"],
    k: Float[Tensor, "batch keys heads head"],
    v: Float[Tensor, "batch keys heads value"],
    scale: float | None = None,
    variant: str = OWN,
) -> Float[Tensor, "batch queries heads value"]:
    """``softmax(scale q k^T) v``, in the inputs' dtype; see :mod:`arl2.kernels.attention.variants`."""
    return attend(q, k, v, scale, variant)


def range_attention(
    *,
    q: Float[Tensor, "batch tokens heads head"],
    k: Float[Tensor, "batch keys heads head"],
    v: Float[Tensor, "batch keys heads value"],
    ranges: Ranges,
    scale: float | None = None,
    variant: str = OWN,
) -> Float[Tensor, "batch tokens heads value"]:
    """Attention in which each range of queries sees its ranges of keys alone."""
    if is_block_diagonal(ranges, q.shape[1]):
        return _block_diagonal(q, k, v, len(ranges), scale, variant)
    # Cut once, at every edge: the gradient of a split is one concatenation, that of each slice a full-size sum.
    edges = _edges(ranges, q.shape[1], k.shape[1])
    sizes = [stop - start for start, stop in itertools.pairwise(edges)]
    place = {edge: i for i, edge in enumerate(edges)}
    queries = q.split(sizes[: place[q.shape[1]]], dim=1)
    keys, values = (x.split(sizes, dim=1) for x in (k, v))
    outputs = []
    for part in ranges:
        seen = [i for start, stop in part.keys for i in range(place[start], place[stop])]
        own = range(place[part.start], place[part.stop])
        outputs.append(
            softmax_attention(
                q=torch.cat([queries[i] for i in own], dim=1),
                k=torch.cat([keys[i] for i in seen], dim=1),
                v=torch.cat([values[i] for i in seen], dim=1),
                scale=scale,
                variant=variant,
            )
        )
    return torch.cat(outputs, dim=1)


def _edges(ranges: Ranges, queries: int, keys: int) -> list[int]:
    """Every position where a range of queries or keys begins or ends, ascending."""
    own = {edge for part in ranges for edge in (part.start, part.stop)}
    return sorted(own | {edge for part in ranges for pair in part.keys for edge in pair} | {0, queries, keys})


def _block_diagonal(q: Tensor, k: Tensor, v: Tensor, blocks: int, scale: float | None, variant: str) -> Tensor:
    q_b, k_b, v_b = (x.unflatten(1, (blocks, -1)).flatten(0, 1) for x in (q, k, v))
    o = softmax_attention(q=q_b, k=k_b, v=v_b, scale=scale, variant=variant)
    return o.unflatten(0, (-1, blocks)).flatten(1, 2)
