"""Shapes and layouts of the input of causal convolutions, channels last.

``Frames`` are ``[batch, frames, height, width, channels]``. ``Interleaved`` has its rows and columns split once more:
``[batch, frames, rows, p, columns, q, channels]`` with ``height = rows * p`` and ``width = columns * q``, ``p`` and
``q`` being 1 or 2. Upsampling gives such a view of memory in another order, which is read without a copy.
"""

from typing import Any

from jaxtyping import Float
from torch import Tensor

Frames = Float[Tensor, "batch frames height width channels"]
Size = tuple[Any, ...]  # whole numbers, symbols while a graph is compiled
Interleaved = Float[Tensor, "batch frames rows p columns q channels"]


def interleaved(frames: Frames) -> Interleaved:
    """Frames whose pixels lie in order: a view."""
    return frames.unsqueeze(4).unsqueeze(3)


def pixels(x: Interleaved) -> Frames:
    """The frames of a view: a view again where pixels lie in order, else a copy."""
    batch, frames, rows, p, columns, q, channels = x.shape
    return x.reshape(batch, frames, rows * p, columns * q, channels)


def empty_sum(x: Interleaved) -> Tensor:
    """What stands for a sum that nobody asked for."""
    return x.new_empty(0)


def output_shapes(x: Interleaved, lookback: int, margin: int) -> tuple[Size, Size, Size]:
    """Shapes of sum, frames and kept frames."""
    batch, frames, rows, p, columns, q, channels = x.shape
    height, width = rows * p, columns * q
    return (
        (batch, frames, height, width, channels),
        (batch, frames + lookback, height + margin, width + margin, channels),
        (batch, lookback, height, width, channels),
    )
