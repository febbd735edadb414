"""Range attention as one compiled kernel with a block-sparse mask (torch's flex attention), for GPUs."""

import functools

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from arl2.kernels.attention.ranges import Ranges


def range_attention(
    *,
    q: Float[Tensor, "batch tokens heads head"],
    k: Float[Tensor, "batch tokens heads head"],
    v: Float[Tensor, "batch tokens heads value"],
    ranges: Ranges,
    scale: float | None = None,
) -> Float[Tensor, "batch tokens heads value"]:
    """Attention in which each range of queries sees its ranges of keys alone."""
    mask = _block_mask(ranges, q.shape[1], str(q.device))
    attend = _compiled() if q.is_cuda else flex_attention
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return attend(q, k, v, block_mask=mask, scale=scale).transpose(1, 2)


@functools.cache
def _compiled():  # type: ignore[no-untyped-def]  # torch.compile's own type
    return torch.compile(flex_attention)


# The mask depends on the geometry alone, so it is keyed by all of it and shared by layers and steps.
@functools.lru_cache(maxsize=16)
def _block_mask(ranges: Ranges, tokens: int, device: str) -> BlockMask:
    widest = max(len(part.keys) for part in ranges)
    part_of_token = torch.empty(tokens, dtype=torch.long)
    bounds = torch.zeros(len(ranges), widest, 2, dtype=torch.long)  # unused entries stay empty: [0, 0)
    for i, part in enumerate(ranges):
        part_of_token[part.start : part.stop] = i
        bounds[i, : len(part.keys)] = torch.tensor(part.keys)
    starts, stops = bounds.to(device)[part_of_token.to(device)].unbind(-1)  # each [tokens, widest]

    def visible(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        seen = (key >= starts[query, 0]) & (key < stops[query, 0])
        for j in range(1, widest):
            seen = seen | ((key >= starts[query, j]) & (key < stops[query, j]))
        return seen

    return create_block_mask(visible, None, None, tokens, tokens, device=device)
