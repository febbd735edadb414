"""From tokens to the values of their patches: the end of the transformer."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from arl2.kernels.norm import layer_norm


class FlowHead(nn.Module):
    """Modulated norm and a linear layer from the width to the values of a patch."""

    def __init__(self, width: int, patch_values: int, eps: float) -> None:
        super().__init__()
        self.modulation = nn.Parameter(torch.randn(2, width) / width**0.5)
        self.proj = nn.Linear(width, patch_values)
        self.eps = eps

    def forward(
        self, x: Float[Tensor, "batch tokens width"], time: Float[Tensor, "batch frames width"]
    ) -> Float[Tensor, "batch tokens values"]:
        shift, scale = (self.modulation.float() + time[:, :, None])[:, :, None].unbind(-2)
        normed = layer_norm(x, self.eps).unflatten(1, (time.shape[1], -1))
        modulated = torch.addcmul(shift, normed, 1 + scale).flatten(1, 2)
        return self.proj(modulated.to(self.proj.weight.dtype))
