"""What a causal convolution reads, in plain and differentiable operations: the twin of the fast forms."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from arl2.kernels.causal_input.shapes import Frames, Interleaved, empty_sum, pixels


def causal_input_naive(
    x: Interleaved,
    bias: Float[Tensor, " channels"] | None,
    residual: Frames | None,
    gamma: Float[Tensor, " channels"] | None,
    past: Float[Tensor, "batch lookback height width channels"] | None,
    lookback: int,
    margin: int,
    silu: bool,
    want_sum: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """See :func:`arl2.kernels.causal_input.causal_input`; computes in float32 or better."""
    total = pixels(x).to(torch.promote_types(x.dtype, torch.float32))
    for addend in (bias, residual):
        total = total if addend is None else total + addend
    new = total
    if gamma is not None:
        new = F.normalize(new, dim=-1) * new.shape[-1] ** 0.5 * gamma
    new = (F.silu(new) if silu else new).to(x.dtype)
    if past is None:
        past = new.new_zeros(new.shape[0], lookback, *new.shape[2:])
    frames = torch.cat((past, new), dim=1)
    kept = frames[:, frames.shape[1] - lookback :].clone()
    frames = F.pad(frames, (0, 0, 0, margin, 0, margin))
    return (total.to(x.dtype) if want_sum else empty_sum(x)), frames, kept
