"""The part of a hybrid layer that remembers: features and gates with which a recurrent state is read and written.

Legend: B batch, T tokens of a block, H heads, D head size, d = H D. Formulas follow arXiv 2605.16579, the
update rule arXiv 2412.06464.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from arl2.attention.folded import Affine, Folded, Watched, may_fold
from arl2.attention.kind import SelfAttention
from arl2.attention.lora import LoRA, changed_weight
from arl2.attention.projections import Projected, Projections, RMSNorm
from arl2.kernels.delta_rule import gated_delta_state
from arl2.kernels.fused import decay_and_strength, turned_to_unit
from arl2.kernels.linear import Linear, product_dtype
from arl2.kernels.rope import Rotation

# Of a head's features after a norm: then an epsilon of 1e-6 moves its unit vectors by less than float32 rounds.
_LEAST_SQUARE = 8.0
_NOTHING = 1e-12  # no length of what was computed from anything


class Gate(Linear):
    """``W x``, one number per token and head, in the dtype of ``W`` whatever the tokens are in.

    In training the weights may be float32 where all else is half precision: so few numbers are cheap in float32, and
    rounding them would move the whole state. The cast tokens live as long as the layer's activations do.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads, bias=False)

    def forward(self, x: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows heads"]:
        return super().forward(x.to(self.weight.dtype))


class ReadsState(SelfAttention):
    """Self-attention with a state beside it, whose read passes a gate."""

    state: "MemoryBranch"
    gate_proj: Gate


class MemoryBranch(nn.Module, ABC):
    """Features with which a state ``S`` in ``R^{D x D}`` per head is read and written; subclasses add the gates.

    Every token of a block reads the state as it was before the block, with its query.

    Attributes:
        gate_layers: names of the layers whose results are all that :meth:`gates` needs; none if it needs more.
    """

    gate_layers: ClassVar[tuple[str, ...]] = ()
    phi_q: nn.Parameter
    phi_k: nn.Parameter
    phi_v: nn.Parameter
    changes: nn.ModuleDict
    folded_read: Folded
    folded_write: Folded

    def _add_features(self, width: int, heads: int, rank: int, alpha: float) -> None:
        head_dim = width // heads
        # One D x D matrix per head, [head, out, in].
        self.phi_q = nn.Parameter(torch.empty(heads, head_dim, head_dim))
        self.phi_k = nn.Parameter(torch.empty(heads, head_dim, head_dim))
        self.phi_v = nn.Parameter(torch.empty(heads, head_dim, head_dim))
        self.changes = nn.ModuleDict({name: LoRA(width, width, rank, alpha) for name in "qkv"} if rank else {})
        self.folded_read, self.folded_write = Folded(), Folded()

    @abstractmethod
    def gates(self, x: Float[Tensor, "batch tokens width"]) -> tuple[Tensor, ...]:
        """What every token decays, erases and writes, ``[B, T, H]`` or ``[B, T, H, D]`` each."""

    def gates_of(self, *logits: Float[Tensor, "batch tokens heads"]) -> tuple[Tensor, ...]:
        """:meth:`gates`, from what ``gate_layers`` give; needed where there are any."""
        raise NotImplementedError(f"{type(self).__name__} has no gate_layers.")

    @abstractmethod
    def advance(self, written: tuple[Tensor, ...], state: Tensor, *, frame_tokens: int) -> Tensor:
        """The state ``[B, H, D, D]`` after a block, given what :meth:`writes` made of it."""

    def advance_all(
        self, written: Sequence[Tensor], states: Sequence[Tensor], *, frame_tokens: int
    ) -> Sequence[Tensor]:
        """Each of several states after the same block, as by :meth:`advance`, in one operation for all of them."""
        if len(states) == 1:
            return [self.advance(tuple(written), states[0], frame_tokens=frame_tokens)]
        copies = tuple(one.repeat(len(states), *[1] * (one.dim() - 1)) for one in written)
        return self.advance(copies, torch.cat(tuple(states)), frame_tokens=frame_tokens).chunk(len(states))

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
        joint = self.folded_write.of(lambda watched: self._fold_write(shared, watched)) if may_fold(x) else None
        if joint is not None:
            sizes = [x.shape[-1]] * 2 + [shared.heads] * len(self.gate_layers)
            k, v, *logits = F.linear(x, *joint).split(sizes, dim=-1)
            gates = self.gates_of(*logits) if logits else self.gates(x)
            return _unit(shared.split(k), rotation), shared.split(v), *gates
        k = shared.split(shared.norm_k(self._changed("k", raw_k, x)))
        v = shared.split(self._changed("v", raw_v, x))
        k = turned_to_unit(_per_head(self.phi_k, k), rotation)
        v = _per_head(self.phi_v, v)
        return k, v, *self.gates(x)

    def _changed(self, name: str, raw: Tensor, x: Tensor) -> Tensor:
        """The shared projection plus this branch's LoRA, added before the norm."""
        change = self._change(name)
        return raw if change is None else change.added_to(raw, x)

    def project(self, x: Tensor, owner: ReadsState, rotation: Rotation) -> tuple[Projected, Tensor, Tensor]:
        """q, k, v before their norms, :meth:`queries`, and the gate of the read ``[B, T, H]``.

        They are one product where that is faster.
        """
        shared = owner.shared
        joint = self.folded_read.of(lambda watched: self._fold_read(owner, watched)) if may_fold(x) else None
        if joint is None:
            raw = shared.project(x)
            return raw, self.queries(x, raw, shared, rotation), owner.gate_proj(x)
        *raw, own, gate = F.linear(x, *joint).split([x.shape[-1]] * 4 + [shared.heads], dim=-1)
        return Projected(*raw), _unit(shared.split(own), rotation), gate

    def _fold_read(self, owner: ReadsState, watched: Watched) -> Affine | None:
        """The weights of q, k, v, the state's queries and the gate, one below the other."""
        layers = [watched.layer(owner.shared, name, Linear) for name in ("to_q", "to_k", "to_v")]
        gate = watched.layer(owner, "gate_proj", Gate)
        own = self._features("q", layers[0], watched.layer(owner.shared, "norm_q", RMSNorm), watched)
        return _stacked([*layers, own, gate])

    def _fold_write(self, shared: Projections, watched: Watched) -> Affine | None:
        """The weights of the state's keys, values and gates, one below the other."""
        to_k, to_v = watched.layer(shared, "to_k", Linear), watched.layer(shared, "to_v", Linear)
        k = self._features("k", to_k, watched.layer(shared, "norm_k", RMSNorm), watched)
        v = self._features("v", to_v, None, watched)
        return _stacked([k, v, *(watched.layer(self, name, Gate) for name in self.gate_layers)])

    def _features(self, name: str, layer: Linear, norm: RMSNorm | None, watched: Watched) -> Affine | None:
        """``phi`` after a projection with its LoRA, and a norm's weights between them, as one product.

        The norm itself is left out: it scales a whole token, and queries and keys are brought to length 1 after it.
        None where ``phi`` and the norm's weights leave a head so small that the epsilon of that would count, beside
        which stands the scale of the token. A head with ``phi = 1`` has a square of D.
        """
        phi = watched.parameter(self, f"phi_{name}")
        change = watched.layer(self.changes, name, LoRA) if name in self.changes else None
        if not watched.is_plain:
            return None
        turn = phi.double()
        if norm is not None:
            turn = turn * norm.weight.double().unflatten(0, (phi.shape[0], 1, -1))
            if turn.square().sum((1, 2)).min() < _LEAST_SQUARE:
                return None
        weight = changed_weight(layer.weight, change).unflatten(0, (phi.shape[0], -1))
        bias = layer.bias.double().unflatten(0, (phi.shape[0], -1, 1))
        return Affine((turn @ weight).flatten(0, 1).float(), (turn @ bias).flatten().float())

    def _change(self, name: str) -> LoRA | None:
        if name not in self.changes:
            return None
        change = self.changes[name]
        assert isinstance(change, LoRA)
        return change


class StateBranch(MemoryBranch):
    """The published branch: one decay and one strength per token and head, written token after token."""

    gate_layers = ("decay_proj", "beta_proj")

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
        return self.gates_of(self.decay_proj(x), self.beta_proj(x))

    def gates_of(self, *logits: Tensor) -> tuple[Tensor, Tensor]:
        decay, strength = logits
        return decay_and_strength(decay, strength, self.A_log, self.dt_bias)

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
    if q.device.type == "cpu" and not torch.is_grad_enabled():
        # As einsum does it, with half of the operations: these are small.
        read = torch.bmm(q.to(state.dtype).transpose(1, 2).flatten(0, 1), state.flatten(0, 1))
        return (scale * read).unflatten(0, state.shape[:2]).transpose(1, 2)
    return scale * torch.einsum("bthk,bhkv->bthv", q.to(state.dtype), state)


def _per_head(phi: Tensor, x: Tensor) -> Tensor:
    """Apply each head's matrix to that head."""
    work = product_dtype(x)
    return torch.einsum("hoi,bthi->btho", phi.to(work), x.to(work)).to(x.dtype)


def _stacked(layers: Sequence[Linear | Affine | None]) -> Affine | None:
    """The weights of several products of the same tokens, one below the other; None if one is missing."""
    weights, biases = [], []
    for one in layers:
        if one is None:
            return None
        weights.append(one.weight)
        biases.append(one.weight.new_zeros(len(one.weight)) if one.bias is None else one.bias)
    return Affine(torch.cat(weights), torch.cat(biases))


def _unit(x: Tensor, rotation: Rotation) -> Tensor:
    """Turned and of length 1, whatever the scale; what is 0 stays 0. ``x`` is the caller's no more."""
    x = rotation(x)
    return x.div_(torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min_(_NOTHING))
