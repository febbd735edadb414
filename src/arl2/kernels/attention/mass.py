"""The softmax mass that queries find among keys: ``log mean exp`` of their scores, beside the output of attention.

Torch's public function does not return it, so it costs the product of queries and keys once more, computed some queries
at a time: no score matrix of a whole block is ever in memory. On a CPU, and without gradients, the kernel behind that
function is asked for both.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from arl2.kernels.attention.dispatch import softmax_attention
from arl2.kernels.attention.ranges import Ranges
from arl2.kernels.backends import ATTENTION, announce, requested_backend

_PIECE = 256  # queries
# Gives what ``scaled_dot_product_attention`` gives on a CPU, and the logarithm of the softmax's denominator, which it
# has no derivative for. Not public, so it may go.
_WITH_DENOMINATOR = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)


def attention_with_mass(
    *,
    q: Float[Tensor, "batch queries heads head"],
    k: Float[Tensor, "batch keys heads head"],
    v: Float[Tensor, "batch keys heads head"],
    backend: str = "auto",
) -> tuple[Float[Tensor, "batch queries heads head"], Float[Tensor, "batch queries heads"]]:
    """:func:`arl2.kernels.attention.softmax_attention` and :func:`log_mean_mass`. Differentiable.

    Raises:
        ConfigError: an unknown backend, or one that cannot do these tensors.
    """
    needs_gradients = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
    is_auto = requested_backend(ATTENTION, backend) == "auto" and torch.backends.cuda.flash_sdp_enabled()
    if _WITH_DENOMINATOR is None or needs_gradients or not is_auto or q.device.type != "cpu":
        return softmax_attention(q=q, k=k, v=v, backend=backend), log_mean_mass(q=q, k=k)
    announce("full attention", "flash", "it returns the softmax mass too")
    attended, denominator = _WITH_DENOMINATOR(*(x.transpose(1, 2) for x in (q, k, v)))
    return attended.transpose(1, 2), denominator.transpose(1, 2) - math.log(k.shape[1])


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
