"""The ground-truth evaluator (an oracle): reads what a clip shows by fitting renders of the world to it."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from arl2.errors import Arl2Error
from arl2.shapes.evaluator.occlusion import Occlusion, find_occlusions
from arl2.shapes.evaluator.silhouettes import Silhouettes, read_silhouettes
from arl2.shapes.evaluator.surroundings import Surroundings, read_surroundings
from arl2.shapes.world.heading import read_motion
from arl2.shapes.world.palette import COLOURS, SHAPES, WORLD_SIZE

MIN_FRAMES = 5

# Visible share from which a video frame counts: the first of these that enough video frames reach.
WELL_SEEN = (0.7, 0.5, 0.3, 0.15)
ENOUGH_FRAMES = 5
# A shape is believed if it fits this well, clearly better than the next, and in nearly every video frame.
GOOD_FIT = 0.07
CLEARLY_BETTER = 0.5
MIN_AGREEMENT = 0.85
# Share of the video frames that must show a wall.
WALL_SHARE = 0.5
# An object in front of its wall in a larger share of the video frames is not behind it.
IN_FRONT_SHARE = 0.05


@dataclass(frozen=True)
class Reading:
    """What one clip shows; `None` where that is unclear, or where the clip contradicts itself."""

    colour: str | None
    shape: str | None
    motion: str | None
    background: str | None
    wall: bool
    """Whether most video frames show a wall with nothing in front of it."""
    confidence: float
    """Lowest share of video frames that agree with an attribute; 0 where one is undecided."""
    place: Float[Tensor, "frames 2"]
    """Centre (x, y) of the object in world pixels; NaN where it is not visible."""
    visible: Float[Tensor, " frames"]
    """Visible share of the object's area."""
    frame_colours: tuple[str | None, ...]
    """Colour of the object in each video frame; `None` where too little shows."""
    wall_span: Float[Tensor, "frames 2"]
    """First and last world pixel of the wall along its axis; NaN in video frames without one."""
    wall_is_level: bool
    """Whether the wall is horizontal."""
    in_front: Bool[Tensor, " frames"]
    """Whether something is in front of the wall."""
    occlusions: tuple[Occlusion, ...]
    """The times the object was out of sight, in order."""


@torch.no_grad()
def read(video: Float[Tensor, "3 frames height width"]) -> Reading:
    """Read one clip.

    Args:
        video: RGB in [-1, 1], square video frames of any size, at least `MIN_FRAMES` of them.

    Raises:
        Arl2Error: Too few video frames, or frames that are not square.
    """
    _, frames, height, width = video.shape
    if height != width:
        raise Arl2Error(f"Scoring needs square video frames; got {height} x {width}.")
    if frames < MIN_FRAMES:
        raise Arl2Error(f"Scoring needs at least {MIN_FRAMES} video frames to see motion; got {frames}.")
    images = video.detach().float().cpu().transpose(0, 1).nan_to_num()
    if height != WORLD_SIZE:
        images = functional.interpolate(
            images, size=(WORLD_SIZE, WORLD_SIZE), mode="bilinear", antialias=True, align_corners=False
        )
    around = read_surroundings(images)
    seen = read_silhouettes(images, around)
    return _conclude(around, seen)


def read_all(videos: Float[Tensor, "clips 3 frames height width"]) -> list[Reading]:
    """Read every clip of a batch; errors as for `read`."""
    return [read(video) for video in videos]


def _conclude(around: Surroundings, seen: Silhouettes) -> Reading:
    usable = _usable_frames(seen)
    shape, shape_agreement = _decide_shape(seen, usable)
    best = SHAPES.index(shape) if shape else int(seen.misfit[usable].nan_to_num(9.0).sum(0).argmin())
    colour, colour_agreement = _decide_colour(seen)
    motion, motion_agreement = read_motion(seen.place[:, best], seen.radius[:, best], usable)
    in_front_share = around.in_front.float().mean().item()
    wall = around.wall_share >= WALL_SHARE and in_front_share <= IN_FRONT_SHARE
    names = tuple(COLOURS)
    decided = None not in (colour, shape, motion, around.background)
    return Reading(
        colour=colour,
        shape=shape,
        motion=motion,
        background=around.background,
        wall=wall,
        confidence=min(shape_agreement, colour_agreement, motion_agreement) if decided else 0.0,
        place=seen.place[:, best],
        visible=seen.visible[:, best],
        frame_colours=tuple(names[index] if index >= 0 else None for index in seen.colour.tolist()),
        wall_span=around.wall_span,
        wall_is_level=around.level,
        in_front=around.in_front,
        occlusions=find_occlusions(around, seen, best),
    )


def _usable_frames(seen: Silhouettes) -> Bool[Tensor, " frames"]:
    """The video frames that show most of the object."""
    shown = seen.visible.amax(1)
    for share in WELL_SEEN:
        usable = shown >= share
        if usable.sum() >= ENOUGH_FRAMES:
            break
    return usable


def _decide_shape(seen: Silhouettes, usable: Bool[Tensor, " frames"]) -> tuple[str | None, float]:
    if not usable.any():
        return None, 0.0
    misfit = seen.misfit[usable]
    (fit, next_fit), order = misfit.mean(0).sort()[0][:2].tolist(), misfit.mean(0).argsort()
    agreement = (misfit.argmin(1) == order[0]).float().mean().item()
    believed = fit <= GOOD_FIT and fit <= CLEARLY_BETTER * next_fit and agreement >= MIN_AGREEMENT
    return (SHAPES[int(order[0])] if believed else None), agreement


def _decide_colour(seen: Silhouettes) -> tuple[str | None, float]:
    # Video frames vote by visible area, those of no known colour included.
    votes = torch.zeros(len(COLOURS) + 1).index_add_(0, seen.colour + 1, seen.core.float())
    if votes[1:].sum() == 0:
        return None, 0.0
    agreement = (votes[1:].max() / votes.sum()).item()
    return (tuple(COLOURS)[int(votes[1:].argmax())] if agreement >= MIN_AGREEMENT else None), agreement
