"""The state update as one operation of torch, ``arl2::gated_delta_state``: opaque to compilers, recorded by autograd.

Its gradient is that of the blockwise form, computed again from the inputs: of what the operation computes on the way,
nothing is kept.
"""

from typing import Any

import torch
from torch import Tensor

from arl2.kernels.delta_rule import blockwise, chunked
from arl2.kernels.launches import declare_launches

NAME = "gated_delta_state"
declare_launches(NAME, 2)


@torch.library.custom_op(
    f"arl2::{NAME}",
    mutates_args=(),
    schema="(Tensor k, Tensor v, Tensor g, Tensor beta, Tensor initial_state, str backend) -> Tensor",
)
def gated_delta_state(k, v, g, beta, initial_state, backend):  # type: ignore[no-untyped-def]
    """The final state; ``backend`` is one that :mod:`arl2.kernels.delta_rule.dispatch` has chosen."""
    arguments = {"k": k, "v": v, "g": g, "beta": beta, "initial_state": initial_state}
    if backend == "triton":
        from arl2.kernels.delta_rule import triton_state  # imports Triton: only when used

        with torch.cuda.device_of(k):  # Triton launches on the current device
            state = triton_state.gated_delta_state(**arguments)
    elif backend == "fla":
        from arl2.kernels.delta_rule import fla_state

        with torch.cuda.device_of(k):
            state = fla_state.gated_delta_state(**arguments)
    else:
        state = {"chunked": chunked, "blockwise": blockwise}[backend].gated_delta_state(**arguments)
    # An operation returns what is its own, and an empty block leaves the state as it was.
    return state.clone() if state.data_ptr() == initial_state.data_ptr() else state


@gated_delta_state.register_fake
def _(k, v, g, beta, initial_state, backend):  # type: ignore[no-untyped-def]
    return torch.empty_like(initial_state, dtype=chunked.work_dtype(k, v, initial_state)).contiguous()


def _keep_inputs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:5])


def _gradient(ctx: Any, of_state: Tensor) -> tuple[Tensor | None, ...]:
    inputs = [
        x.detach().requires_grad_(wanted) for x, wanted in zip(ctx.saved_tensors, ctx.needs_input_grad[:5], strict=True)
    ]
    wanted = [x for x in inputs if x.requires_grad]
    with torch.enable_grad():
        names = ("k", "v", "g", "beta", "initial_state")
        state = blockwise.gated_delta_state(**dict(zip(names, inputs, strict=True)))
    gradients = iter(torch.autograd.grad(state, wanted, of_state, materialize_grads=True))
    return (*(next(gradients) if x.requires_grad else None for x in inputs), None)


gated_delta_state.register_autograd(_gradient, setup_context=_keep_inputs)
