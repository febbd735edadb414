"""The Triton kernels behind :mod:`arl2.kernels.fused`: one program a token, all numbers in float32 registers.

A row is read whole and contiguous, so loads are 16 bytes wide, and pairs for the rotation are split in registers.
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from arl2.kernels.launches import declare_launches

_WARPS = 4
for _name in ("rms_normed", "turned_to_unit", "layer_normed", "gated_sum", "with_read", "decay_and_strength"):
    declare_launches(_name, 1)


def rms_normed(x: Tensor, weight: Tensor, eps: float, cos: Tensor | None, sin: Tensor | None, heads: int) -> Tensor:
    """``[B, T, d]`` with any strides but the last; with ``cos`` and ``sin`` ``[T, 1, D / 2]`` each head is turned."""
    x = by_numbers(x)
    out = x.new_empty(x.shape)
    batch, tokens, width = x.shape
    turn = cos is not None
    head = width // heads if turn else width
    rows, columns = (triton.next_power_of_2(heads), head) if turn else (1, triton.next_power_of_2(width))
    if turn and head != triton.next_power_of_2(head):
        rows, columns = triton.next_power_of_2(heads), triton.next_power_of_2(head)
    norm_rows[(batch * tokens,)](
        x, weight, cos if turn else weight, sin if turn else weight, out, tokens, width, head, *x.stride()[:2], eps,
        ROWS=rows, COLUMNS=columns, TURN=turn, num_warps=_WARPS,
    )  # fmt: skip
    return out


def turned_to_unit(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """``[B, T, H, D]`` with any strides but the last; the result is contiguous."""
    x = by_numbers(x)
    batch, tokens, heads, head = x.shape
    out = x.new_empty(x.shape)
    unit_rows[(batch * tokens,)](
        x, cos, sin, out, tokens, heads, head, *x.stride()[:3],
        ROWS=triton.next_power_of_2(heads), COLUMNS=triton.next_power_of_2(head), num_warps=_WARPS,
    )  # fmt: skip
    return out


def layer_normed(x: Tensor, shift: Tensor, scale: Tensor, eps: float, one_more: bool) -> Tensor:
    """``x [B, T, d]``, ``shift`` and ``scale`` ``[B, F, d]`` with any strides but the last."""
    x = x.contiguous()
    out = torch.empty_like(x)
    batch, tokens, width = x.shape
    modulate_rows[(batch * tokens,)](
        x, shift, scale, out, tokens, tokens // shift.shape[1], width, *shift.stride()[:2], *scale.stride()[:2], eps,
        COLUMNS=triton.next_power_of_2(width), ONE_MORE=one_more, num_warps=_WARPS,
    )  # fmt: skip
    return out


def gated_sum(x: Tensor, change: Tensor, gate: Tensor) -> Tensor:
    """``x`` and ``change`` ``[B, T, d]``, ``gate [B, F, d]``."""
    x, change = x.contiguous(), change.contiguous()
    out = torch.empty_like(x)
    batch, tokens, width = x.shape
    gate_rows[(batch * tokens,)](
        x, change, gate, out, tokens, tokens // gate.shape[1], width, *gate.stride()[:2],
        COLUMNS=triton.next_power_of_2(width), num_warps=_WARPS,
    )  # fmt: skip
    return out


def with_read(intra: Tensor, gate: Tensor, inter: Tensor) -> Tensor:
    """``intra`` and ``inter`` ``[B, T, H, D]`` with any strides but the last, ``gate [B, T, H]``."""
    intra, gate, inter = by_numbers(intra), gate.contiguous(), by_numbers(inter)
    batch, tokens, heads, head = intra.shape
    out = intra.new_empty(intra.shape)
    read_rows[(batch * tokens,)](
        intra, gate, inter, out, tokens, heads, head, *intra.stride()[:3], *inter.stride()[:3],
        ROWS=triton.next_power_of_2(heads), COLUMNS=triton.next_power_of_2(head), num_warps=_WARPS,
    )  # fmt: skip
    return out


def decay_and_strength(decay: Tensor, strength: Tensor, a_log: Tensor, dt_bias: Tensor) -> tuple[Tensor, Tensor]:
    """``[B, T, H]`` each, float32."""
    decay, strength = decay.contiguous(), strength.contiguous()
    g = torch.empty_like(decay, dtype=torch.float32)
    beta = torch.empty_like(g)
    total, block = decay.numel(), 1024
    if total:
        gate_numbers[(triton.cdiv(total, block),)](
            decay, strength, a_log, dt_bias, g, beta, total, decay.shape[-1], BLOCK=block, num_warps=_WARPS
        )
    return g, beta


def by_numbers(x: Tensor) -> Tensor:
    """``x`` with its last dimension contiguous, as it stands wherever it can be."""
    return x if x.stride(-1) == 1 else x.contiguous()


@triton.jit
@no_type_check  # a type checker of tests would wrap it, and Triton compiles the function as it stands
def turned(values, cos, sin, token, head, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """A tile ``[heads, head size]`` whose adjacent pairs are turned by the token's angles."""
    even, odd = tl.split(tl.reshape(values, (ROWS, COLUMNS // 2, 2)))
    pair = tl.arange(0, COLUMNS // 2)
    mask = pair < head // 2
    c = tl.load(cos + token * (head // 2) + pair, mask=mask, other=0.0)[None, :]
    s = tl.load(sin + token * (head // 2) + pair, mask=mask, other=0.0)[None, :]
    return tl.reshape(tl.join(even * c - odd * s, even * s + odd * c), (ROWS, COLUMNS))


@triton.jit
@no_type_check
def norm_rows(
    x, weight, cos, sin, out, tokens, width, head, x_batch, x_token, eps,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, TURN: tl.constexpr,
):  # fmt: skip
    """RMS norm of one token over all heads, then the rotation."""
    token = tl.program_id(0)
    column = tl.arange(0, COLUMNS)
    place = tl.arange(0, ROWS)[:, None] * head + column[None, :]
    mask = (place < width) & (column < head)[None, :]
    start = x + (token // tokens) * x_batch + (token % tokens) * x_token
    values = tl.load(start + place, mask=mask, other=0.0).to(tl.float32)
    mean = tl.sum(tl.sum(values * values, 1), 0) / width
    values = values * tl.rsqrt(mean + eps) * tl.load(weight + place, mask=mask, other=0.0).to(tl.float32)
    if TURN:
        values = turned(values, cos, sin, token % tokens, head, ROWS, COLUMNS)
    tl.store(out + token * width + place, values.to(out.dtype.element_ty), mask=mask)


@triton.jit
@no_type_check
def unit_rows(
    x, cos, sin, out, tokens, heads, head, x_batch, x_token, x_head, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """Rotation, then each head scaled to length 1."""
    token = tl.program_id(0)
    row, column = tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    place = row[:, None] * head + column[None, :]
    mask = (row < heads)[:, None] & (column < head)[None, :]
    start = x + (token // tokens) * x_batch + (token % tokens) * x_token
    values = tl.load(start + row[:, None] * x_head + column[None, :], mask=mask, other=0.0).to(tl.float32)
    # A rotation changes no length, so the length may be taken before it.
    values = values * tl.rsqrt(tl.sum(values * values, 1) + 1e-6)[:, None]
    values = turned(values, cos, sin, token % tokens, head, ROWS, COLUMNS)
    tl.store(out + token * heads * head + place, values.to(out.dtype.element_ty), mask=mask)


@triton.jit
@no_type_check
def modulate_rows(
    x, shift, scale, out, tokens, frame_tokens, width, shift_batch, shift_frame, scale_batch, scale_frame, eps,
    COLUMNS: tl.constexpr, ONE_MORE: tl.constexpr,
):  # fmt: skip
    """Layer norm of one token, then its frame's scale and shift."""
    token = tl.program_id(0)
    batch, frame = token // tokens, token % tokens // frame_tokens
    column = tl.arange(0, COLUMNS)
    mask = column < width
    values = tl.load(x + token * width + column, mask=mask, other=0.0).to(tl.float32)
    values = tl.where(mask, values - tl.sum(values, 0) / width, 0.0)
    values = values * tl.rsqrt(tl.sum(values * values, 0) / width + eps)
    by = tl.load(scale + batch * scale_batch + frame * scale_frame + column, mask=mask, other=0.0).to(tl.float32)
    to = tl.load(shift + batch * shift_batch + frame * shift_frame + column, mask=mask, other=0.0).to(tl.float32)
    if ONE_MORE:
        by = by + 1.0
    tl.store(out + token * width + column, (values * by + to).to(out.dtype.element_ty), mask=mask)


@triton.jit
@no_type_check
def gate_rows(x, change, gate, out, tokens, frame_tokens, width, gate_batch, gate_frame, COLUMNS: tl.constexpr):
    """One token and its change, by its frame's gate."""
    token = tl.program_id(0)
    batch, frame = token // tokens, token % tokens // frame_tokens
    column = tl.arange(0, COLUMNS)
    mask = column < width
    old = tl.load(x + token * width + column, mask=mask, other=0.0).to(tl.float32)
    new = tl.load(change + token * width + column, mask=mask, other=0.0).to(tl.float32)
    by = tl.load(gate + batch * gate_batch + frame * gate_frame + column, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + token * width + column, (old + by * new).to(out.dtype.element_ty), mask=mask)


@triton.jit
@no_type_check
def read_rows(
    intra, gate, inter, out, tokens, heads, head, intra_batch, intra_token, intra_head, inter_batch, inter_token,
    inter_head, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """One token's attention and what it read from the state, by one gate a head."""
    token = tl.program_id(0)
    row, column = tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    mask = (row < heads)[:, None] & (column < head)[None, :]
    of_batch, of_token = token // tokens, token % tokens
    place = token * heads * head + row[:, None] * head + column[None, :]
    intra += of_batch * intra_batch + of_token * intra_token
    inter += of_batch * inter_batch + of_token * inter_token
    by = tl.sigmoid(tl.load(gate + token * heads + row, mask=row < heads, other=0.0).to(tl.float32))
    own = tl.load(intra + row[:, None] * intra_head + column[None, :], mask=mask, other=0.0).to(tl.float32)
    read = tl.load(inter + row[:, None] * inter_head + column[None, :], mask=mask, other=0.0).to(tl.float32)
    tl.store(out + place, (own + by[:, None] * read).to(out.dtype.element_ty), mask=mask)


@triton.jit
@no_type_check
def gate_numbers(decay, strength, a_log, dt_bias, g, beta, total, heads, BLOCK: tl.constexpr):
    """Log decay and strength of some tokens and heads."""
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = place < total
    rate = tl.exp(tl.load(a_log + place % heads, mask=mask, other=0.0).to(tl.float32))
    z = tl.load(decay + place, mask=mask, other=0.0).to(tl.float32)
    z = z + tl.load(dt_bias + place % heads, mask=mask, other=0.0).to(tl.float32)
    # log(1 + exp z), which for a large z is z.
    softplus = tl.maximum(z, 0.0) + tl.log(1.0 + tl.exp(-tl.abs(z)))
    tl.store(g + place, -rate * softplus, mask=mask)
    write = tl.load(strength + place, mask=mask, other=0.0).to(tl.float32)
    tl.store(beta + place, 2.0 * tl.sigmoid(write), mask=mask)
