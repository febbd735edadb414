"""The gated delta rule by chunks: matrix products inside a chunk, one small state between chunks.

Inside a chunk of C tokens with cumulative log decay c_t and incoming state S, the token errors
e_t = beta_t (v_t - S_t^T k_t) solve one unit lower triangular system,

    (I + A) E = diag(beta) (V - diag(exp c) K S),   A_ts = beta_t exp(c_t - c_s) k_t . k_s   for s < t,

and then S' = exp(c_C) S + (diag(exp(c_C - c)) K)^T E. This is the WY form of arXiv 2412.06464, section 3.3, solved
directly for the errors: the state is known when a chunk begins, so the two factors U and W are never formed.

Every exponent is a difference c_t - c_s with s <= t, hence <= 0: no decay, however strong, overflows. The sums are kept
in float64 because a difference of large float32 sums would lose the small decays that follow a strong one.
"""

import torch
from jaxtyping import Float
from torch import Tensor

CHUNK = 64  # tokens; measured best on CPU among 32, 64, 96 and 128, and the size GPU kernels use


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
    work = _work_dtype(k, v, initial_state)
    heads_first = _Chunks(k, v, g, beta, work)
    q = q.transpose(1, 2).to(work) * scale
    state = _start(k, v, initial_state, work)
    outputs = []
    for start in range(0, k.shape[1], CHUNK):
        chunk = heads_first.at(start)
        errors, next_state = _advance(chunk, state)
        q_c = q[:, :, start : start + CHUNK]
        scores = (q_c @ chunk.k.mT) * chunk.decay.tril()
        outputs.append((q_c * chunk.from_start) @ state + scores @ errors)
        state = next_state
    o = torch.cat(outputs, dim=2).transpose(1, 2) if outputs else v
    return o.to(v.dtype), state


def gated_delta_state(
    *,
    k: Float[Tensor, "batch tokens heads key"],
    v: Float[Tensor, "batch tokens heads value"],
    g: Float[Tensor, "batch tokens heads"],
    beta: Float[Tensor, "batch tokens heads"],
    initial_state: Float[Tensor, "batch heads key value"] | None = None,
) -> Float[Tensor, "batch heads key value"]:
    """The final state alone, at least float32; no per-token output is ever computed. Differentiable."""
    work = _work_dtype(k, v, initial_state)
    heads_first = _Chunks(k, v, g, beta, work)
    state = _start(k, v, initial_state, work)
    for start in range(0, k.shape[1], CHUNK):
        _, state = _advance(heads_first.at(start), state)
    return state


class _Chunk:
    """One chunk, heads first: k [B H C K], v [B H C V], beta [B H C 1], decays relative to the chunk."""

    __slots__ = ("beta", "decay", "from_start", "k", "to_end", "total", "v")

    def __init__(self, k: Tensor, v: Tensor, g: Tensor, beta: Tensor) -> None:
        work = k.dtype
        log_decay = g.cumsum(-1)
        length = log_decay.shape[-1]
        above = torch.ones(length, length, dtype=torch.bool, device=g.device).triu(1)
        difference = log_decay[..., :, None] - log_decay[..., None, :]
        self.k, self.v, self.beta = k, v, beta[..., None]
        # The upper triangle would hold growth, and exp of it infinity: cut it before exp, not after.
        self.decay = difference.masked_fill(above, -torch.inf).to(work).exp()
        self.from_start = log_decay[..., None].to(work).exp()
        self.to_end = (log_decay[..., -1:] - log_decay)[..., None].to(work).exp()
        self.total = self.from_start[..., -1:, :]


class _Chunks:
    """The whole sequence laid out heads first; a chunk is cast to the work dtype when it is its turn."""

    def __init__(self, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, work: torch.dtype) -> None:
        self.k, self.v, self.work = k.transpose(1, 2), v.transpose(1, 2), work
        self.g = g.transpose(1, 2).double()
        self.beta = beta.transpose(1, 2).to(work)

    def at(self, start: int) -> _Chunk:
        part = slice(start, start + CHUNK)
        k, v = self.k[:, :, part].to(self.work), self.v[:, :, part].to(self.work)
        return _Chunk(k, v, self.g[:, :, part], self.beta[:, :, part])


def _advance(chunk: _Chunk, state: Tensor) -> tuple[Tensor, Tensor]:
    """The chunk's errors [B H C V] and the state after it."""
    overlaps = (chunk.beta * (chunk.k @ chunk.k.mT) * chunk.decay).tril(-1)
    seen = (chunk.k * chunk.from_start) @ state
    errors = torch.linalg.solve_triangular(overlaps, chunk.beta * (chunk.v - seen), upper=False, unitriangular=True)
    return errors, chunk.total * state + (chunk.k * chunk.to_end).mT @ errors


def _work_dtype(k: Tensor, v: Tensor, initial_state: Tensor | None) -> torch.dtype:
    """float64 if anything given is, else float32: memory is never kept in half precision."""
    given = [k.dtype, v.dtype] + ([] if initial_state is None else [initial_state.dtype])
    return torch.float64 if torch.float64 in given else torch.float32


def _start(k: Tensor, v: Tensor, initial_state: Tensor | None, work: torch.dtype) -> Tensor:
    if initial_state is not None:
        return initial_state.to(work)
    batch, _, heads, key = k.shape
    return torch.zeros(batch, heads, key, v.shape[-1], dtype=work, device=k.device)
