"""Matrix products of the model's layers, in the dtype in which this processor is fast.

A CPU without instructions for bfloat16 multiplies it number by number, 7 to 200 times slower than float32. There a
product without gradients takes its inputs to float32, which is exact, and rounds its result once: as much as a
product in bfloat16 does, which sums in float32. On a GPU nothing of this happens.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from arl2.kernels.backends import settled
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


def product_dtype(x: Tensor) -> torch.dtype:
    """The dtype to multiply ``x`` in: its own, or float32 where that is faster."""
    if x.device.type != "cpu" or x.dtype not in (torch.bfloat16, torch.float16) or torch.is_grad_enabled():
        return x.dtype
    return torch.float32 if _half_is_slow(x.dtype) else x.dtype


@settled
def _half_is_slow(dtype: torch.dtype) -> bool:
    key = f"matrix product, {machine_part(torch.device('cpu'))}, {str(dtype).removeprefix('torch.')}"

    def product(work: torch.dtype) -> Tensor:
        return F.linear(x.to(work), weight.to(work)).to(dtype)

    with torch.no_grad():
        x, weight = torch.ones(_ROWS, _WIDTH, dtype=dtype), torch.ones(_WIDTH, _WIDTH, dtype=dtype)
        ways = {"own": lambda: product(dtype), "float32": lambda: product(torch.float32)}
        return timings().fastest(key, ways) == "float32"
