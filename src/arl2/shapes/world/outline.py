"""How far a point is from the outline of a shape: negative inside, positive outside, in world pixels."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from arl2.shapes.world.palette import SHAPES

CIRCLE, SQUARE, TRIANGLE = range(len(SHAPES))

# A square of this half side has nearly the area of the circle, so area alone does not tell them apart.
SQUARE_HALF_SIDE = 0.88


def signed_distance(
    shape: int,
    across: Float[Tensor, "*batch columns"],
    down: Float[Tensor, "*batch rows"],
    radius: Float[Tensor, "*batch"],
) -> Float[Tensor, "*batch rows columns"]:
    """Distance of every point of a grid from the outline of one shape.

    Exact along edges; past the corners of squares and triangles it is the distance to the nearer edge line.

    Args:
        shape: Index into `SHAPES`.
        across: x of the grid's columns relative to the middle of the object, in world pixels.
        down: y of the grid's rows, relative to the same, growing downwards.
        radius: Half the width of the box that holds the object.
    """
    x, y, radius = across[..., None, :], down[..., :, None], radius[..., None, None]
    if shape == CIRCLE:
        return (x.square() + y.square()).sqrt() - radius
    if shape == SQUARE:
        return torch.maximum(x.abs(), y.abs()) - SQUARE_HALF_SIDE * radius
    # An upright equilateral triangle of side 2 r, its box centred: the inscribed circle lies a little low.
    inscribed, lowered = radius / math.sqrt(3), radius / math.sqrt(12)
    y = y - lowered
    return torch.maximum(y, 0.5 * (math.sqrt(3) * x.abs() - y)) - inscribed
