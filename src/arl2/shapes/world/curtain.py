"""Scenes for the memory test: a moving wall (a curtain) occludes the object for a given time."""

from dataclasses import replace

import torch

from arl2.errors import Arl2Error
from arl2.shapes.world.palette import WORLD_SIZE
from arl2.shapes.world.scene import BOUNCE, EDGE_GAP, LEFT, UP, WALL_OFFSET_RANGE, Scenes, sample_scenes

MIN_LEAD = 12
MAX_WALL_SPEED = 1.6
MAX_SPEED = 1.4
# Where the object starts at the earliest, where it is occluded, and how much further on it reappears, in world pixels
# along its heading.
FIRST_PLACE, HIDING_PLACE = 10.0, 24.0
RETURN_RANGE = (6.0, 14.0)


def sample_occlusions(count: int, *, seed: int, hidden: int, lead: int = 24) -> Scenes:
    """Scenes whose object is wholly occluded in the video frames `lead` to `lead + hidden - 1`.

    The wall moves towards the object and is as wide as the occlusion is long, if need be wider than the frame. Objects
    move right, left, up or down, slowly enough to be in the frame before and after. They are partly occluded for a few
    video frames before and after, the next of which may show only a sliver.

    Args:
        count: How many scenes.
        seed: As for `sample_scenes`.
        hidden: Video frames without the object, any number from 1.
        lead: Video frames before that, at least `MIN_LEAD`.

    Raises:
        Arl2Error: `hidden` or `lead` too small.
    """
    if hidden < 1 or lead < MIN_LEAD:
        raise Arl2Error(
            f"Got an occlusion of {hidden} video frames after {lead}; give at least 1 after at least {MIN_LEAD}."
        )
    scenes = sample_scenes(count, seed=seed, wall_probability=1.0, speed_range=(0.0, 1.0))
    # Speed and wall are replaced below, so their random numbers choose the motion and the place of return.
    motion = (scenes.speed * BOUNCE).long().clamp(max=BOUNCE - 1)
    nearest, farthest = WALL_OFFSET_RANGE
    chance = ((scenes.wall_centre - WORLD_SIZE / 2).abs().double() - nearest) / (farthest - nearest)

    # All along the heading: the object comes from 0, the wall from the far side.
    radius = scenes.radius.double()
    lap = WORLD_SIZE + 2 * (radius + EDGE_GAP)
    wall_speed = min(MAX_WALL_SPEED, WORLD_SIZE / (2 * lead))
    low, high = RETURN_RANGE
    onwards = low + (high - low) * chance
    # Long occlusions leave time for whole laps behind the wall; short ones need a slow object.
    fastest = min(MAX_SPEED, 1.5 * wall_speed, (HIDING_PLACE - FIRST_PLACE) / lead)
    laps = ((fastest * hidden - onwards) / lap).floor().clamp(min=0)
    speed = ((onwards + laps * lap) / hidden).clamp(max=fastest)
    start = HIDING_PLACE - speed * lead
    returns = HIDING_PLACE + (speed * hidden - laps * lap)
    # Half a video frame of slack at both ends keeps the first and last occluded frame clear of rounding.
    slack = (speed + wall_speed) / 2
    near_edge = HIDING_PLACE - radius - slack
    far_edge = returns + radius + wall_speed * hidden - slack
    width = far_edge - near_edge
    middle = (near_edge + far_edge) / 2 + wall_speed * lead

    backwards = (motion == LEFT) | (motion == UP)

    def along(position: torch.Tensor) -> torch.Tensor:
        return torch.where(backwards, WORLD_SIZE - position, position)

    place = ((along(start) + radius + EDGE_GAP) / lap) % 1
    level = motion >= UP
    return replace(
        scenes,
        motion=motion,
        speed=speed.float(),
        place_x=torch.where(level, scenes.place_x, place.float()),
        place_y=torch.where(level, place.float(), scenes.place_y),
        wall_centre=along(middle).float(),
        wall_width=width.float(),
        wall_speed=torch.where(backwards, wall_speed, -wall_speed).float(),
    )
