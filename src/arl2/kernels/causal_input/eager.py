"""What a causal convolution reads, without autograd and with few passes over memory: the form for processors."""

import torch
import torch.nn.functional as F
from torch import Tensor

from arl2.kernels.causal_input.shapes import Interleaved, empty_sum, output_shapes, pixels

# Numbers of one step on a processor: what is between the operations then stays in its second-level cache.
_NUMBERS_AT_ONCE = 2**16
_SMALLEST_NORM = 1e-12  # of F.normalize


def causal_input_eager(
    x: Interleaved,
    bias: Tensor | None,
    residual: Tensor | None,
    gamma: Tensor | None,
    past: Tensor | None,
    lookback: int,
    margin: int,
    silu: bool,
    want_sum: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """See :func:`arl2.kernels.causal_input.causal_input`; a few rows at a time on a processor."""
    whole, framed, _ = output_shapes(x, lookback, margin)
    batch, count, height, width, channels = whole
    work = torch.promote_types(x.dtype, torch.float32)
    total = x.new_empty(whole) if want_sum else empty_sum(x)
    frames = x.new_zeros(framed) if margin else x.new_empty(framed)
    if lookback:
        frames[:, :lookback] = 0 if past is None else past
    scale = None if gamma is None else gamma.to(work) * channels**0.5
    rows = x.shape[2]
    step = max(1, _NUMBERS_AT_ONCE * rows // (height * width * channels)) if x.device.type == "cpu" else rows
    for sample in range(batch):
        for frame in range(count):
            for start in range(0, rows, step):
                stop = min(start + step, rows)
                at = slice(start * x.shape[3], stop * x.shape[3])
                new = pixels(x[sample : sample + 1, frame : frame + 1, start:stop])[0, 0]
                if bias is not None:
                    new = new.to(work) + bias
                if residual is not None:
                    new = torch.add(new.to(work), residual[sample, frame, at])
                if want_sum:
                    total[sample, frame, at] = new
                into = frames[sample, lookback + frame, at, :width]
                if scale is not None:
                    norm = torch.linalg.vector_norm(new, dim=-1, keepdim=True, dtype=work).clamp_min_(_SMALLEST_NORM)
                    new = torch.div(new, norm).mul_(scale)
                into.copy_(F.silu(new) if silu else new)
    return total, frames, frames[:, count:, :height, :width].clone()
