"""Every Triton kernel in Triton's interpreter against its twin in plain torch. Run as a process of its own.

TRITON_INTERPRET is read when a kernel is defined, so it cannot be switched on for one test among others.
"""

import os

os.environ["TRITON_INTERPRET"] = "1"

import warnings

import torch
import torch.nn.functional as F
from hypothesis import given, seed, settings
from hypothesis import strategies as st
from torch import Tensor

from arl2.kernels import fused, fused_triton
from arl2.kernels.delta_rule import gated_delta_state, triton_state
from arl2.kernels.norm import l2_norm, layer_norm, rms_norm
from arl2.kernels.rope import Rotation, rope_angles

# Half precision rounds what is written (5e-4 in float16); float32 differs by the order of sums alone.
ERRORS = {torch.float32: 2e-6, torch.float16: 2e-3}
DTYPES = st.sampled_from(list(ERRORS))
few = settings(max_examples=8, deadline=None, database=None)


def randn(*shape: int, number: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(number))


def close(ours: Tensor, twin: Tensor, limit: float) -> None:
    assert ours.shape == twin.shape
    error = float((ours.double() - twin.double()).norm() / twin.double().norm().clamp_min(1e-6))
    assert error <= limit, f"{error:.1e} off"


@seed(1)
@few
@given(
    tokens=st.sampled_from([1, 5, 63, 64, 65, 130]),
    heads=st.integers(1, 2),
    key=st.sampled_from([8, 12, 16, 32]),
    value=st.sampled_from([8, 16, 24, 40]),
    decay=st.sampled_from([0.0, 0.1, 60.0]),
    dtype=DTYPES,
)
def states(tokens: int, heads: int, key: int, value: int, decay: float, dtype: torch.dtype) -> None:
    k = F.normalize(randn(1, tokens, heads, key), dim=-1).to(dtype)
    # As the model makes them: turned over heads, so not contiguous.
    v = randn(1, heads, tokens, value, number=1).to(dtype).transpose(1, 2)
    g = -decay * torch.rand(1, tokens, heads, generator=torch.Generator().manual_seed(2))
    beta = 2 * torch.sigmoid(randn(1, tokens, heads, number=3))
    given_state = randn(1, heads, key, value, number=4)
    arguments = {"k": k, "v": v, "g": g, "beta": beta, "initial_state": given_state}
    twin = gated_delta_state(**arguments, backend="naive")
    before = given_state.clone()
    close(gated_delta_state(**arguments, backend="triton"), twin, ERRORS[dtype])
    assert torch.equal(given_state, before)
    close(triton_state.gated_delta_state(**arguments), twin, ERRORS[dtype])


@seed(2)
@few
@given(
    batch=st.integers(1, 2),
    frames=st.integers(1, 3),
    heads=st.sampled_from([1, 2, 3, 5]),
    head=st.sampled_from([12, 16, 24, 32]),
    dtype=DTYPES,
)
def rows(batch: int, frames: int, heads: int, head: int, dtype: torch.dtype) -> None:
    tokens, width, limit = 6 * frames, heads * head, ERRORS[dtype]
    rotation = Rotation(rope_angles(range(3, 3 + frames), 2, 3, head))
    x, other = randn(batch, tokens, width).to(dtype), randn(batch, tokens, width, number=1).to(dtype)
    weight, bias = randn(width, number=2), randn(width, number=3)
    normed = rms_norm(x.float(), weight, 1e-6)
    close(fused_triton.rms_normed(x, weight, 1e-6, None, None, 1), normed, limit)
    turned = fused_triton.rms_normed(x, weight, 1e-6, rotation.cos, rotation.sin, heads)
    close(turned, rotation(normed.unflatten(-1, (heads, -1))).flatten(-2), limit)

    # As one product for q, k and v leaves them: a third of each row.
    third = torch.cat([other, x, other], dim=-1)[..., width : 2 * width]
    close(fused_triton.rms_normed(third, weight, 1e-6, None, None, 1), normed, limit)

    # As a product over heads leaves them: batch, heads, tokens.
    per_head = randn(batch, heads, tokens, head, number=4).to(dtype).transpose(1, 2)
    close(fused_triton.turned_to_unit(per_head, rotation.cos, rotation.sin), l2_norm(rotation(per_head.float())), limit)
    gate = randn(batch, tokens, heads, number=5)
    intra = x.unflatten(-1, (heads, -1))
    read = intra.float() + torch.sigmoid(gate)[..., None] * per_head.float()
    close(fused_triton.with_read(intra, gate, per_head), read, limit)

    six = randn(batch, frames, 1, 6, width, number=6).unbind(-2)  # strided, as a layer's modulations are
    shift, scale, amount = six[0], six[1], six[5]
    by_frame = layer_norm(x, 1e-6).unflatten(1, (frames, -1))
    modulated = torch.addcmul(shift, by_frame, 1 + scale).flatten(1, 2)
    close(fused_triton.layer_normed(x, shift[:, :, 0], scale[:, :, 0], 1e-6, True), modulated, limit)
    shape = (batch, 1, width)
    affine = layer_norm(x, 1e-6, weight, bias)
    close(fused_triton.layer_normed(x, bias.expand(shape), weight.expand(shape), 1e-6, False), affine, limit)
    total = x.float().unflatten(1, (frames, -1)) + other.float().unflatten(1, (frames, -1)) * amount
    close(fused_triton.gated_sum(x, other, amount[:, :, 0]), total.flatten(1, 2), limit)

    # Up to where exp overflows, and far below 0.
    decay, strength = 60 * randn(batch, tokens, heads, number=7), 9 * randn(batch, tokens, heads, number=8)
    a_log, dt_bias = randn(heads, number=9), randn(heads, number=10)
    g, beta = fused_triton.decay_and_strength(decay, strength, a_log, dt_bias)
    close(g, -a_log.exp() * F.softplus(decay + dt_bias), 2e-6)
    close(beta, 2 * torch.sigmoid(strength), 2e-6)


def operations() -> None:
    """What torch asks of a custom operation: schema, fake and real agree, and the gradient where there is one."""
    x, rotation = randn(1, 6, 24), Rotation(rope_angles(range(1), 2, 3, 12))
    heads = x.unflatten(-1, (2, 12))
    row = x[:, :1]
    for operation, arguments in (
        (torch.ops.arl2.rms_normed.default, (x, x[0, 0], 1e-6, rotation.cos, rotation.sin, 2)),
        (torch.ops.arl2.turned_to_unit.default, (heads, rotation.cos, rotation.sin)),
        (torch.ops.arl2.layer_normed.default, (x, row, row, 1e-6, True)),
        (torch.ops.arl2.gated_sum.default, (x, x, row)),
        (torch.ops.arl2.with_read.default, (heads, x[..., :2], heads)),
        (torch.ops.arl2.decay_and_strength.default, (x[..., :2], x[..., :2], x[0, 0, :2], x[0, 0, :2])),
    ):
        torch.library.opcheck(operation, arguments, test_utils=("test_schema", "test_faketensor"))
    # A few tokens: what many chunks give is compared above.
    k, v = (randn(1, 5, 1, 16, number=n).requires_grad_() for n in range(2))
    g, beta = (-torch.rand(1, 5, 1)).requires_grad_(), torch.rand(1, 5, 1).requires_grad_()
    state = randn(1, 1, 16, 16).requires_grad_()
    torch.library.opcheck(torch.ops.arl2.gated_delta_state.default, (k, v, g, beta, state, "triton"))


def bfloat16_canary() -> None:
    """In bfloat16 the interpreter multiplies matrices wrongly; when it no longer does, test bfloat16 here, too."""
    import triton
    import triton.language as tl

    @triton.jit
    def product(a, b, c):
        i = tl.arange(0, 16)
        at = i[:, None] * 16 + i[None, :]
        tl.store(c + at, tl.dot(tl.load(a + at), tl.load(b + at)))

    a, b = (randn(16, 16, number=n).bfloat16() for n in range(2))
    c = torch.zeros(16, 16)
    product[(1,)](a, b, c)
    right = torch.allclose(c, a.float() @ b.float(), atol=1e-2)
    print("bfloat16 in the interpreter:", "right" if right else "wrong")


if __name__ == "__main__":
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    states()
    rows()
    assert fused is not None  # its import defines the operations
    operations()
    bfloat16_canary()
    print("all kernels equal their twins")
