"""Whether latents and timesteps of a pass fit a model."""

from typing import Any

from torch import Tensor

from arl2.errors import GeometryError
from arl2.geometry import token_grid


def checked_latents(config: Any, latents: Tensor, timestep: Tensor) -> tuple[int, int, int]:
    """Batch, and rows and columns of tokens of a frame.

    Args:
        config: of the transformer.
        latents: ``[B, C, F, h, w]``.
        timestep: ``[B, F]``.

    Raises:
        GeometryError: another layout, number of channels or timesteps, or a size that does not fit the patch.
    """
    if latents.dim() != 5 or not latents.shape[2]:
        raise GeometryError(
            f"The latents are {list(latents.shape)}; batch, channels, frames (1 or more), height, width are needed."
        )
    batch, channels, frames, height, width = latents.shape
    if channels != config.in_channels:
        raise GeometryError(
            f"The latents have {channels} channels but this model takes {config.in_channels}; "
            "their layout is batch, channels, frames, height, width."
        )
    if timestep.shape != (batch, frames):
        raise GeometryError(
            f"The timesteps are {list(timestep.shape)} but the latents need one per sample and frame, "
            f"{[batch, frames]}."
        )
    grid = token_grid(height, width, tuple(config.patch_size))
    return batch, grid.rows, grid.columns
