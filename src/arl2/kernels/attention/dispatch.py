"""Which implementation of softmax attention runs: ``auto`` takes the fastest that fits the tensors."""

from jaxtyping import Float
from torch import Tensor

from arl2.kernels.attention import naive, sdpa
from arl2.kernels.attention.ranges import Ranges
from arl2.kernels.backends import ACCEPTED, ATTENTION, announce, asked_backend

BACKENDS = ACCEPTED[ATTENTION]


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
        backend: one of ``BACKENDS`` (``flex`` has no use without ranges and runs as ``sdpa``).

    Raises:
        ConfigError: an unknown backend.
    """
    naively = asked_backend(ATTENTION, backend) == "naive"
    run = naive.softmax_attention if naively else sdpa.softmax_attention
    return run(q=q, k=k, v=v, scale=scale)


def range_attention(
    *,
    q: Float[Tensor, "batch tokens heads head"],
    k: Float[Tensor, "batch tokens heads head"],
    v: Float[Tensor, "batch tokens heads value"],
    ranges: Ranges,
    scale: float | None = None,
    backend: str = "auto",
) -> Float[Tensor, "batch tokens heads value"]:
    """Attention in which each range of queries sees its ranges of keys alone (block-causal, windowed, ...).

    Args:
        q, k, v: ``[B, T, H, D]``.
        ranges: cover all queries in order; see :class:`arl2.kernels.attention.ranges.QueryRange`.
        scale: of the scores; ``D**-0.5`` if None.
        backend: one of ``BACKENDS``; ``auto`` is ``flex`` on CUDA and a loop of ``sdpa`` calls elsewhere.

    Raises:
        ConfigError: an unknown backend.
    """
    backend = asked_backend(ATTENTION, backend)
    if backend == "auto":
        backend = "flex" if q.is_cuda else "sdpa"
        announce(ATTENTION, backend, "on CUDA" if q.is_cuda else "flex attention compiles on CUDA only")
    if backend == "naive":
        return naive.range_attention(q=q, k=k, v=v, ranges=ranges, scale=scale)
    if backend == "flex":
        from arl2.kernels.attention import flex  # imports torch's compiler stack: only when used

        return flex.range_attention(q=q, k=k, v=v, ranges=ranges, scale=scale)
    return sdpa.range_attention(q=q, k=k, v=v, ranges=ranges, scale=scale)
