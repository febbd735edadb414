"""Names and colours of the world, in the order of the indices that scenes hold. Walls are the occluders."""

import torch
from jaxtyping import Float
from torch import Tensor

COLOURS = {
    "red": (220, 30, 30),
    "green": (30, 170, 50),
    "blue": (40, 70, 230),
    "yellow": (240, 215, 40),
    "purple": (160, 40, 190),
    "cyan": (40, 205, 225),
}
BACKGROUNDS = {
    "black": (8, 8, 8),
    "white": (245, 245, 245),
    "navy": (15, 20, 70),
    "beige": (235, 215, 185),
}
WALL_COLOUR = (128, 128, 128)
SHAPES = ("circle", "square", "triangle")
MOTIONS = ("right", "left", "up", "down", "bounce")

# Side of the world in pixels; other sizes are rendered to scale.
WORLD_SIZE = 64


def to_pixel_range(rgb: list[tuple[int, int, int]]) -> Float[Tensor, "entries 3"]:
    """Bytes 0 to 255 as pixel values in [-1, 1]."""
    return torch.tensor(rgb, dtype=torch.float32) / 127.5 - 1


def colour_table() -> Float[Tensor, "colours 3"]:
    """The object colours in [-1, 1], in the order of `COLOURS`."""
    return to_pixel_range(list(COLOURS.values()))


def background_table() -> Float[Tensor, "backgrounds 3"]:
    """The background colours in [-1, 1], in the order of `BACKGROUNDS`."""
    return to_pixel_range(list(BACKGROUNDS.values()))


def colour_distance(
    video: Float[Tensor, "frames 3 height width"], colour: Float[Tensor, "#frames 3"]
) -> Float[Tensor, "frames height width"]:
    """Euclidean distance of each pixel from a colour, RGB in [-1, 1]."""
    # Three planes by hand: torch's norm over so short an axis takes ten times as long.
    red, green, blue = (video - colour[:, :, None, None]).square_().unbind(1)
    return (red + green + blue).sqrt_()


def wall_pixel() -> Float[Tensor, "3"]:
    """The colour of every wall, in [-1, 1]."""
    return to_pixel_range([WALL_COLOUR])[0]
