"""How far an object's track is from any that the world's physics allow."""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from arl2.shapes.evaluator.flicker import WELL_SEEN
from arl2.shapes.evaluator.oracle import ENOUGH_FRAMES, Reading
from arl2.shapes.world.palette import MOTIONS, WORLD_SIZE
from arl2.shapes.world.scene import Scenes, sample_scenes, trajectory

# Speeds and radii that scenes have, and some to spare; places on a path; rounds that each look closer.
_SPEEDS, _RADII, _PLACES, _ROUNDS = (0.6, 1.8, 25), (9.0, 9.5, 10.0, 10.5, 11.0), 48, 3
# An object further off in one video frame counts as this far off: one that is elsewhere is wrong, and not more so.
_FARTHEST = WORLD_SIZE / 4


def position_error(reading: Reading, motion: str) -> float | None:
    """Mean distance, in world pixels, of an object from the nearest track of this motion; None if it is hardly seen.

    The track may begin anywhere, at any speed of the world. Where the object is well visible counts.
    """
    seen = (reading.visible >= WELL_SEEN) & reading.place.isfinite().all(1)
    if int(seen.sum()) < ENOUGH_FRAMES:
        return None
    times = seen.nonzero().flatten()
    places = reading.place[times]
    kind = MOTIONS.index(motion)
    best = min((_fit(places, times, kind, radius) for radius in _RADII), key=lambda fit: fit[0])
    return best[0]


def _fit(places: Float[Tensor, "seen 2"], times: Tensor, motion: int, radius: float) -> tuple[float, float]:
    """Error and speed of the best track of this radius: x and y are fitted apart, at one speed."""
    low, high, count = _SPEEDS
    speeds = torch.linspace(low, high, count)
    around_x = around_y = torch.linspace(0, 1, _PLACES + 1)[:-1]
    best = (float("inf"), 0.0)
    step = 1 / _PLACES
    for _ in range(_ROUNDS):
        tracks_x = _tracks(speeds, around_x, times, motion, radius)[..., 0]
        tracks_y = _tracks(speeds, around_y, times, motion, radius)[..., 1]
        off_x = (tracks_x - places[:, 0]).abs().clamp(max=_FARTHEST)
        off_y = (tracks_y - places[:, 1]).abs().clamp(max=_FARTHEST)
        at_x, at_y = off_x.square().mean(-1).argmin(1), off_y.square().mean(-1).argmin(1)
        rows = torch.arange(len(speeds))
        error = torch.hypot(off_x[rows, at_x], off_y[rows, at_y]).mean(1)
        chosen = int(error.argmin())
        if error[chosen] < best[0]:
            best = (error[chosen].item(), speeds[chosen].item())
        x, y = around_x[at_x[chosen]], around_y[at_y[chosen]]
        spread = torch.linspace(-1, 1, 13)
        around_x, around_y = (x + step * spread) % 1, (y + step * spread) % 1
        width = (speeds[1] - speeds[0]).item()
        speeds = (best[1] + width * torch.linspace(-1, 1, 13)).clamp(min=0.01)
        step /= 5
    return best


def _tracks(speeds: Tensor, around: Tensor, times: Tensor, motion: int, radius: float) -> Tensor:
    """Places of every speed and starting place, [speeds, places, seen, 2]."""
    count = len(speeds) * len(around)
    scenes = sample_scenes(1, seed=0).select(torch.zeros(count, dtype=torch.long))
    places = around.repeat(len(speeds)).clamp(max=1 - 2**-24)
    made: Scenes = replace(
        scenes,
        motion=torch.full((count,), motion),
        radius=torch.full((count,), radius),
        speed=speeds.repeat_interleave(len(around)),
        place_x=places,
        place_y=places,
    )
    track = trajectory(made, int(times[-1]) + 1)[:, times]
    return track.view(len(speeds), len(around), len(times), 2)
