"""The state update in two Triton kernels: solve every chunk alone, then walk the state over the chunks.

Formulas and letters as in :mod:`arl2.kernels.delta_rule.blockwise`. Keys and values are read in their own dtype;
decays are summed in float64, the triangular inverse and the state are float32, and products run in TF32, which keeps
three bits more than bfloat16. Keys and values in float32 would want exact products: those do not fit the registers (a
thousand spilled bytes and more on every GPU compiled for), so they take the blockwise form on a GPU.
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from arl2.kernels.delta_rule.chunked import CHUNK

_STATE_COLUMNS = 32  # of the state in one program of the walk: 48 programs at 12 heads of 128
_WARPS = 8  # with 4, both kernels spill registers


def gated_delta_state(
    *,
    k: Float[Tensor, "batch tokens heads key"],
    v: Float[Tensor, "batch tokens heads value"],
    g: Float[Tensor, "batch tokens heads"],
    beta: Float[Tensor, "batch tokens heads"],
    initial_state: Float[Tensor, "batch heads key value"] | None = None,
) -> Float[Tensor, "batch heads key value"]:
    """The final state, float32. Not differentiable."""
    batch, tokens, heads, key = k.shape
    value = v.shape[-1]
    # Values come turned over heads from their feature map; they are read where they stand.
    v = v if v.stride(-1) == 1 else v.contiguous()
    k, g, beta = k.contiguous(), g.float().contiguous(), beta.float().contiguous()
    start = k.new_zeros(batch, heads, key, value, dtype=torch.float32) if initial_state is None else initial_state
    start = start.float().contiguous()
    if not start.numel() or not tokens:
        return start
    state = torch.empty_like(start)
    chunks = triton.cdiv(tokens, CHUNK)
    written, erased = v.new_empty(v.shape), torch.empty_like(k)
    sizes = {
        "tokens": tokens,
        "heads": heads,
        "key": key,
        "value": value,
        "CHUNK": CHUNK,
        "KEY": max(16, triton.next_power_of_2(key)),
        "PRECISION": "ieee" if k.dtype is torch.float32 else "tf32",  # the first in the interpreter alone
    }
    solve_chunks[(chunks, batch * heads)](
        k, v, g, beta, written, erased, *v.stride()[:3],
        **sizes, VALUE=max(16, triton.next_power_of_2(value)), num_warps=_WARPS,
    )  # fmt: skip
    columns = min(_STATE_COLUMNS, max(16, triton.next_power_of_2(value)))
    walk_chunks[(triton.cdiv(value, columns), batch * heads)](
        k, g, written, erased, start, state, chunks=chunks, **sizes, COLUMNS=columns, num_warps=_WARPS
    )
    return state


@triton.jit
@no_type_check  # a type checker of tests would wrap it, and Triton compiles the function as it stands
def solve_chunks(
    k, v, g, beta, written, erased, v_batch, v_token, v_head, tokens, heads, key, value,
    CHUNK: tl.constexpr, KEY: tl.constexpr, VALUE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """``written`` = U ``[B T H V]`` and ``erased`` = W ``[B T H K]``: one program a chunk and head."""
    one = tl.program_id(1)
    at = tl.arange(0, CHUNK)
    row = tl.program_id(0) * CHUNK + at
    inside = row < tokens
    place = ((one // heads) * tokens + row) * heads + one % heads
    c = tl.cumsum(tl.load(g + place, mask=inside, other=0.0).to(tl.float64), 0)
    strength = tl.load(beta + place, mask=inside, other=0.0)
    keys = tl.arange(0, KEY)
    key_place, key_mask = place[:, None] * key + keys[None, :], inside[:, None] & (keys < key)[None, :]
    k_c = tl.load(k + key_place, mask=key_mask, other=0.0)

    # Cut before exp: above the diagonal stands growth, whose exp may be infinite.
    earlier = at[:, None] > at[None, :]
    decay = tl.exp(tl.where(earlier, c[:, None] - c[None, :], 0.0).to(tl.float32))
    overlaps = tl.dot(k_c, tl.trans(k_c), input_precision=PRECISION)
    overlaps = tl.where(earlier, overlaps * decay * strength[:, None], 0.0)
    # Forward substitution, row by row: powers of the matrix would cancel catastrophically.
    inverse = tl.where(at[:, None] == at[None, :], 1.0, 0.0)
    for i in range(1, CHUNK):
        own = at[:, None] == i
        factors = tl.sum(tl.where(own, overlaps, 0.0), 0)
        inverse = tl.where(own, inverse - tl.sum(factors[:, None] * inverse, 0)[None, :], inverse)

    values = tl.arange(0, VALUE)
    value_place, value_mask = place[:, None] * value + values[None, :], inside[:, None] & (values < value)[None, :]
    v_start = v + (one // heads) * v_batch + (one % heads) * v_head
    v_c = tl.load(v_start + row[:, None] * v_token + values[None, :], mask=value_mask, other=0.0)
    v_c = v_c.to(tl.float32) * strength[:, None]
    u_c = tl.dot(inverse, v_c, input_precision=PRECISION)
    tl.store(written + value_place, u_c.to(written.dtype.element_ty), mask=value_mask)
    from_start = strength * tl.exp(c.to(tl.float32))
    w_c = tl.dot(inverse, k_c.to(tl.float32) * from_start[:, None], input_precision=PRECISION)
    tl.store(erased + key_place, w_c.to(erased.dtype.element_ty), mask=key_mask)


@triton.jit
@no_type_check
def walk_chunks(
    k, g, written, erased, start, state, tokens, heads, key, value, chunks,
    CHUNK: tl.constexpr, KEY: tl.constexpr, COLUMNS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """From ``start`` to ``state``, ``[B H K V]``: one program for some columns of one head."""
    one = tl.program_id(1)
    keys, columns = tl.arange(0, KEY), tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    state_place = (one * key + keys[:, None]) * value + columns[None, :]
    state_mask = (keys < key)[:, None] & (columns < value)[None, :]
    s = tl.load(start + state_place, mask=state_mask, other=0.0)
    for chunk in range(chunks):
        row = chunk * CHUNK + tl.arange(0, CHUNK)
        inside = row < tokens
        place = ((one // heads) * tokens + row) * heads + one % heads
        log_decay = tl.load(g + place, mask=inside, other=0.0).to(tl.float64)
        total = tl.sum(log_decay, 0)
        to_end = tl.exp((total - tl.cumsum(log_decay, 0)).to(tl.float32))
        key_place, key_mask = place[:, None] * key + keys[None, :], inside[:, None] & (keys < key)[None, :]
        k_c = tl.load(k + key_place, mask=key_mask, other=0.0).to(tl.float32) * to_end[:, None]
        w_c = tl.load(erased + key_place, mask=key_mask, other=0.0).to(tl.float32)
        value_place = place[:, None] * value + columns[None, :]
        value_mask = inside[:, None] & (columns < value)[None, :]
        u_c = tl.load(written + value_place, mask=value_mask, other=0.0).to(tl.float32)
        errors = u_c - tl.dot(w_c, s, input_precision=PRECISION)
        s = s * tl.exp(total.to(tl.float32)) + tl.dot(tl.trans(k_c), errors, input_precision=PRECISION)
    tl.store(state + state_place, s, mask=state_mask)
