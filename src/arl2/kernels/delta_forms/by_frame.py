"""All tokens of a frame written at once: the state that remembers the past and the whole frame best.

After Video Delta Attention (Video DeltaNet, arXiv 2609.20744). A frame's state minimizes

    |S - diag(exp g) S_before|^2 + sum_t beta_t |S^T k_t - v_t|^2,

so with ``A = K^T diag(beta) K`` it is ``S = (I + A)^-1 (diag(exp g) S_before + K^T diag(beta) V)``: one symmetric
system a frame, in which no token comes before another, and stable at any strength.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from arl2.kernels.delta_rule.chunked import start_state, work_dtype


def frame_delta_state(
    *,
    k: Float[Tensor, "batch tokens heads key"],
    v: Float[Tensor, "batch tokens heads value"],
    g: Float[Tensor, "batch tokens heads key"],
    beta: Float[Tensor, "batch tokens heads"],
    frame_tokens: int,
    initial_state: Float[Tensor, "batch heads key value"],
) -> Float[Tensor, "batch heads key value"]:
    """The final state, at least float32. Differentiable in every argument.

    Args:
        g: log decay; a frame's is the mean over its tokens.
        beta: how much each token counts against what was there before.
        frame_tokens: tokens a frame, of which ``k`` holds whole ones.
    """
    work = work_dtype(k, v, initial_state)
    state = start_state(k, v, initial_state, work)
    keys, values, decays = (_by_frame(x, frame_tokens).to(work) for x in (k, v, g))  # [F N S D]
    weighted = keys * _by_frame(beta[..., None], frame_tokens).to(work)
    eye = torch.eye(k.shape[-1], dtype=work, device=k.device)
    for key, value, weight, decay in zip(keys, values, weighted, decays, strict=True):
        kept = decay.mean(1).exp()[..., None] * state
        factor = torch.linalg.cholesky(eye + weight.mT @ key)
        state = torch.cholesky_solve(kept + weight.mT @ value, factor)
    return state.unflatten(0, (k.shape[0], -1))


def _by_frame(x: Tensor, frame_tokens: int) -> Tensor:
    """``[B T H D]`` as ``[F N S D]``."""
    return x.unflatten(1, (-1, frame_tokens)).permute(1, 0, 3, 2, 4).flatten(1, 2)
