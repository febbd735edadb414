"""The state update by flash-linear-attention's kernels (``fla-core``), for those who have it installed."""

from jaxtyping import Float
from torch import Tensor


def gated_delta_state(
    *,
    k: Float[Tensor, "batch tokens heads key"],
    v: Float[Tensor, "batch tokens heads value"],
    g: Float[Tensor, "batch tokens heads"],
    beta: Float[Tensor, "batch tokens heads"],
    initial_state: Float[Tensor, "batch heads key value"],
) -> Float[Tensor, "batch heads key value"]:
    """The final state, float32. Not differentiable: its backward refuses Hopper with some versions of Triton."""
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule

    # The outputs are computed as well, from queries that nobody asks: only its internals have the state alone.
    _, state = chunk_gated_delta_rule(
        q=k, k=k, v=v, g=g, beta=beta, scale=1.0, initial_state=initial_state.float(), output_final_state=True
    )
    return state
