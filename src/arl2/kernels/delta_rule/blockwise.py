"""The state update with all chunks at once: a few dozen kernels for any number of tokens, instead of dozens a chunk.

A chunk takes the state S to M S + B (see :mod:`arl2.kernels.delta_rule.chunked` for E, A and c; with E linear in S):

    U = (I + A)^-1 diag(beta) V,   W = (I + A)^-1 diag(beta exp(c)) K,   E = U - W S,
    M = exp(c_C) I - (diag(exp(c_C - c)) K)^T W,   B = (diag(exp(c_C - c)) K)^T U.

Such maps compose to such a map, (M2 M1, M2 B1 + B2), so neighbouring chunks are joined pairwise, all pairs in one
matrix product, until few are left to be applied one by one. This is more arithmetic than going chunk by chunk, and
pays where launches cost more than arithmetic: on a GPU.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from arl2.kernels.delta_rule.chunked import CHUNK, start_state, work_dtype
from arl2.kernels.delta_rule.decay import cumulative, difference

_JOINED = 4  # times that pairs are joined: 16 chunks become one map


def gated_delta_state(
    *,
    k: Float[Tensor, "batch tokens heads key"],
    v: Float[Tensor, "batch tokens heads value"],
    g: Float[Tensor, "batch tokens heads"],
    beta: Float[Tensor, "batch tokens heads"],
    initial_state: Float[Tensor, "batch heads key value"] | None = None,
) -> Float[Tensor, "batch heads key value"]:
    """The final state, at least float32. Differentiable."""
    work = work_dtype(k, v, initial_state)
    batch, tokens, heads, key = k.shape
    state = start_state(k, v, initial_state, work)
    if not tokens:
        return state.unflatten(0, (batch, heads))
    joined = min(_JOINED, (-(-tokens // CHUNK) - 1).bit_length())
    padding = -tokens % (CHUNK << joined)
    # Tokens of zeros at the end: no decay, nothing written.
    k_c, v_c = (_chunks(x, padding).to(work) for x in (k, v))  # [B H n C D]
    c = cumulative(_chunks(g[..., None], padding), -2)  # [B H n C 1]
    from_start = c[0].to(work).exp()
    strength = _chunks(beta[..., None], padding).to(work)
    # Above the diagonal stands growth, and exp of it may be infinite: cut it before exp, not after.
    later = torch.ones(CHUNK, CHUNK, dtype=torch.bool, device=k.device).triu()
    decay = difference(c, tuple(part.mT for part in c)).masked_fill_(later, -torch.inf).to(work).exp()
    overlaps = (k_c @ k_c.mT) * (strength * decay)
    due = torch.cat([strength * v_c, strength * from_start * k_c], dim=-1)
    solved = torch.linalg.solve_triangular(overlaps, due, upper=False, unitriangular=True)
    total = tuple(part[..., -1:, :] for part in c)
    kept = (k_c * difference(total, c).to(work).exp()).mT @ solved  # [B H n K V+K]
    value = v.shape[-1]
    shift, lost = kept[..., :value], kept[..., value:]
    move = torch.eye(key, dtype=work, device=k.device) * from_start[..., -1:, :] - lost
    for _ in range(joined):
        first, second = move[:, :, ::2], move[:, :, 1::2]
        shift = torch.matmul(second, shift[:, :, ::2]) + shift[:, :, 1::2]
        move = second @ first
    for m, b in zip(move.flatten(0, 1).unbind(1), shift.flatten(0, 1).unbind(1), strict=True):
        state = torch.baddbmm(b, m, state)
    return state.unflatten(0, (batch, heads))


def _chunks(x: Tensor, padding: int) -> Tensor:
    """``[B, T, H, D]`` as ``[B, H, chunks, CHUNK, D]``, padded at the end."""
    return F.pad(x, (0, 0, 0, 0, 0, padding)).unflatten(1, (-1, CHUNK)).permute(0, 3, 1, 2, 4)
