"""Matrix products of the model's layers, in the dtype in which this processor is fast.

A CPU without instructions for bfloat16 multiplies it number by number, 7 to 200 times slower than float32. There a
product without gradients takes its inputs to float32, which is exact, and rounds its result once: as much as a
product in bfloat16 does, which sums in float32. On a GPU nothing of this happens.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from arl2.kernels.backends import announce, settled
from arl2.kernels.timings import machine_part, timings

_ROWS, _WIDTH = 64, 1024  # of the product that is timed: some 20 ms where half precision is slow


def linear(
    x: Float[Tensor, "*rows inputs"],
    weight: Float[Tensor, "outputs inputs"],
    bias: Float[Tensor, " outputs"] | None = None,
) -> Float[Tensor, "*rows outputs"]:
    """``x weight^T + bias`` in ``x``'s dtype."""
    work = product_dtype(x)
    if work == x.dtype:
        return F.linear(x, weight, bias)
    return F.linear(x.to(work), weight.to(work), None if bias is None else bias.to(work)).to(x.dtype)


class Linear(nn.Linear):
    """``nn.Linear`` whose product is :func:`linear`."""

    def forward(self, x: Float[Tensor, "*rows inputs"]) -> Float[Tensor, "*rows outputs"]:
        return linear(x, self.weight, self.bias)


def is_untouched(layer: nn.Module) -> bool:
    """Whether calling a layer does what its class says and no more: what hooks into it wants to be called."""
    return not (layer._forward_hooks or layer._forward_pre_hooks or "forward" in vars(layer))


class FastProducts(TorchFunctionMode):
    """Within the ``with``, ``nn.Linear`` is :class:`Linear`: for models that other libraries build."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.linear and not kwargs:
            return linear(*args)
        return func(*args, **(kwargs or {}))


def product_dtype(x: Tensor) -> torch.dtype:
    """The dtype to multiply ``x`` in: its own, or float32 where that is faster."""
    if x.device.type != "cpu" or x.dtype not in (torch.bfloat16, torch.float16) or torch.is_grad_enabled():
        return x.dtype
    return torch.float32 if _half_is_slow(x.dtype) else x.dtype


@settled
def _half_is_slow(dtype: torch.dtype) -> bool:
    key = f"matrix product, {machine_part(torch.device('cpu'))}, {_name(dtype)}"

    def product(work: torch.dtype) -> Tensor:
        return F.linear(x.to(work), weight.to(work)).to(dtype)

    with torch.no_grad():
        x, weight = torch.ones(_ROWS, _WIDTH, dtype=dtype), torch.ones(_WIDTH, _WIDTH, dtype=dtype)
        ways = {"own": lambda: product(dtype), "float32": lambda: product(torch.float32)}
        chosen = timings().fastest(key, ways)
    announce(f"products in {_name(dtype)} on a CPU", chosen, "the fastest that was measured")
    return chosen == "float32"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
