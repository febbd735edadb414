"""The gated delta rule by chunks: matrix products inside a chunk, one small state between chunks.

Inside a chunk of C tokens with cumulative log decay c_t and incoming state S, the token errors
e_t = beta_t (v_t - S_t^T k_t) solve one unit lower triangular system,

    (I + A) E = diag(beta) (V - diag(exp c) K S),   A_ts = beta_t exp(c_t - c_s) k_t . k_s   for s < t,

and then S' = exp(c_C) S + (diag(exp(c_C - c)) K)^T E. This is the WY form of arXiv 2412.06464, section 3.3, solved
directly for the errors: the state is known when a chunk begins, so the two factors U and W are never formed.

Every exponent is a difference c_t - c_s with s <= t, hence <= 0: no decay, however strong, overflows. The sums are kept
in float64, or as two float32 numbers (see :mod:`arl2.kernels.delta_rule.decay`), because a difference of large float32
sums would lose the small decays that follow a strong one.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from arl2.kernels.delta_rule.decay import cumulative, difference

CHUNK = 64  # tokens; on a CPU 32 to 80 measure alike, and GPU kernels want a power of two


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
    """Outputs in ``v``'s dtype and the final state, at least float32. Differentiable in every argument."""
    scale = k.shape[-1] ** -0.5 if scale is None else scale
    work = work_dtype(k, v, initial_state)
    gates = _Gates(g, beta, work)
    state = start_state(k, v, initial_state, work)
    outputs = []
    for i, start in enumerate(range(0, k.shape[1], CHUNK)):
        k_c, v_c, q_c = (_heads_first(x, start, work) for x in (k, v, q))
        chunk = gates.chunk(i, k_c.shape[1])
        errors, next_state = _advance(k_c, v_c, chunk, state)
        # A token reads what it has just written: its own error counts undecayed, which the strict decay leaves out.
        scores = (q_c @ k_c.mT) * (chunk.decay + torch.eye(k_c.shape[1], dtype=work, device=k.device))
        outputs.append(scale * torch.baddbmm(scores @ errors, q_c * chunk.from_start, state))
        state = next_state
    o = torch.cat(outputs, dim=1).unflatten(0, (k.shape[0], -1)).transpose(1, 2) if outputs else v
    return o.to(v.dtype), state.unflatten(0, (k.shape[0], -1))


def gated_delta_state(
    *,
    k: Float[Tensor, "batch tokens heads key"],
    v: Float[Tensor, "batch tokens heads value"],
    g: Float[Tensor, "batch tokens heads"],
    beta: Float[Tensor, "batch tokens heads"],
    initial_state: Float[Tensor, "batch heads key value"] | None = None,
) -> Float[Tensor, "batch heads key value"]:
    """The final state alone, at least float32; no per-token output is ever computed. Differentiable."""
    work = work_dtype(k, v, initial_state)
    state = start_state(k, v, initial_state, work)
    if 0 < k.shape[1] <= CHUNK:
        _, state = _advance(_heads_first(k, 0, work), _heads_first(v, 0, work), _only_chunk(g, beta, work), state)
        return state.unflatten(0, (k.shape[0], -1))
    gates = _Gates(g, beta, work)
    for i, start in enumerate(range(0, k.shape[1], CHUNK)):
        k_c, v_c = _heads_first(k, start, work), _heads_first(v, start, work)
        _, state = _advance(k_c, v_c, gates.chunk(i, k_c.shape[1]), state)
    return state.unflatten(0, (k.shape[0], -1))


class _Chunk(NamedTuple):
    """Gates of one chunk of C tokens, N = batch x heads: what each token's numbers are multiplied by."""

    beta: Tensor  # [N C 1]
    decay: Tensor  # [N C C], from an earlier token (column) to a later one (row); 0 on and above the diagonal
    from_start: Tensor  # [N C 1], from the chunk's start to the token
    to_end: Tensor  # [N C 1], from the token to the chunk's end
    total: Tensor  # [N 1 1], over the whole chunk


class _Gates:
    """Decays of all chunks. Sums are cut at chunk borders, so everything but ``decay`` is made in one go."""

    def __init__(self, g: Tensor, beta: Tensor, work: torch.dtype) -> None:
        spare = -g.shape[1] % CHUNK
        by_chunk = F.pad(g, (0, 0, 0, spare)).unflatten(1, (-1, CHUNK))  # [B n C H]
        self.log_decay = tuple(part.permute(0, 3, 1, 2).flatten(0, 1) for part in cumulative(by_chunk, 2))  # [N n C]
        self.from_start = self.log_decay[0].to(work).exp()
        # Padding adds no decay, so the last entry is the sum over the chunk's own tokens.
        last = tuple(part[..., -1:] for part in self.log_decay)
        self.to_end = difference(last, self.log_decay).to(work).exp()
        self.beta = F.pad(beta, (0, 0, 0, spare)).unflatten(1, (-1, CHUNK)).permute(0, 3, 1, 2).flatten(0, 1).to(work)
        self.not_earlier = torch.ones(CHUNK, CHUNK, dtype=torch.bool, device=g.device).triu()

    def chunk(self, index: int, length: int) -> _Chunk:
        """Gates of chunk ``index``, which has ``length`` tokens."""
        sums = [part[:, index, :length] for part in self.log_decay]
        passed = difference(tuple(part[:, :, None] for part in sums), tuple(part[:, None, :] for part in sums))
        # Above the diagonal stands growth, and exp of it may be infinite: cut it before exp, not after.
        passed = passed.masked_fill(self.not_earlier[:length, :length], -torch.inf)
        return _Chunk(
            beta=self.beta[:, index, :length, None],
            decay=passed.to(self.beta.dtype).exp(),
            from_start=self.from_start[:, index, :length, None],
            to_end=self.to_end[:, index, :length, None],
            total=self.from_start[:, index, length - 1, None, None],
        )


def _only_chunk(g: Tensor, beta: Tensor, work: torch.dtype) -> _Chunk:
    """Gates of a sequence that is one chunk, for its state alone, without the steps that many chunks need."""
    sums = cumulative(g.transpose(1, 2).flatten(0, 1), 1)  # [N T]
    passed = difference(tuple(part[:, :, None] for part in sums), tuple(part[:, None, :] for part in sums))
    if torch.is_grad_enabled():
        # The system is solved from its lower triangle alone, but the gradient of exp is of all of it, infinities too.
        passed = passed.masked_fill(torch.ones(passed.shape[1:], dtype=torch.bool, device=g.device).triu(), -torch.inf)
    from_start = sums[0].to(work).exp()[..., None]
    return _Chunk(
        beta=beta.transpose(1, 2).flatten(0, 1)[..., None].to(work),
        decay=passed.to(work).exp(),
        from_start=from_start,
        to_end=difference(tuple(part[:, -1:] for part in sums), sums).to(work).exp()[..., None],
        total=from_start[:, -1:],
    )


def _advance(k: Tensor, v: Tensor, chunk: _Chunk, state: Tensor) -> tuple[Tensor, Tensor]:
    """The chunk's errors ``[N C V]`` and the state ``[N K V]`` after it."""
    overlaps = torch.bmm(k, k.mT) * (chunk.beta * chunk.decay)
    due = torch.addcmul(chunk.beta * v, chunk.beta * chunk.from_start, torch.bmm(k, state), value=-1)
    errors = torch.linalg.solve_triangular(overlaps, due, upper=False, unitriangular=True)
    # In place into a fresh tensor: the sum would otherwise copy the state first.
    return errors, (chunk.total * state).baddbmm_((k * chunk.to_end).mT, errors)


def _heads_first(x: Tensor, start: int, work: torch.dtype) -> Tensor:
    """A chunk of ``[B T H D]`` as ``[N C D]`` in the work dtype; the rest of the sequence is not touched."""
    return x[:, start : start + CHUNK].transpose(1, 2).flatten(0, 1).to(work)


def work_dtype(k: Tensor, v: Tensor, initial_state: Tensor | None) -> torch.dtype:
    """float64 if anything given is, else float32: memory is never kept in half precision."""
    given = [k.dtype, v.dtype] + ([] if initial_state is None else [initial_state.dtype])
    return torch.float64 if torch.float64 in given else torch.float32


def start_state(k: Tensor, v: Tensor, initial_state: Tensor | None, work: torch.dtype) -> Tensor:
    """The state before the first chunk, ``[N K V]``."""
    if initial_state is not None:
        return initial_state.to(work).flatten(0, 1)
    batch, _, heads, key = k.shape
    return torch.zeros(batch * heads, key, v.shape[-1], dtype=work, device=k.device)
