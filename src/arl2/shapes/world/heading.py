"""The motion that a track of positions shows."""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from arl2.shapes.world.palette import MOTIONS, WORLD_SIZE
from arl2.shapes.world.scene import BOUNCE, DOWN, LEFT, RIGHT, UP

# Displacements are taken over the first of these gaps (video frames) that moves the object clearly.
GAPS = (2, 4, 8, 16, 32, 64)
CLEAR_MOVE = 2.5
SMALLEST_MOVE = 1.0
MIN_PAIRS = 3
# A jump this long is a return at the other side of the frame.
LEAP = 0.6 * WORLD_SIZE
# Angles nearer than this to an axis run along it; the path of a bouncing object is 39 degrees off.
ALONG_WITHIN = math.radians(20)
MIN_AGREEMENT = 0.75
# A bouncing object stays in the frame as a whole, up to this error of its fitted centre.
INSIDE_SLACK = 3.0


def read_motion(
    place: Float[Tensor, "frames 2"], radius: Float[Tensor, " frames"], usable: Bool[Tensor, " frames"]
) -> tuple[str | None, float]:
    """Name of the motion and the share of displacements that agree with it; `None` if too few do.

    Args:
        place: Middle of the object in world pixels, y growing downwards.
        radius: Half its width.
        usable: Which video frames show it well enough.
    """
    moves = _displacements(place, usable)
    if moves is None:
        return None, 0.0
    angle = torch.atan2(moves[:, 1], moves[:, 0])
    quarter = torch.round(angle / (math.pi / 2))
    along = (angle - quarter * math.pi / 2).abs() < ALONG_WITHIN
    # Quarters from -2 to 2, counted from the right towards the bottom.
    headings = torch.tensor((LEFT, UP, RIGHT, DOWN, LEFT))[quarter.long() + 2]
    votes = torch.bincount(torch.where(along, headings, BOUNCE), minlength=len(MOTIONS))
    motion, agreement = int(votes.argmax()), (votes.max() / len(moves)).item()
    if motion == BOUNCE:
        edge = radius[usable, None] - INSIDE_SLACK
        inside = (place[usable] > edge) & (place[usable] < WORLD_SIZE - edge)
        agreement = min(agreement, inside.all(1).float().mean().item())
    return (MOTIONS[motion] if agreement >= MIN_AGREEMENT else None), agreement


def _displacements(place: Tensor, usable: Tensor) -> Float[Tensor, "pairs 2"] | None:
    widest = None
    for gap in GAPS:
        pairs = usable[gap:] & usable[:-gap]
        moves = (place[gap:] - place[:-gap])[pairs]
        moves = moves[moves.norm(dim=1) < LEAP]
        if len(moves) < MIN_PAIRS:
            continue
        if moves.norm(dim=1).median() >= CLEAR_MOVE:
            return moves
        widest = moves
    if widest is None or widest.norm(dim=1).median() < SMALLEST_MOVE:
        return None
    return widest
