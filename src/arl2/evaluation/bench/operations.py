"""The operations of a layer and of the VAE, each with its naive twin and the best library that is installed."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from arl2.evaluation.bench.gate import random_writes
from arl2.kernels import fused
from arl2.kernels.attention import naive as naive_attention
from arl2.kernels.attention import softmax_attention
from arl2.kernels.backends import is_installed
from arl2.kernels.causal_input import causal_input
from arl2.kernels.causal_input.naive import causal_input_naive
from arl2.kernels.delta_rule import gated_delta_state
from arl2.kernels.delta_rule import naive as naive_delta
from arl2.kernels.rope import Rotation

Tensors = Mapping[str, Tensor]
Run = Callable[..., Any]
_EPS = 1e-6
_LARGEST_SCORES = 1 << 29  # bytes of a score matrix that naive attention may write


@dataclass(frozen=True)
class Operation:
    """One operation.

    Attributes:
        name: for people.
        inputs: by the names of the arguments.
        ours: what the model runs.
        naive: its twin: plain formulas, in the dtype of the inputs it is given.
        library: name and call of the best other implementation; None if there is none.
        trained: inputs that have gradients; none where training uses another form.
        too_large: the twin is not timed at this size.
    """

    name: str
    inputs: dict[str, Tensor]
    ours: Run
    naive: Run
    library: tuple[str, Run] | None = None
    trained: tuple[str, ...] = ()
    too_large: bool = field(default=False)


def operations(
    *, frames: int, rows: int, columns: int, heads: int, head_dim: int, dtype: torch.dtype, device: torch.device
) -> Iterator[Operation]:
    """All of them, at the sizes of a block and one layer."""
    tokens, width = frames * rows * columns, heads * head_dim
    draw = torch.Generator().manual_seed(3)

    def made(*shape: int, of: torch.dtype = dtype) -> Tensor:
        return torch.randn(shape, generator=draw).to(device, of)

    yield Operation(
        "state update",
        random_writes((1, tokens, heads, head_dim), dtype, device),
        gated_delta_state,
        token_loop,
        ("flash-linear-attention", lambda **x: gated_delta_state(**x, backend="fla"))
        if device.type == "cuda" and is_installed("fla")
        else None,
        ("k", "v", "g", "beta"),
    )
    for name, seen in (("attention inside a block", tokens), ("attention over four blocks", 4 * tokens)):
        q, k, v = made(1, tokens, heads, head_dim), made(1, seen, heads, head_dim), made(1, seen, heads, head_dim)
        yield Operation(
            name,
            {"q": q, "k": k, "v": v},
            softmax_attention,
            _attention,
            ("torch, heads first", _heads_first),
            ("q", "k", "v"),
            too_large=heads * tokens * seen * 4 > _LARGEST_SCORES,
        )
    rotation = Rotation.of_grid(range(7, 7 + frames), rows, columns, head_dim, device)
    x, per_head = made(1, tokens, width), made(1, tokens, heads, head_dim)
    gain = made(width, of=torch.float32)
    yield Operation(
        "RMS norm and rotation",
        {"x": x, "weight": gain},
        lambda x, weight: fused.rms_normed_and_turned(x, weight, _EPS, rotation, heads),
        lambda x, weight: _turned(_rms(x) * weight, rotation, heads),
        trained=("x",),
    )
    yield Operation(
        "rotation and unit length",
        {"x": per_head},
        lambda x: fused.turned_to_unit(x, rotation),
        lambda x: _unit(_turned(x.flatten(2), rotation, heads)),
        trained=("x",),
    )
    shift, scale, gate = (made(1, frames, 1, width, of=torch.float32) for _ in range(3))
    yield Operation(
        "layer norm and modulation",
        {"x": x, "shift": shift, "scale": scale},
        lambda x, shift, scale: fused.modulated(x, shift, scale, _EPS),
        _modulated,
        trained=("x",),
    )
    yield Operation(
        "gated sum",
        {"x": x, "change": made(1, tokens, width), "gate": gate},
        fused.gated_sum,
        lambda x, change, gate: x + change * gate.expand(-1, -1, tokens // frames, -1).flatten(1, 2),
        trained=("x", "change"),
    )
    yield Operation(
        "gate of the state's read",
        {"intra": per_head, "gate": made(1, tokens, heads), "inter": made(1, tokens, heads, head_dim)},
        fused.with_read,
        lambda intra, gate, inter: intra + inter / (1 + torch.exp(-gate))[..., None],
        trained=("intra", "gate", "inter"),
    )
    yield Operation(
        "decay and write strength",
        {
            "decay": made(1, tokens, heads),
            "strength": made(1, tokens, heads),
            "a_log": made(heads, of=torch.float32),
            "dt_bias": made(heads, of=torch.float32),
        },
        fused.decay_and_strength,
        lambda decay, strength, a_log, dt_bias: (
            -torch.exp(a_log) * torch.log1p(torch.exp(decay + dt_bias)),
            2 / (1 + torch.exp(-strength)),
        ),
        trained=("decay", "strength"),
    )
    yield _vae_input(made, rows, columns)


def _vae_input(made: Callable[..., Tensor], rows: int, columns: int) -> Operation:
    """Between two convolutions of the Wan VAE's middle, whose pictures have the latent's own size."""
    channels, height, width = 384, 2 * rows, 2 * columns
    inputs = {
        "x": made(1, 3, height, 1, width, 1, channels),
        "bias": made(channels),
        "residual": made(1, 3, height, width, channels),
        "gamma": made(channels),
        "past": made(1, 2, height, width, channels),
    }

    def naive(x: Tensor, bias: Tensor, residual: Tensor, gamma: Tensor, past: Tensor) -> tuple[Tensor, ...]:
        return causal_input_naive(x, bias, residual, gamma, past, 2, 0, True, True)

    return Operation(
        "input of a causal convolution",
        inputs,
        lambda **given: causal_input(**given, lookback=2, silu=True, want_sum=True),
        naive,
    )


def token_loop(*, k: Tensor, v: Tensor, g: Tensor, beta: Tensor) -> Tensor:
    """The recurrence token by token, in place, all heads at once: what a recurrent kernel does.

    The twin in ``kernels/delta_rule/naive.py`` is the truth; it copies the state at every token, so a speed-up over it
    would flatter.
    """
    if torch.is_grad_enabled() or k.dtype == torch.float64:
        return naive_delta.gated_delta_state(k=k, v=v, g=g, beta=beta)
    k, v, decay, beta = (x.float().transpose(1, 2).contiguous() for x in (k, v, g.exp(), beta))
    batch, heads, tokens, key = k.shape
    state = torch.zeros(batch * heads, key, v.shape[-1], device=k.device)
    k, v = k.reshape(-1, tokens, key), v.reshape(-1, tokens, v.shape[-1])
    decay, beta = decay.reshape(-1, tokens), beta.reshape(-1, tokens)
    for t in range(tokens):
        state.mul_(decay[:, t, None, None])
        k_t = k[:, t]
        error = torch.baddbmm(v[:, t, None], k_t[:, None], state, alpha=-1)
        state.baddbmm_((beta[:, t, None] * k_t)[..., None], error)
    return state.view(batch, heads, key, -1)


def _attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    if q.dtype == torch.float64:
        return naive_attention.softmax_attention(q=q, k=k, v=v)
    scores = q.shape[-1] ** -0.5 * torch.einsum("bqhd,bkhd->bhqk", q, k)
    return torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v)


def _heads_first(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Each head's tokens contiguous, as libraries ask for; the copies are part of what it takes."""
    q, k, v = (x.transpose(1, 2).contiguous() for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def _rms(x: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + _EPS).sqrt()


def _turned(x: Tensor, rotation: Rotation, heads: int) -> Tensor:
    """Pairs of numbers as complex ones, times those of the angles."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))  # there are no complex numbers of half precision
    pairs = torch.view_as_complex(wide.unflatten(-1, (heads, -1, 2)).contiguous())
    waves = torch.complex(*(wave.to(wide.device, wide.dtype) for wave in (rotation.cos, rotation.sin)))
    return torch.view_as_real(pairs * waves).flatten(-2)


def _unit(x: Tensor) -> Tensor:
    return x / (x.square().sum(-1, keepdim=True) + 1e-6).sqrt()


def _modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    normed = centred / (centred.square().mean(-1, keepdim=True) + _EPS).sqrt()
    return (normed.unflatten(1, (shift.shape[1], -1)) * (1 + scale) + shift).flatten(1, 2)
