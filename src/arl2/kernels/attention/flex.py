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
    k: Float[Tensor, "batch keys heads head"],
    v: Float[Tensor, "batch keys heads value"],
    ranges: Ranges,
    scale: float | None = None,
) -> Float[Tensor, "batch tokens heads value"]:
    """Attention in which each range of queries sees its ranges of keys alone."""
    mask = _block_mask(ranges, q.shape[1], k.shape[1], str(q.device))
    attend = _compiled() if q.is_cuda else flex_attention
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return attend(q, k, v, block_mask=mask, scale=scale).transpose(1, 2)


@functools.cache
def _compiled():  # type: ignore[no-untyped-def]  # torch.compile's own type
    return torch.compile(flex_attention)


# The mask depends on the geometry alone, so it is keyed by all of it and shared by layers and steps.
@functools.lru_cache(maxsize=16)
def _block_mask(ranges: Ranges, queries: int, keys: int, device: str) -> BlockMask:
    # Cut the keys wherever some range begins or ends: within a segment all keys are alike to every query.
    bounds = sorted({0, keys, *(edge for part in ranges for span in part.keys for edge in span)})
    part_of_query = torch.empty(queries, dtype=torch.long)
    for i, part in enumerate(ranges):
        part_of_query[part.start : part.stop] = i
    segment_of_key = torch.bucketize(torch.arange(keys), torch.tensor(bounds), right=True) - 1
    sees = torch.tensor(
        [[any(a <= start < b for a, b in part.keys) for start in bounds[:-1]] for part in ranges], dtype=torch.bool
    )
    part_of_query, segment_of_key, sees = (x.to(device) for x in (part_of_query, segment_of_key, sees))
    return create_block_mask(
        lambda _batch, _head, query, key: sees[part_of_query[query], segment_of_key[key]],
        None,
        None,
        queries,
        keys,
        device=device,
    )
