"""Scenes of the shapes world as a few numbers each, their random draw, and where things are over time.

Lengths are in world pixels (the frame is 64 of them each way), times in video frames, y points down.
"""

from dataclasses import dataclass, fields

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from arl2.errors import Arl2Error
from arl2.shapes.world.palette import BACKGROUNDS, COLOURS, MOTIONS, SHAPES, WORLD_SIZE

RIGHT, LEFT, UP, DOWN, BOUNCE = range(len(MOTIONS))

# An object turns round, or vanishes, this far from the edge of the frame.
EDGE_GAP = 1.0
# A bouncing object crosses the frame at different rates each way, so that its path does not close early.
BOUNCE_RATE_X, BOUNCE_RATE_Y = 0.8, 0.65
# Walls stand off the middle: on one side at least there is room to see the object whole.
WALL_OFFSET_RANGE = (9.0, 14.0)

Range = tuple[float, float]


@dataclass(frozen=True)
class Scenes:
    """A batch of scenes, one entry each along the only axis of every tensor."""

    colour: Int64[Tensor, " scenes"]
    """Index into `COLOURS`."""
    shape: Int64[Tensor, " scenes"]
    """Index into `SHAPES`."""
    background: Int64[Tensor, " scenes"]
    """Index into `BACKGROUNDS`."""
    motion: Int64[Tensor, " scenes"]
    """Index into `MOTIONS`."""
    wall: Bool[Tensor, " scenes"]
    """Whether an opaque wall stands in front."""
    hides_colour: Bool[Tensor, " scenes"]
    """Whether the caption leaves the colour out."""
    radius: Float[Tensor, " scenes"]
    """Half the width of the box that holds the object."""
    speed: Float[Tensor, " scenes"]
    """World pixels a video frame."""
    place_x: Float[Tensor, " scenes"]
    """Where on its horizontal path the object is at video frame 0, in [0, 1)."""
    place_y: Float[Tensor, " scenes"]
    """Where on its vertical path the object is at video frame 0, in [0, 1)."""
    wall_centre: Float[Tensor, " scenes"]
    """Middle of the wall at video frame 0, along x, or along y where the object moves up or down."""
    wall_width: Float[Tensor, " scenes"]
    """Width of the wall along the same axis."""
    wall_speed: Float[Tensor, " scenes"]
    """World pixels a video frame along the same axis; 0 for a wall that stands."""

    def __len__(self) -> int:
        return len(self.colour)

    def select(self, chosen: slice | list[int] | Tensor) -> "Scenes":
        """The chosen scenes, by slice, by index or by a boolean mask."""
        return Scenes(**{field.name: getattr(self, field.name)[chosen] for field in fields(self)})

    def to(self, device: torch.device | str) -> "Scenes":
        """The same scenes on another device."""
        return Scenes(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})

    @property
    def wall_is_level(self) -> Bool[Tensor, " scenes"]:
        """Whether the wall is horizontal, for objects moving up or down."""
        return (self.motion == UP) | (self.motion == DOWN)


def sample_scenes(
    count: int,
    *,
    seed: int,
    first: int = 0,
    speed_range: Range = (0.8, 1.4),
    radius_range: Range = (9.0, 11.0),
    wall_probability: float = 0.4,
    wall_spare_range: Range = (4.0, 8.0),
    wall_speed_range: Range = (0.0, 0.0),
    hide_colour_probability: float = 0.15,
) -> Scenes:
    """Scenes `first` to `first + count - 1` of the endless sequence that belongs to `seed`.

    Scene i of a seed depends on nothing else.

    Args:
        count: How many scenes.
        seed: 0 or more.
        first: Number of the first scene.
        speed_range: World pixels a video frame. Low for long occlusions, high for variety.
        radius_range: Half width of the object, in world pixels.
        wall_probability: Share of scenes with a wall.
        wall_spare_range: How much wider than the object a wall is, in world pixels. A standing wall hides the
            object wholly for about `spare / speed` video frames.
        wall_speed_range: World pixels a video frame; moving walls leave at one edge and return at the other.
        hide_colour_probability: Share of scenes whose caption leaves the colour out.

    Raises:
        Arl2Error: A negative number, a range that runs backwards, a probability outside [0, 1].
    """
    if count < 0 or seed < 0 or first < 0:
        raise Arl2Error(f"sample_scenes got count={count}, seed={seed}, first={first}; each must be 0 or more.")
    ranges = {
        "speed_range": speed_range,
        "radius_range": radius_range,
        "wall_spare_range": wall_spare_range,
        "wall_speed_range": wall_speed_range,
    }
    for name, (low, high) in ranges.items():
        if low > high:
            raise Arl2Error(f"{name} is ({low}, {high}); give the smaller number first.")
    for name, (low, _) in ranges.items():
        if low < 0 and name != "wall_speed_range":
            raise Arl2Error(f"{name} starts at {low}; sizes and speeds must not be negative.")
    for name, share in (("wall", wall_probability), ("hide_colour", hide_colour_probability)):
        if not 0 <= share <= 1:
            raise Arl2Error(f"{name}_probability is {share}; give a share between 0 and 1.")

    draws = iter(_uniforms(count, seed=seed, first=first).T)

    def pick(choices: int) -> Tensor:
        return torch.from_numpy((next(draws) * choices).astype(np.int64))

    def chance(share: float) -> Tensor:
        return torch.from_numpy(next(draws) < share)

    def between(bounds: Range) -> Tensor:
        low, high = bounds
        return torch.from_numpy((low + (high - low) * next(draws)).astype(np.float32))

    colour, shape, background, motion = (pick(len(names)) for names in (COLOURS, SHAPES, BACKGROUNDS, MOTIONS))
    wall, hides_colour = chance(wall_probability), chance(hide_colour_probability)
    radius, speed = between(radius_range), between(speed_range)
    place_x, place_y = between((0.0, 1.0)), between((0.0, 1.0))
    side = pick(2) * 2 - 1
    wall_centre = WORLD_SIZE / 2 + side * between(WALL_OFFSET_RANGE)
    wall_width = 2 * radius + between(wall_spare_range)
    return Scenes(
        colour=colour,
        shape=shape,
        background=background,
        motion=motion,
        wall=wall,
        hides_colour=hides_colour,
        radius=radius,
        speed=speed,
        place_x=place_x.clamp(max=1 - 2**-24),
        place_y=place_y.clamp(max=1 - 2**-24),
        wall_centre=wall_centre,
        wall_width=wall_width,
        wall_speed=between(wall_speed_range),
    )


def trajectory(scenes: Scenes, frames: int, *, start: int = 0) -> Float[Tensor, "scenes frames 2"]:
    """Centre of the object (x, y) in world pixels at video frames `start` to `start + frames - 1`.

    Right, left, up and down leave the frame and come back at the other side; bounce turns at the edges.
    """
    _check_times(frames, start)
    times, radius, speed = _times(scenes, frames, start), scenes.radius[:, None], scenes.speed[:, None]
    place_x, place_y, motion = scenes.place_x[:, None], scenes.place_y[:, None], scenes.motion[:, None]
    along_x = (motion == RIGHT).long() - (motion == LEFT).long()
    along_y = (motion == DOWN).long() - (motion == UP).long()
    path = times * speed.double()

    def wrapped(place: Tensor, heading: Tensor) -> Tensor:
        lap = WORLD_SIZE + 2 * (radius + EDGE_GAP).double()
        return (place * lap + heading * path) % lap - radius - EDGE_GAP

    def within(place: Tensor, moved: Tensor | float) -> Tensor:
        room = (WORLD_SIZE - 2 * (radius + EDGE_GAP)).double()
        there_and_back = (place * 2 * room + moved) % (2 * room)
        return radius + EDGE_GAP + room - (there_and_back - room).abs()

    still_x, still_y = within(place_x / 2, 0.0 * path), within(place_y / 2, 0.0 * path)
    bounces = motion == BOUNCE
    x = torch.where(along_x != 0, wrapped(place_x, along_x), still_x)
    y = torch.where(along_y != 0, wrapped(place_y, along_y), still_y)
    x = torch.where(bounces, within(place_x, BOUNCE_RATE_X * path), x)
    y = torch.where(bounces, within(place_y, BOUNCE_RATE_Y * path), y)
    return torch.stack((x, y), dim=-1).float()


def wall_path(scenes: Scenes, frames: int, *, start: int = 0) -> Float[Tensor, "scenes frames"]:
    """Centre of the wall along its axis, in world pixels; meaningless where a scene has no wall."""
    _check_times(frames, start)
    width = scenes.wall_width[:, None].double()
    moved = scenes.wall_centre[:, None] + scenes.wall_speed[:, None] * _times(scenes, frames, start)
    return ((moved + width / 2) % (WORLD_SIZE + width) - width / 2).float()


def _times(scenes: Scenes, frames: int, start: int) -> Float[Tensor, "1 frames"]:
    # Double: after an hour, 57,600 video frames, a float32 position would be off by hundredths of a pixel.
    return torch.arange(start, start + frames, dtype=torch.float64, device=scenes.speed.device)[None]


def _check_times(frames: int, start: int) -> None:
    if frames < 1 or start < 0:
        raise Arl2Error(f"Got {frames} video frames from number {start}; give at least 1, from 0 or later.")


def _uniforms(count: int, *, seed: int, first: int) -> np.ndarray:
    """Numbers in [0, 1), [count, 16]: row i depends on the seed and on `first + i` alone."""
    # Philox counts: each step of its counter gives four words, so every scene owns four steps of it.
    generator = np.random.Philox(key=seed).advance(4 * first)
    words = generator.random_raw(16 * count).reshape(count, 16)
    return (words >> np.uint64(11)) * 2.0**-53
