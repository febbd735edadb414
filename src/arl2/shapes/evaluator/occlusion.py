"""Out of sight and back: is the object that comes out the one that went in?"""

from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Bool
from torch import Tensor

from arl2.shapes.evaluator.silhouettes import Silhouettes
from arl2.shapes.evaluator.surroundings import Surroundings
from arl2.shapes.world.palette import COLOURS, SHAPES

# Visible share below which the object is out of sight, and from which it has reappeared.
SEEN_SHARE, SHOWN_SHARE = 0.12, 0.5
# Video frames next to a gap from which colour and shape are read, at most.
FRAMES_BESIDE = 24
# An object at most this far (world pixels) beyond its radius from the wall goes behind it, not out of the frame.
NEAR_WALL = 4.0
# A shape beside a gap is known if the best fit is this much better than the next.
CLEARLY_BETTER = 0.6


@dataclass(frozen=True)
class Occlusion:
    """One time that the object, seen before, was out of sight."""

    first: int
    """First video frame without the object."""
    frames: int
    """How many video frames it was out of sight, at most to the end of the clip."""
    behind_wall: bool
    """Whether it went behind the wall, rather than out of the frame."""
    returned: bool
    """Whether it came back before the end of the clip."""
    shown_after: bool
    """Whether, once back, half of it could be seen at some time before it left again or the clip ended."""
    colour_before: str | None
    colour_after: str | None
    shape_before: str | None
    shape_after: str | None


def find_occlusions(around: Surroundings, seen: Silhouettes, best: int) -> tuple[Occlusion, ...]:
    """The occlusions of one clip in order; `best` is the shape whose fit gives place and visible share."""
    visible = seen.visible[:, best]
    in_sight = visible >= SEEN_SHARE
    # Beyond the last video frame: the end of a gap that lasts to the end of the clip.
    end = len(in_sight)
    shown = [*in_sight.nonzero().flatten().tolist(), end]
    occlusions = []
    for last_before, first_after in pairwise(shown):
        if first_after == last_before + 1:
            continue
        before, after = _run(in_sight, last_before, -1), _run(in_sight, first_after, 1)
        occlusions.append(
            Occlusion(
                first=last_before + 1,
                frames=first_after - last_before - 1,
                behind_wall=_meets_wall(around, seen, best, last_before),
                returned=first_after < end,
                shown_after=bool((visible[after] >= SHOWN_SHARE).any()),
                colour_before=_colour(seen, before),
                colour_after=_colour(seen, after),
                shape_before=_shape(seen, before),
                shape_after=_shape(seen, after),
            )
        )
    return tuple(occlusions)


def _run(in_sight: Bool[Tensor, " frames"], start: int, step: int) -> list[int]:
    """The video frames in sight from `start` on, forwards or backwards, until the next gap."""
    found: list[int] = []
    frame = start
    while 0 <= frame < len(in_sight) and in_sight[frame] and len(found) < FRAMES_BESIDE:
        found.append(frame)
        frame += step
    return found


def _meets_wall(around: Surroundings, seen: Silhouettes, best: int, frame: int) -> bool:
    along = seen.place[frame, best, 1 if around.level else 0]
    reach = seen.radius[frame, best] + NEAR_WALL
    first, last = around.wall_span[frame]
    # Comparisons with the NaN of a missing wall are false.
    return bool((along >= first - reach) & (along <= last + reach))


def _colour(seen: Silhouettes, frames: list[int]) -> str | None:
    weight = seen.core[frames].float()
    votes = torch.zeros(len(COLOURS) + 1).index_add_(0, seen.colour[frames] + 1, weight)
    if votes[1:].max() <= 0.5 * votes.sum():
        return None
    return tuple(COLOURS)[int(votes[1:].argmax())]


def _shape(seen: Silhouettes, frames: list[int]) -> str | None:
    if not frames:
        return None
    # A sliver fits every shape: video frames count by the square of the visible share.
    weight = seen.visible[frames].amax(1, keepdim=True).square()
    misfit = (seen.misfit[frames] * weight).sum(0)
    fit, next_fit = misfit.sort()[0][:2].tolist()
    return SHAPES[int(misfit.argmin())] if fit <= CLEARLY_BETTER * next_fit else None
