"""The delta rule with decay, erasing and writing per channel, by chunks.

Kimi Delta Attention (arXiv 2510.26692) decays each channel of the key on its own; Gated DeltaNet-2 (arXiv 2605.22791)
gives erasing ``b`` (per channel of the key) and writing ``w`` (per channel of the value) gates of their own:

    S <- diag(exp g_t) S,   S <- S + k_t (w_t * v_t - S^T (b_t * k_t))^T.

With ``b = w = beta`` it is the first, and with one decay for all channels, too, the gated delta rule. Inside a chunk of
C tokens with cumulative log decay ``c_t`` (a vector) and incoming state S the token errors solve

    (I + A) E = W * V - (exp(c) * B * K) S,   A_ts = sum_i exp(c_ti - c_si) b_ti k_ti k_si   for s < t,

and then S' = diag(exp c_C) S + (exp(c_C - c) * K)^T E. Decays are taken as differences <= 0 for every pair of tokens
and channel, so that none, however strong, overflows; that tensor, ``C x C x D``, is why chunks are short.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from arl2.kernels.delta_rule.chunked import start_state, work_dtype
from arl2.kernels.delta_rule.decay import cumulative, difference

CHANNEL_CHUNK = 16  # tokens


def channel_delta_state(
    *,
    k: Float[Tensor, "batch tokens heads key"],
    v: Float[Tensor, "batch tokens heads value"],
    g: Float[Tensor, "batch tokens heads key"],
    erase: Float[Tensor, "batch tokens heads key"],
    write: Float[Tensor, "batch tokens heads value"],
    initial_state: Float[Tensor, "batch heads key value"],
) -> Float[Tensor, "batch heads key value"]:
    """The final state, at least float32. Differentiable in every argument."""
    work = work_dtype(k, v, initial_state)
    state = start_state(k, v, initial_state, work)
    for start in range(0, k.shape[1], CHANNEL_CHUNK):
        k_c, v_c, b_c, w_c, g_c = (_heads_first(x, start) for x in (k, v, erase, write, g))
        state = _advance(k_c.to(work), (w_c * v_c).to(work), (b_c * k_c).to(work), g_c, state)
    return state.unflatten(0, (k.shape[0], -1))


def _advance(k: Tensor, written: Tensor, erased: Tensor, g: Tensor, state: Tensor) -> Tensor:
    """The state ``[N K V]`` after one chunk of ``[N C D]``."""
    work, length = k.dtype, k.shape[1]
    sums = cumulative(g, 1)
    passed = difference(tuple(part[:, :, None] for part in sums), tuple(part[:, None] for part in sums))  # [N C C D]
    not_earlier = torch.ones(length, length, dtype=torch.bool, device=k.device).triu()
    # Above the diagonal stands growth, and exp of it may be infinite: cut it before exp, not after.
    decay = passed.masked_fill(not_earlier[..., None], -torch.inf).to(work).exp()
    overlaps = torch.einsum("nti,nsi,ntsi->nts", erased, k, decay)
    due = written - (erased * sums[0].to(work).exp()) @ state
    errors = torch.linalg.solve_triangular(overlaps, due, upper=False, unitriangular=True)
    last = tuple(part[:, -1:] for part in sums)
    to_end = difference(last, sums).to(work).exp()
    return last[0].to(work).exp().mT * state + (k * to_end).mT @ errors


def _heads_first(x: Tensor, start: int) -> Tensor:
    """A chunk of ``[B T H D]`` as ``[N C D]``."""
    return x[:, start : start + CHANNEL_CHUNK].transpose(1, 2).flatten(0, 1)
