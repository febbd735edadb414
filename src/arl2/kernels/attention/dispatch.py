"""Which implementation of softmax attention runs: ``auto`` takes the fastest that fits the tensors."""

import torch
from jaxtyping import Float
from torch import Tensor

from arl2.kernels.attention import naive, sdpa, variants
from arl2.kernels.attention.ranges import Ranges, is_block_diagonal
from arl2.kernels.backends import ACCEPTED, ATTENTION, announce, requested_backend

BACKENDS = ACCEPTED[ATTENTION]
FLEX_LEAST_HEAD = 16  # what torch's compiled kernel accepts


def softmax_attention(
    *,
    q: Float[Tensor, "batch queries heads head"],
    k: Float[Tensor, "batch keys heads head"],
    v: Float[Tensor, "batch keys heads value"],
    scale: float | None = None,
    backend: str = "auto",
) -> Float[Tensor, "batch queries heads value"]:
    """Full bidirectional attention of ``q`` over ``k, v``.

    Args:
        q: ``[B, Tq, H, D]``; k: ``[B, Tk, H, D]``; v: ``[B, Tk, H, V]``.
        scale: of the scores; ``D**-0.5`` if None.
        backend: one of ``BACKENDS``; ``auto`` is the fastest as measured, see
            :mod:`arl2.kernels.attention.variants` (``flex`` has no use without ranges and runs as ``auto``).

    Raises:
        ConfigError: an unknown backend, or one that cannot do these tensors.
    """
    backend = requested_backend(ATTENTION, backend)
    if backend == "naive":
        announce("full attention", "naive", "requested")
        return naive.softmax_attention(q=q, k=k, v=v, scale=scale)
    if backend in ("auto", "flex"):
        variant, reason = variants.fastest(q, k, v), "the fastest that was measured"
        if variant == variants.OWN:
            reason = "torch picks its kernel"
    else:
        variant, reason = backend, "requested"
    announce("full attention", variant, reason)
    return sdpa.softmax_attention(q=q, k=k, v=v, scale=scale, variant=variant)


def range_attention(
    *,
    q: Float[Tensor, "batch tokens heads head"],
    k: Float[Tensor, "batch keys heads head"],
    v: Float[Tensor, "batch keys heads value"],
    ranges: Ranges,
    scale: float | None = None,
    backend: str = "auto",
) -> Float[Tensor, "batch tokens heads value"]:
    """Attention in which each range of queries sees its ranges of keys alone (block-causal, windowed, ...).

    Args:
        q: ``[B, T, H, D]``; k, v: the same, or longer where some keys belong to no query.
        ranges: cover all queries in order; see :class:`arl2.kernels.attention.ranges.QueryRange`.
        scale: of the scores; ``D**-0.5`` if None.
        backend: one of ``BACKENDS``; ``auto`` is ``flex`` on CUDA where it can run, a loop of ``sdpa`` calls elsewhere.

    Raises:
        ConfigError: an unknown backend.
    """
    backend = requested_backend(ATTENTION, backend)
    if backend == "auto":
        backend, reason = _best(q, ranges)
        announce(ATTENTION, backend, reason)
    if backend == "naive":
        return naive.range_attention(q=q, k=k, v=v, ranges=ranges, scale=scale)
    if backend == "flex":
        from arl2.kernels.attention import flex  # imports torch's compiler stack: only when used

        return flex.range_attention(q=q, k=k, v=v, ranges=ranges, scale=scale)
    return sdpa.range_attention(q=q, k=k, v=v, ranges=ranges, scale=scale, variant=backend)


def _best(q: Tensor, ranges: Ranges) -> tuple[str, str]:
    """The fastest backend for these tensors, and why."""
    if is_block_diagonal(ranges, q.shape[1]):
        return "sdpa", "blocks that see themselves alone are one batched call"
    if not q.is_cuda:
        return "sdpa", "flex attention compiles on CUDA only"
    if q.shape[-1] < FLEX_LEAST_HEAD or q.dtype == torch.float64:
        return "sdpa", f"flex attention takes heads of {FLEX_LEAST_HEAD} or more and no float64"
    return "flex", "on CUDA"
