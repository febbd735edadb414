"""Norms, always computed in float32 or better and returned in the input's dtype."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def rms_norm(
    x: Float[Tensor, "*rows width"], weight: Float[Tensor, " width"], eps: float
) -> Float[Tensor, "*rows width"]:
    """``x / sqrt(mean(x^2) + eps) * weight`` over the last dimension."""
    work = torch.promote_types(x.dtype, torch.float32)
    return F.rms_norm(x.to(work), (x.shape[-1],), weight.to(work), eps).to(x.dtype)


def layer_norm(
    x: Float[Tensor, "*rows width"],
    eps: float,
    weight: Float[Tensor, " width"] | None = None,
    bias: Float[Tensor, " width"] | None = None,
) -> Float[Tensor, "*rows width"]:
    """``(x - mean) / sqrt(var + eps)``, affine if ``weight`` and ``bias`` are given. Float32 or better comes *out*:

    what follows is a modulation in float32, so rounding to half precision in between would only lose digits.
    """
    work = torch.promote_types(x.dtype, torch.float32)
    weight = None if weight is None else weight.to(work)
    bias = None if bias is None else bias.to(work)
    return F.layer_norm(x.to(work), (x.shape[-1],), weight, bias, eps)


def l2_norm(x: Float[Tensor, "*rows width"], eps: float = 1e-6) -> Float[Tensor, "*rows width"]:
    """``x / sqrt(sum(x^2) + eps)`` over the last dimension."""
    work = torch.promote_types(x.dtype, torch.float32)
    y = x.to(work)
    return (y * torch.rsqrt(y.square().sum(-1, keepdim=True) + eps)).to(x.dtype)
