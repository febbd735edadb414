"""Time and text embeddings. Legend: B batch, F frames, d width."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from arl2.float64 import float64_device
from arl2.kernels.linear import Linear


class TimeEmbedding(NamedTuple):
    """What a timestep per frame becomes: ``head [B, F, d]`` and ``layers [B, F, 6, d]``, float32."""

    head: Tensor
    layers: Tensor


class TimeEmbedder(nn.Module):
    """Sinusoids of the timestep, a small network, and six modulations a frame. Kept in float32."""

    def __init__(self, width: int, freq_dim: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(freq_dim, width)
        self.linear_2 = nn.Linear(width, width)
        self.projection = nn.Linear(width, 6 * width)
        self.freq_dim = freq_dim

    def forward(self, timestep: Float[Tensor, "batch frames"]) -> TimeEmbedding:
        weight = self.linear_1.weight
        waves = timestep_sinusoids(timestep, self.freq_dim).to(weight.device, weight.dtype)
        embedded = self.linear_2(F.silu(self.linear_1(waves)))
        layers = self.projection(F.silu(embedded)).unflatten(-1, (6, -1))
        return TimeEmbedding(embedded, layers)


class TextEmbedder(nn.Module):
    """Encoder rows to the transformer's width: Linear, GELU (tanh), Linear."""

    def __init__(self, text_dim: int, width: int) -> None:
        super().__init__()
        self.linear_1 = Linear(text_dim, width)
        self.linear_2 = Linear(width, width)

    def forward(self, text: Float[Tensor, "batch words text"]) -> Float[Tensor, "batch words width"]:
        return self.linear_2(F.gelu(self.linear_1(text), approximate="tanh"))


def timestep_sinusoids(timestep: Float[Tensor, "*rows"], freq_dim: int) -> Float[Tensor, "*rows freq"]:
    """``cat(cos, sin)`` of ``t * 10000**(-i / half)``, ``i = 0 .. half - 1``, in float64.

    They are on the device of the timesteps, or on the CPU where that has no float64.
    """
    half = freq_dim // 2
    where = float64_device(timestep.device)
    i = torch.arange(half, dtype=torch.float64, device=where)
    angle = timestep.to(where).double()[..., None] * 10000.0 ** (-i / half)
    return torch.cat([angle.cos(), angle.sin()], dim=-1)
