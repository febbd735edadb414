"""The part of a hybrid layer that remembers: features and gates with which a recurrent state is read and written.

Legend: B batch, T tokens of a block, H heads, D head size, d = H D. Formulas follow arXiv 2605.16579, the
update rule arXiv 2412.06464.
"""

import math
from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor, nn

from arl2.attention.lora import LoRA
from arl2.attention.projections import Projected, Projections
from arl2.kernels.delta_rule import gated_delta_state
from arl2.kernels.fused import decay_and_strength, turned_to_unit
from arl2.kernels.linear import Linear, product_dtype
from arl2.kernels.rope import Rotation


class Gate(Linear):
    """``W x``, one number per token and head, in the dtype of ``W`` whatever the tokens are in.

    In training the weights may be float32 where all else is half precision: so few numbers are cheap in float32, and
    rounding them would move the whole state. The cast tokens live as long as the layer's activations do.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads, bias=False)

    def forward(self, x: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows heads"]:
        return super().forward(x.to(self.weight.dtype))


class MemoryBranch(nn.Module, ABC):
    """Features with which a state ``S`` in ``R^{D x D}`` per head is read and written; subclasses add the gates.

    Every token of a block reads the state as it was before the block, with its query.
    """

    phi_q: nn.Parameter
    phi_k: nn.Parameter
    phi_v: nn.Parameter
    changes: nn.ModuleDict

    def _add_features(self, width: int, heads: int, rank: int, alpha: float) -> None:
        head_dim = width // heads
        # One D x D matrix per head, [head, out, in].
        self.phi_q = nn.Parameter(torch.empty(heads, head_dim, head_dim))
        self.phi_k = nn.Parameter(torch.empty(heads, head_dim, head_dim))
        self.phi_v = nn.Parameter(torch.empty(heads, head_dim, head_dim))
        self.changes = nn.ModuleDict({name: LoRA(width, width, rank, alpha) for name in "qkv"} if rank else {})

    @abstractmethod
    def gates(self, x: Float[Tensor, "batch tokens width"]) -> tuple[Tensor, ...]:
        """What every token decays, erases and writes, ``[B, T, H]`` or ``[B, T, H, D]`` each."""

    @abstractmethod
    def advance(self, written: tuple[Tensor, ...], state: Tensor, *, frame_tokens: int) -> Tensor:
        """The state ``[B, H, D, D]`` after a block, given what :meth:`writes` made of it."""

    @abstractmethod
    def reset_gates(self, generator: torch.Generator | None) -> None:
        """Initialize what a subclass adds."""

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Initialize as in the published code: identity feature maps, slow decay, small gate projections."""
        if self.phi_q.is_meta:
            return  # there is nothing to fill, and arithmetic without memory would load torch's compiler
        _, head_dim, _ = self.phi_q.shape
        with torch.no_grad():
            for phi in (self.phi_q, self.phi_k, self.phi_v):
                phi.copy_(torch.eye(head_dim).expand_as(phi))
            self.reset_gates(generator)
        for change in self.changes.values():
            assert isinstance(change, LoRA)
            change.reset_parameters(generator)

    def queries(
        self, x: Tensor, raw: Projected, shared: Projections, rotation: Rotation
    ) -> Float[Tensor, "batch tokens heads head"]:
        """``q' = l2norm(rope(phi_q(q*)))``, with which :func:`read_state` reads."""
        q = shared.split(shared.norm_q(self._changed("q", raw.q, x)))
        return turned_to_unit(_per_head(self.phi_q, q), rotation)

    def writes(
        self, x: Tensor, raw_k: Tensor, raw_v: Tensor, shared: Projections, rotation: Rotation
    ) -> tuple[Tensor, ...]:
        """``k', v'`` ``[B, T, H, D]`` and the gates of every token, with which :meth:`advance` writes them."""
        k = shared.split(shared.norm_k(self._changed("k", raw_k, x)))
        v = shared.split(self._changed("v", raw_v, x))
        k = turned_to_unit(_per_head(self.phi_k, k), rotation)
        v = _per_head(self.phi_v, v)
        return k, v, *self.gates(x)

    def _changed(self, name: str, raw: Tensor, x: Tensor) -> Tensor:
        """The shared projection plus this branch's LoRA, added before the norm."""
        if name not in self.changes:
            return raw
        change = self.changes[name]
        assert isinstance(change, LoRA)
        return change.added_to(raw, x)


class StateBranch(MemoryBranch):
    """The published branch: one decay and one strength per token and head, written token after token."""

    def __init__(self, width: int, heads: int, rank: int, alpha: float) -> None:
        super().__init__()
        self.decay_proj = Gate(width, heads)
        self.beta_proj = Gate(width, heads)
        self.A_log = nn.Parameter(torch.empty(heads))
        self.dt_bias = nn.Parameter(torch.empty(heads))
        self._add_features(width, heads, rank, alpha)
        self.reset_parameters()

    def reset_gates(self, generator: torch.Generator | None) -> None:
        for proj in (self.decay_proj, self.beta_proj):
            nn.init.xavier_uniform_(proj.weight, gain=2**-2.5, generator=generator)
        start_slow(self.A_log, self.dt_bias, generator)

    def gates(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Log decay ``g`` and strength ``beta``, ``[B, T, H]``."""
        return decay_and_strength(self.decay_proj(x), self.beta_proj(x), self.A_log, self.dt_bias)

    def advance(self, written: tuple[Tensor, ...], state: Tensor, *, frame_tokens: int) -> Tensor:
        k, v, g, beta = written
        return gated_delta_state(k=k, v=v, g=g, beta=beta, initial_state=state)


def start_slow(a_log: Tensor, dt_bias: Tensor, generator: torch.Generator | None) -> None:
    """Slow decays, as published: rates uniform below 16, time steps log-uniform from 0.001 to 0.1. No gradients."""
    rates = torch.rand(a_log.shape, generator=generator) * 16
    a_log.copy_(rates.clamp_min(1e-3).log())
    low, high = math.log(1e-3), math.log(1e-1)
    dt = torch.exp(low + (high - low) * torch.rand(dt_bias.shape, generator=generator))
    dt_bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # inverse softplus


def read_state(
    q: Float[Tensor, "batch tokens heads key"], state: Float[Tensor, "batch heads key value"]
) -> Float[Tensor, "batch tokens heads value"]:
    """``inter_t = D**-0.5 S^T q'_t``, in the state's dtype; on a GPU, in half precision, in the queries' own.

    There it is one product on the tensor cores in place of a cast, a product in float32 and another pass over the
    result. The state itself stays float32; rounding the copy that is read moves the read by 2e-3 in bfloat16, as much
    as rounding the result does.
    """
    scale = q.shape[-1] ** -0.5
    if q.is_cuda and q.dtype.itemsize < 4 and not torch.is_grad_enabled():
        # Scaled and rounded in one kernel.
        rounded = torch.mul(state, scale, out=torch.empty_like(state, dtype=q.dtype))
        return torch.einsum("bthk,bhkv->bthv", q, rounded)
    return scale * torch.einsum("bthk,bhkv->bthv", q.to(state.dtype), state)


def _per_head(phi: Tensor, x: Tensor) -> Tensor:
    """Apply each head's matrix to that head."""
    work = product_dtype(x)
    return torch.einsum("hoi,bthi->btho", phi.to(work), x.to(work)).to(x.dtype)
