"""Which implementation of the gated delta rule runs: ``auto`` takes the fastest that fits the tensors.

``naive`` is the recurrence as it reads, ``chunked`` goes chunk by chunk, ``blockwise`` takes all chunks at once,
``triton`` and ``fla`` are kernels for GPUs. The last three compute states alone; outputs then come from ``chunked``.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from arl2.errors import ConfigError
from arl2.kernels.backends import ACCEPTED, DELTA_RULE, announce, is_installed, is_interpreted, requested_backend
from arl2.kernels.delta_rule import chunked, naive
from arl2.kernels.delta_rule.operator import gated_delta_state as _operation

BACKENDS = ACCEPTED[DELTA_RULE]
_PACKAGES = {"triton": "triton", "fla": "fla-core"}  # by backend: the package on PyPI


def gated_delta_rule(
    *,
    q: Float[Tensor, "batch tokens heads key"],
    k: Float[Tensor, "batch tokens heads key"],
    v: Float[Tensor, "batch tokens heads value"],
    g: Float[Tensor, "batch tokens heads"],
    beta: Float[Tensor, "batch tokens heads"],
    scale: float | None = None,
    initial_state: Float[Tensor, "batch heads key value"] | None = None,
    backend: str = "auto",
) -> tuple[Float[Tensor, "batch tokens heads value"], Float[Tensor, "batch heads key value"]]:
    """Gated delta rule with per-token outputs (arXiv 2412.06464, eq. 10).

    For each token in order, ``S <- exp(g) S``, then ``S <- S + beta k (v - S^T k)^T``, then ``o = scale S^T q``:
    a token reads the state that it has just written. The model does not use these outputs (its tokens read the
    state *before* their block); they are here for training other layers and for tests.

    Args:
        q, k: queries and keys ``[B, T, H, K]``; keys are used as given (the caller normalises them).
        v: values ``[B, T, H, V]``.
        g: log decay ``[B, T, H]``, <= 0.
        beta: write strength ``[B, T, H]``, in (0, 2).
        scale: of the outputs; ``K**-0.5`` if None.
        initial_state: ``[B, H, K, V]``; zeros if None.
        backend: one of ``BACKENDS``; see :mod:`arl2.kernels.backends`.

    Returns:
        ``o [B, T, H, V]`` and the final state ``[B, H, K, V]``, the state in float32 or better.

    Raises:
        ConfigError: an unknown backend.
    """
    run = naive.gated_delta_rule if requested_backend(DELTA_RULE, backend) == "naive" else chunked.gated_delta_rule
    return run(q=q, k=k, v=v, g=g, beta=beta, scale=scale, initial_state=initial_state)


def gated_delta_state(
    *,
    k: Float[Tensor, "batch tokens heads key"],
    v: Float[Tensor, "batch tokens heads value"],
    g: Float[Tensor, "batch tokens heads"],
    beta: Float[Tensor, "batch tokens heads"],
    initial_state: Float[Tensor, "batch heads key value"] | None = None,
    backend: str = "auto",
) -> Float[Tensor, "batch heads key value"]:
    """The final state of the gated delta rule, and nothing else: what writing memory needs.

    Same arguments as :func:`gated_delta_rule`; skipping the outputs saves about a third of the work.

    Raises:
        ConfigError: an unknown backend, one whose package is not installed, or one that cannot do these tensors.
    """
    chosen, reason = _choose(requested_backend(DELTA_RULE, backend), k, initial_state)
    announce(DELTA_RULE, chosen, reason)
    if chosen == "naive":
        return naive.gated_delta_state(k=k, v=v, g=g, beta=beta, initial_state=initial_state)
    if chosen == "chunked" and not torch.compiler.is_compiling():
        # Plain torch, with its own gradient. A compiler is given one operation in place of a loop over all chunks.
        return chunked.gated_delta_state(k=k, v=v, g=g, beta=beta, initial_state=initial_state)
    if initial_state is None:
        start = chunked.start_state(k, v, None, chunked.work_dtype(k, v, None))
        initial_state = start.unflatten(0, (k.shape[0], k.shape[2]))
    return _operation(k, v, g, beta, initial_state, chosen)


def _choose(requested: str, k: Tensor, initial_state: Tensor | None) -> tuple[str, str]:
    """The backend of a state update, and why."""
    if requested == "auto":
        if k.device.type in ("cpu", "mps"):
            return "chunked", f"the fastest on {k.device.type}"
        refusal = _refusal("triton", k, initial_state)
        return ("blockwise", refusal) if refusal else ("triton", "the fastest on this device")
    refusal = _refusal(requested, k, initial_state) if requested in _PACKAGES else ""
    if refusal:
        raise ConfigError(f"Backend {requested!r} of the {DELTA_RULE}: {refusal}; choose another, or 'auto'.")
    return requested, "requested"


def _refusal(backend: str, k: Tensor, initial_state: Tensor | None) -> str:
    """Why a backend cannot do these tensors; empty if it can."""
    if not is_installed(backend):
        return f"the package {_PACKAGES[backend]} is not installed"
    if is_interpreted():
        return ""  # a test: it computes anything, on the CPU, slowly
    if not k.is_cuda:
        return f"it runs on CUDA devices, not on {k.device.type}"
    if k.dtype not in (torch.float16, torch.bfloat16):
        return f"it takes keys and values in half precision, not {str(k.dtype).removeprefix('torch.')}"
    if k.shape[-1] > 256:
        return f"it takes heads of at most 256, not {k.shape[-1]}"
    if initial_state is not None and initial_state.dtype == torch.float64:
        return "it keeps states in float32, not float64"
    return ""
