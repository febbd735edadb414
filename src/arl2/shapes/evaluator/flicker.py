"""Temporal steadiness: of the pixels, and of the object's track."""

import torch
from jaxtyping import Float
from torch import Tensor

from arl2.errors import Arl2Error
from arl2.shapes.evaluator.oracle import Reading

# The track is exact only where nearly all of the object is seen.
WELL_SEEN = 0.9
# A longer step (pixels a video frame) is a jump to another place, not motion.
LONGEST_STEP = 16.0


def flicker(videos: Float[Tensor, "clips 3 frames height width"]) -> Float[Tensor, " clips"]:
    """Change between neighbouring video frames that the next one undoes, in pixel values.

    An object that moves past changes a pixel once, so true renders are near 0.

    Raises:
        Arl2Error: Fewer than 3 video frames.
    """
    if videos.shape[2] < 3:
        raise Arl2Error(f"Flicker needs at least 3 video frames; got {videos.shape[2]}.")
    change = videos.diff(dim=2)
    one, next_one = change[:, :, :-1], change[:, :, 1:]
    undone = torch.minimum(one.abs(), next_one.abs()) * (one * next_one < 0)
    return undone.mean(dim=(1, 2, 3, 4))


def stutter(reading: Reading) -> float:
    """The mean change from each step of the object to the next, over the mean step.

    Near 0 for even motion, 2 where the object rests for a few video frames and then jumps. NaN where it is never
    well visible, or never moves.
    """
    place = torch.where(reading.visible[:, None] >= WELL_SEEN, reading.place, torch.nan)
    steps = place.diff(dim=0)
    steps = torch.where(steps.norm(dim=1, keepdim=True) <= LONGEST_STEP, steps, torch.nan)
    length = steps.norm(dim=1).nanmean()
    return (steps.diff(dim=0).norm(dim=1).nanmean() / length).item() if length > 0 else float("nan")
