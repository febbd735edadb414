"""Renders scenes from the signed distance to the outline, so that edges are smooth at any size."""

import torch
from jaxtyping import Float
from torch import Tensor

from arl2.errors import Arl2Error
from arl2.shapes.world.outline import signed_distance
from arl2.shapes.world.palette import SHAPES, WORLD_SIZE, background_table, colour_table, wall_pixel
from arl2.shapes.world.scene import Scenes, trajectory, wall_path

Crop = tuple[int, int, int, int]
"""Top, left, height and width, in pixels of the whole frame."""


def render(
    scenes: Scenes, frames: int, *, size: int = WORLD_SIZE, start: int = 0, crop: Crop | None = None
) -> Float[Tensor, "scenes 3 frames height width"]:
    """Render video frames `start` to `start + frames - 1` of every scene: RGB in [-1, 1], on the device of the scenes.

    Args:
        scenes: What to render.
        frames: How many video frames.
        size: Height and width of the whole frame in pixels.
        start: First video frame; `render(s, 5, start=3)` is the tail of `render(s, 8)`.
        crop: Render only this part of the frame, at the cost of that part.

    Raises:
        Arl2Error: A size below 1, a crop that leaves the frame, no frames, or a negative start.
    """
    object_cover = cover_object(scenes, frames, size=size, start=start, crop=crop)
    wall_cover = cover_wall(scenes, frames, size=size, start=start, crop=crop)
    device = scenes.colour.device
    background = background_table().to(device)[scenes.background, :, None, None, None]
    colour = colour_table().to(device)[scenes.colour, :, None, None, None]
    wall = wall_pixel().to(device)[:, None, None, None]
    return torch.lerp(background, colour, object_cover[:, None]).lerp_(wall, wall_cover[:, None])


def cover_object(
    scenes: Scenes, frames: int, *, size: int = WORLD_SIZE, start: int = 0, crop: Crop | None = None
) -> Float[Tensor, "scenes frames height width"]:
    """Share of each pixel that the object covers, 0 to 1, were there no wall. Arguments as for `render`."""
    rows, columns = _grid(size, crop, scenes.radius.device)
    x, y = trajectory(scenes, frames, start=start).unbind(-1)
    cover = x.new_empty(len(scenes), frames, len(rows), len(columns))
    for shape in range(len(SHAPES)):
        chosen = (scenes.shape == shape).nonzero().flatten()
        distance = signed_distance(
            shape,
            columns - x[chosen, :, None],
            rows - y[chosen, :, None],
            scenes.radius[chosen, None].expand(-1, frames),
        )
        cover[chosen] = _soft_edge(distance, size)
    return cover


def cover_wall(
    scenes: Scenes, frames: int, *, size: int = WORLD_SIZE, start: int = 0, crop: Crop | None = None
) -> Float[Tensor, "scenes frames height width"]:
    """Share of each pixel that the wall covers, 0 to 1. Arguments as for `render`."""
    rows, columns = _grid(size, crop, scenes.radius.device)
    middle = wall_path(scenes, frames, start=start)[..., None]
    half = scenes.wall_width[:, None, None] / 2
    upright = _soft_edge((columns - middle).abs() - half, size)[:, :, None, :]
    level = _soft_edge((rows - middle).abs() - half, size)[:, :, :, None]
    cover = torch.where(scenes.wall_is_level[:, None, None, None], level, upright)
    return cover * scenes.wall[:, None, None, None]


def visible_share(scenes: Scenes, frames: int, *, start: int = 0) -> Float[Tensor, "scenes frames"]:
    """Visible share of the object: neither behind the wall nor outside the frame."""
    seen = cover_object(scenes, frames, start=start) * (1 - cover_wall(scenes, frames, start=start))
    # The whole area, rendered once well inside an empty frame.
    middle = torch.zeros(len(scenes), device=scenes.radius.device)
    edge = torch.arange(-WORLD_SIZE // 2, WORLD_SIZE // 2, device=scenes.radius.device) + 0.5
    whole = torch.zeros_like(middle)
    for shape in range(len(SHAPES)):
        grid = edge.expand(len(scenes), -1)
        area = _soft_edge(signed_distance(shape, grid, grid, scenes.radius), WORLD_SIZE).sum((-2, -1))
        whole = torch.where(scenes.shape == shape, area, whole)
    return (seen.sum((-2, -1)) / whole[:, None]).clamp(max=1)


def _grid(size: int, crop: Crop | None, device: torch.device) -> tuple[Tensor, Tensor]:
    """Middles of the pixel rows and columns to draw, in world pixels."""
    if size < 1:
        raise Arl2Error(f"The size is {size}; give at least 1 pixel.")
    top, left, height, width = crop or (0, 0, size, size)
    if min(top, left) < 0 or min(height, width) < 1 or max(top + height, left + width) > size:
        raise Arl2Error(f"The crop {crop} (top, left, height, width) leaves the frame of {size} x {size} pixels.")
    middles = (torch.arange(size, dtype=torch.float32, device=device) + 0.5) * (WORLD_SIZE / size)
    return middles[top : top + height], middles[left : left + width]


def _soft_edge(distance: Tensor, size: int) -> Tensor:
    """Cover of a pixel whose middle is `distance` world pixels outside an edge: a ramp one pixel wide."""
    return (0.5 - distance * (size / WORLD_SIZE)).clamp(0, 1)
