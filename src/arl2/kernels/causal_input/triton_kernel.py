"""What a causal convolution reads, as one Triton kernel."""

from typing import Any, no_type_check

import triton
import triton.language as tl
from torch import Tensor

from arl2.kernels.causal_input.shapes import Interleaved, empty_sum, output_shapes

_NUMBERS_A_PROGRAM = 4096  # 32 a thread: no spills, four 16-byte loads a thread and input; not yet timed on a GPU
WARPS = 4


def causal_input_triton(
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
    """See :func:`arl2.kernels.causal_input.causal_input`; float32, float16 and bfloat16."""
    x = x if x.stride(-1) == 1 else x.contiguous()
    whole, framed, remembered = output_shapes(x, lookback, margin)
    batch, count, height, width, channels = whole
    total = x.new_empty(whole) if want_sum else empty_sum(x)
    frames, kept = x.new_empty(framed), x.new_empty(remembered)
    sizes = constants(channels, p=x.shape[3], q=x.shape[5])
    grid = (triton.cdiv((height + margin) * (width + margin), sizes["PIXELS"]), batch * (count + lookback))
    arguments = {"bias": bias, "residual": residual, "gamma": gamma, "past": past}
    causal_input_kernel[grid](
        x,
        *(one if one is None else one.contiguous() for one in arguments.values()),
        total if want_sum else None,
        frames,
        kept,
        *x.stride()[:-1],
        count,
        height,
        width,
        **sizes,
        LOOKBACK=lookback,
        MARGIN=margin,
        SILU=silu,
        num_warps=WARPS,
    )
    return total, frames, kept


def constants(channels: int, *, p: int, q: int) -> dict[str, Any]:
    """Sizes that a kernel is compiled for."""
    lanes = triton.next_power_of_2(channels)
    pixels = max(1, _NUMBERS_A_PROGRAM // lanes)
    return {"CHANNELS": channels, "LANES": lanes, "PIXELS": pixels, "P": p, "Q": q, "ROOT": float(channels) ** 0.5}


@triton.jit
@no_type_check  # a type checker of tests would wrap it, and Triton compiles the function as it stands
def causal_input_kernel(
    x,  # [batch, frames, rows, P, columns, Q, channels], strides below; channels lie side by side
    bias,  # [channels] or None
    residual,  # [batch, frames, height, width, channels] or None
    gamma,  # [channels] or None
    past,  # [batch, LOOKBACK, height, width, channels] or None
    total,  # as residual, or None
    frames,  # [batch, LOOKBACK + frames, height + MARGIN, width + MARGIN, channels]
    kept,  # as past
    batch_stride,
    frame_stride,
    row_stride,
    p_stride,
    column_stride,
    q_stride,
    count,
    height,
    width,
    CHANNELS: tl.constexpr,
    LANES: tl.constexpr,
    PIXELS: tl.constexpr,
    P: tl.constexpr,
    Q: tl.constexpr,
    ROOT: tl.constexpr,
    LOOKBACK: tl.constexpr,
    MARGIN: tl.constexpr,
    SILU: tl.constexpr,
):
    # One program: PIXELS pixels of one frame of the result, all their channels.
    sample = tl.program_id(1) // (count + LOOKBACK)
    frame = tl.program_id(1) % (count + LOOKBACK)
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    row, column = pixel // (width + MARGIN), pixel % (width + MARGIN)
    channel = tl.arange(0, LANES)
    written = (pixel < (height + MARGIN) * (width + MARGIN))[:, None] & (channel < CHANNELS)[None, :]
    read = written & (row < height)[:, None] & (column < width)[:, None]
    # Places inside a frame without margin; a frame has less than 2^31 numbers, a clip may have more.
    inside = (row * width + column)[:, None] * CHANNELS + channel[None, :]
    picture = height * width * CHANNELS

    if frame < LOOKBACK:
        new = tl.zeros((PIXELS, LANES), tl.float32)
        if past is not None:
            at = past + (sample * LOOKBACK + frame).to(tl.int64) * picture
            new = tl.load(at + inside, mask=read, other=0.0).to(tl.float32)
    else:
        t = (frame - LOOKBACK).to(tl.int64)
        at = x + sample.to(tl.int64) * batch_stride + t * frame_stride
        place = (row // P) * row_stride + (row % P) * p_stride + (column // Q) * column_stride + (column % Q) * q_stride
        new = tl.load(at + place[:, None] + channel[None, :], mask=read, other=0.0).to(tl.float32)
        if bias is not None:
            new += tl.load(bias + channel, mask=channel < CHANNELS, other=0.0).to(tl.float32)[None, :]
        of_clip = (sample * count + t) * picture
        if residual is not None:
            new += tl.load(residual + of_clip + inside, mask=read, other=0.0).to(tl.float32)
        if total is not None:
            tl.store(total + of_clip + inside, new.to(total.dtype.element_ty), mask=read)
        if gamma is not None:
            # Lanes beyond the channels hold zeros: of x and of the bias by the mask.
            norm = tl.maximum(tl.sqrt(tl.sum(new * new, axis=1)), 1e-12)
            scale = tl.load(gamma + channel, mask=channel < CHANNELS, other=0.0).to(tl.float32)
            new = new * (ROOT / norm)[:, None] * scale[None, :]
        if SILU:
            new = new * tl.sigmoid(new)
    new = tl.where(read, new, 0.0)
    start = tl.program_id(1).to(tl.int64) * (height + MARGIN) * (width + MARGIN) * CHANNELS
    tl.store(
        frames + start + pixel[:, None] * CHANNELS + channel[None, :], new.to(frames.dtype.element_ty), mask=written
    )
    if frame >= count:
        at = kept + (sample * LOOKBACK + frame - count).to(tl.int64) * picture
        tl.store(at + inside, new.to(kept.dtype.element_ty), mask=read)
