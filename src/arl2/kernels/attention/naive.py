"""Attention written out in float64: the truth for the other backends. It builds the full mask; keep it small."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from arl2.kernels.attention.ranges import Ranges


def softmax_attention(
    *,
    q: Float[Tensor, "batch queries heads head"],
    k: Float[Tensor, "batch keys heads head"],
    v: Float[Tensor, "batch keys heads value"],
    scale: float | None = None,
    mask: Bool[Tensor, "queries keys"] | None = None,
) -> Float[Tensor, "batch queries heads value"]:
    """``softmax(scale q k^T) v``, in float64, returned in ``v``'s dtype."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    scores = scale * torch.einsum("bqhd,bkhd->bhqk", q.double(), k.double())
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v.double()).to(v.dtype)


def range_attention(
    *,
    q: Float[Tensor, "batch tokens heads head"],
    k: Float[Tensor, "batch keys heads head"],
    v: Float[Tensor, "batch keys heads value"],
    ranges: Ranges,
    scale: float | None = None,
) -> Float[Tensor, "batch tokens heads value"]:
    """Attention in which each range of queries sees its ranges of keys alone."""
    return softmax_attention(q=q, k=k, v=v, scale=scale, mask=dense_mask(ranges, q.shape[1], k.shape[1], q.device))


def dense_mask(
    ranges: Ranges, queries: int, keys: int, device: torch.device | str = "cpu"
) -> Bool[Tensor, "queries keys"]:
    """The full mask that ``ranges`` stand for."""
    mask = torch.zeros(queries, keys, dtype=torch.bool, device=device)
    for part in ranges:
        for start, stop in part.keys:
            mask[part.start : part.stop, start:stop] = True
    return mask
