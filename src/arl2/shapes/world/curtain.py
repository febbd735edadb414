"""Scenes for the memory test: an object seen, then hidden for as long as asked, then seen again."""

from dataclasses import replace

import torch

from arl2.errors import Arl2Error
from arl2.shapes.world.palette import WORLD_SIZE
from arl2.shapes.world.scene import BOUNCE, EDGE_GAP, LEFT, UP, WALL_OFFSET_RANGE, Scenes, sample_scenes

MIN_LEAD = 12
MAX_WALL_SPEED = 1.6
MAX_SPEED = 1.4
# Where the object starts at the earliest, where it vanishes, and how much further on it comes back, in world
# pixels along its heading.
FIRST_PLACE, HIDING_PLACE = 10.0, 24.0
RETURN_RANGE = (6.0, 14.0)


def sample_occlusions(count: int, *, seed: int, hidden: int, lead: int = 24) -> Scenes:
    """Scenes whose object is wholly hidden in the video frames `lead` to `lead + hidden - 1`.

    The wall comes towards the object, as a curtain, and is as wide as the time asks: wider than the picture for
    long occlusions. Objects move right, left, up or down, slowly enough to be in the picture on both sides of the
    occlusion. They are partly hidden for a few video frames before and after, the very next of which may show
    only a sliver.

    Args:
        count: How many scenes.
        seed: As for `sample_scenes`; likewise independent of `count`.
        hidden: Video frames without the object, any number from 1.
        lead: Video frames before that, at least `MIN_LEAD`.

    Raises:
        Arl2Error: `hidden` or `lead` too small.
    """
    if hidden < 1 or lead < MIN_LEAD:
        raise Arl2Error(
            f"An occlusion of {hidden} video frames after {lead} was asked; "
            f"give at least 1 hidden and {MIN_LEAD} before."
        )
    scenes = sample_scenes(count, seed=seed, wall_probability=1.0, speed_range=(0.0, 1.0))
    # Speed and wall are replaced below, so their draws are free to choose the motion and the place of return.
    motion = (scenes.speed * BOUNCE).long().clamp(max=BOUNCE - 1)
    nearest, farthest = WALL_OFFSET_RANGE
    draw = ((scenes.wall_centre - WORLD_SIZE / 2).abs().double() - nearest) / (farthest - nearest)

    # All along the heading: the object comes from 0, the wall from the far side.
    radius = scenes.radius.double()
    lap = WORLD_SIZE + 2 * (radius + EDGE_GAP)
    wall_speed = min(MAX_WALL_SPEED, WORLD_SIZE / (2 * lead))
    low, high = RETURN_RANGE
    onwards = low + (high - low) * draw
    # Long occlusions leave time for whole laps behind the wall; short ones need a slow object.
    fastest = min(MAX_SPEED, 1.5 * wall_speed, (HIDING_PLACE - FIRST_PLACE) / lead)
    laps = ((fastest * hidden - onwards) / lap).floor().clamp(min=0)
    speed = ((onwards + laps * lap) / hidden).clamp(max=fastest)
    start = HIDING_PLACE - speed * lead
    returns = HIDING_PLACE + (speed * hidden - laps * lap)
    # Half a video frame of slack at both ends keeps the first and last hidden frame clear of rounding.
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
