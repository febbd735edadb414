"""Both forms as they read, one token at a time, in float64: the truth that the fast ones are tested against."""

import torch
from jaxtyping import Float
from torch import Tensor


def channel_delta_state(
    *,
    k: Float[Tensor, "batch tokens heads key"],
    v: Float[Tensor, "batch tokens heads value"],
    g: Float[Tensor, "batch tokens heads key"],
    erase: Float[Tensor, "batch tokens heads key"],
    write: Float[Tensor, "batch tokens heads value"],
    initial_state: Float[Tensor, "batch heads key value"],
) -> Float[Tensor, "batch heads key value"]:
    """``S <- diag(exp g) S``, then ``S <- S + k (w * v - S^T (b * k))^T`` with erase ``b`` and write ``w``."""
    state = initial_state.double()
    for t in range(k.shape[1]):
        key = k[:, t].double()
        state = state * g[:, t].double().exp()[..., None]
        kept = torch.einsum("bhkv,bhk->bhv", state, erase[:, t].double() * key)
        state = state + torch.einsum("bhk,bhv->bhkv", key, write[:, t].double() * v[:, t].double() - kept)
    return state


def frame_delta_state(
    *,
    k: Float[Tensor, "batch tokens heads key"],
    v: Float[Tensor, "batch tokens heads value"],
    g: Float[Tensor, "batch tokens heads key"],
    beta: Float[Tensor, "batch tokens heads"],
    frame_tokens: int,
    initial_state: Float[Tensor, "batch heads key value"],
) -> Float[Tensor, "batch heads key value"]:
    """The joint write of each frame by recursive least squares: token after token, with the gain of all before it.

    The last token's state minimizes ``|S - diag(exp mean g) S_before|^2 + sum_t beta_t |S^T k_t - v_t|^2``, in
    whatever order the tokens of the frame come.
    """
    state = initial_state.double()
    batch, tokens, heads, size = k.shape
    for start in range(0, tokens, frame_tokens):
        state = state * g[:, start : start + frame_tokens].double().mean(1).exp()[..., None]
        spread = torch.eye(size, dtype=torch.float64, device=k.device).expand(batch, heads, size, size)
        for t in range(start, start + frame_tokens):
            key, strength = k[:, t].double(), beta[:, t].double()[..., None]
            moved = torch.einsum("bhij,bhj->bhi", spread, key)
            gain = strength * moved / (1 + strength * (key * moved).sum(-1, keepdim=True))
            error = v[:, t].double() - torch.einsum("bhkv,bhk->bhv", state, key)
            state = state + torch.einsum("bhk,bhv->bhkv", gain, error)
            spread = spread - torch.einsum("bhi,bhj->bhij", gain, moved)
    return state
