"""How many objects a video of the world shows at once."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from arl2.shapes.evaluator.oracle import Reading
from arl2.shapes.evaluator.silhouettes import COLOUR_WITHIN
from arl2.shapes.world.palette import WORLD_SIZE, colour_distance, colour_table

# Video frames that are looked at, and pixels from which a patch is an object: the smallest whole one has 140.
_EVERY, _AREA = 4, 40
# An object whose visible share is between these may be cut in two by a wall.
_PARTLY = (0.05, 0.9)


def objects_at_once(video: Float[Tensor, "3 frames height width"], reading: Reading) -> float | None:
    """Mean number of patches of object colours, over video frames that show an object whole; None without any."""
    if video.shape[-1] != WORLD_SIZE:
        video = functional.interpolate(
            video.transpose(0, 1), size=(WORLD_SIZE, WORLD_SIZE), mode="bilinear", antialias=True
        ).transpose(0, 1)
    partly = (reading.visible > _PARTLY[0]) & (reading.visible < _PARTLY[1])
    frames = [number for number in range(0, video.shape[1], _EVERY) if not partly[number]]
    if not frames:
        return None
    images = video[:, frames].float().transpose(0, 1)
    distances = torch.stack([colour_distance(images, colour[None]) for colour in colour_table()])
    coloured = distances.amin(0) <= COLOUR_WITHIN
    counts = _patches(coloured)
    shown = counts > 0
    return counts[shown].float().mean().item() if bool(shown.any()) else None


def _patches(marked: Bool[Tensor, "frames height width"]) -> Tensor:
    """Connected patches of at least ``_AREA`` pixels in each frame; pixels touch at sides and corners."""
    frames, height, width = marked.shape
    inside = marked[:, None].float()
    label = torch.arange(1, height * width + 1, dtype=torch.float32).view(1, 1, height, width) * inside
    while True:
        # Every pixel takes the largest number of those it touches, until each patch has one.
        grown = functional.max_pool2d(label, 3, stride=1, padding=1) * inside
        if torch.equal(grown, label):
            break
        label = grown
    counts = torch.zeros(frames, height * width + 1).scatter_add_(
        1, label.long().flatten(1), torch.ones(frames, height * width)
    )
    return (counts[:, 1:] >= _AREA).sum(1)
