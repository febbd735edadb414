"""The colour of an object by its area alone, without a model of background, wall or shape.

The ground-truth evaluator fits what the world can look like. It fails on a frame whose wall is blotched, as models
generate very wide walls, although the colour of the object beside it is plain to see.
"""

from collections import Counter

import torch
from jaxtyping import Float, Int
from torch import Tensor

from arl2.errors import Arl2Error
from arl2.shapes.evaluator.oracle import ENOUGH_FRAMES
from arl2.shapes.evaluator.silhouettes import COLOUR_WITHIN
from arl2.shapes.world.palette import COLOURS, WORLD_SIZE, background_table, colour_distance, colour_table, wall_pixel

# Share of a frame from which it is an object: 40 pixels, where the smallest object has 140.
_AREA = 40 / WORLD_SIZE**2


def coloured_area(video: Float[Tensor, "3 frames height width"]) -> Float[Tensor, "frames colours"]:
    """Share of each video frame, RGB in [-1, 1], that has each of the object colours, in the order of ``COLOURS``."""
    known = torch.cat([colour_table(), background_table(), wall_pixel()[None]])
    frames = video.float().cpu().transpose(0, 1)
    distance = torch.stack([colour_distance(frames, colour[None]) for colour in known], dim=1)
    nearest: Int[Tensor, "frames height width"] = distance.argmin(1)
    nearest = nearest.masked_fill(distance.amin(1) > COLOUR_WITHIN, -1)
    return torch.stack([(nearest == index).float().mean((1, 2)) for index in range(len(COLOURS))], dim=1)


def shown_colour(video: Float[Tensor, "3 frames height width"]) -> str | None:
    """The colour that most of the video frames with a coloured object show; None if too few of them show one.

    Args:
        video: RGB in [-1, 1].

    Raises:
        Arl2Error: too few video frames.
    """
    if video.shape[1] < ENOUGH_FRAMES:
        raise Arl2Error(f"{video.shape[1]} video frames are too few to see a colour in; give {ENOUGH_FRAMES} or more.")
    area, colour = coloured_area(video).max(1)
    votes = Counter(index for index, share in zip(colour.tolist(), area.tolist(), strict=True) if share >= _AREA)
    if votes.total() < ENOUGH_FRAMES:
        return None
    index, most = votes.most_common(1)[0]
    return tuple(COLOURS)[index] if 2 * most > votes.total() else None
