"""The small projections of a hybrid layer that say how much: gate, decay and strength of writing."""

from jaxtyping import Float
from torch import Tensor, nn


class Gate(nn.Linear):
    """``W x``, one number per token and head, in the dtype of ``W`` whatever the tokens are in.

    In training the weights may be float32 where all else is half precision: so few numbers are cheap in float32, and
    rounding them would move the whole state. The cast tokens live as long as the layer's activations do.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads, bias=False)

    def forward(self, x: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows heads"]:
        return super().forward(x.to(self.weight.dtype))
