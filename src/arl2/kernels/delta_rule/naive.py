"""The recurrence written as it reads in the paper, one token at a time, in float64.

This file is the truth that the other backends are tested against; nothing here is meant to be fast.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def gated_delta_rule(
    *,
    q: Float[Tensor, "batch tokens heads key"],
    k: Float[Tensor, "batch tokens heads key"],
    v: Float[Tensor, "batch tokens heads value"],
    g: Float[Tensor, "batch tokens heads"],
    beta: Float[Tensor, "batch tokens heads"],
    scale: float | None = None,
    initial_state: Float[Tensor, "batch heads key value"] | None = None,
) -> tuple[Float[Tensor, "batch tokens heads value"], Float[Tensor, "batch heads key value"]]:
    """Outputs (each token reads the state it has just written) and the final state, both float64."""
    scale = k.shape[-1] ** -0.5 if scale is None else scale
    q = q.double()
    outputs = []
    state = _start(k, v, initial_state)
    for t in range(k.shape[1]):
        state = _write(state, k[:, t].double(), v[:, t].double(), g[:, t].double(), beta[:, t].double())
        outputs.append(scale * torch.einsum("bhkv,bhk->bhv", state, q[:, t]))
    o = torch.stack(outputs, dim=1) if outputs else v.double()
    return o, state


def gated_delta_state(
    *,
    k: Float[Tensor, "batch tokens heads key"],
    v: Float[Tensor, "batch tokens heads value"],
    g: Float[Tensor, "batch tokens heads"],
    beta: Float[Tensor, "batch tokens heads"],
    initial_state: Float[Tensor, "batch heads key value"] | None = None,
) -> Float[Tensor, "batch heads key value"]:
    """The final state alone, float64."""
    state = _start(k, v, initial_state)
    for t in range(k.shape[1]):
        state = _write(state, k[:, t].double(), v[:, t].double(), g[:, t].double(), beta[:, t].double())
    return state


def _start(k: Tensor, v: Tensor, initial_state: Tensor | None) -> Tensor:
    if initial_state is not None:
        return initial_state.double()
    batch, _, heads, key = k.shape
    return torch.zeros(batch, heads, key, v.shape[-1], dtype=torch.float64, device=k.device)


def _write(state: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor) -> Tensor:
    """S <- exp(g) S, then S <- S + beta k (v - S^T k)^T, for one token."""
    state = state * g.exp()[..., None, None]
    error = v - torch.einsum("bhkv,bhk->bhv", state, k)
    return state + torch.einsum("bhk,bhv->bhkv", beta[..., None] * k, error)
