"""Which implementation of the gated delta rule runs: ``auto`` takes the fastest that fits the tensors."""

from jaxtyping import Float
from torch import Tensor

from arl2.kernels.backends import ACCEPTED, DELTA_RULE, announce, requested_backend
from arl2.kernels.delta_rule import chunked, naive

BACKENDS = ACCEPTED[DELTA_RULE]


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
    run = naive.gated_delta_rule if _choose(backend) == "naive" else chunked.gated_delta_rule
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

    Same arguments and errors as :func:`gated_delta_rule`; skipping the outputs saves about a third of the work.
    """
    run = naive.gated_delta_state if _choose(backend) == "naive" else chunked.gated_delta_state
    return run(k=k, v=v, g=g, beta=beta, initial_state=initial_state)


def _choose(backend: str) -> str:
    requested = requested_backend(DELTA_RULE, backend)
    chosen = "chunked" if requested == "auto" else requested
    announce(DELTA_RULE, chosen, "the only fast one so far" if requested == "auto" else "requested")
    return chosen
