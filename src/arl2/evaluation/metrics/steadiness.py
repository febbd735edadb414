"""Change from video frame to video frame: undone flicker, smoothness, motion, freezes, loops."""

from itertools import pairwise

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from arl2.evaluation.metrics.flow import between, block_flow, motion_of
from arl2.evaluation.metrics.planes import Planes, block_means, luma

# Grey levels: below it no block of a video frame differs from the one before. Encoders leave less of a still picture.
_STILL = 0.5
# VBench's thresholds of dynamic degree: pixels of motion at 256 pixels a side, and how many pairs of 16 must have it.
_MOVES_AT_256, _MOVES_OF_16 = 6.0, 4
_VBENCH_RATE = 8.0  # video frames a second that it looks at
# A loop: after so many video frames at least, everything is back, by this share of what usually differs.
_SHORTEST_LOOP, _BACK, _AWAY = 8, 0.1, 5.0
_THUMBNAIL = 16


def undone_flicker(planes: Planes) -> float:
    """Mean change that the next frame undoes, over 255: motion past a pixel changes it once. 3 frames at least."""
    change = planes.diff(dim=0)
    one, other = change[:-1], change[1:]
    undone = torch.minimum(one.abs(), other.abs()) * (one * other < 0)
    return (undone.mean() / 255).item()


def midframe_smoothness(planes: Planes) -> float:
    """1 less the error of every second frame, interpolated along the flow of its neighbours, over 255. 3 at least."""
    before, after = planes[:-2:2], planes[2::2]
    middle = planes[1:-1:2]
    guessed = between(before, after, block_flow(before, after))
    return 1 - ((guessed - middle).abs().mean() / 255).item()


def motion(planes: Planes, scale: float) -> float:
    """Mean motion of the 5 % of the blocks that move most, in pixels of the file a video frame. 2 frames at least."""
    return scale * motion_of(block_flow(planes[:-1], planes[1:])).mean().item()


def moves(planes: Planes, fps: float) -> bool:
    """Dynamic degree by VBench's thresholds, with the flow of blocks in the place of its learned one."""
    taken = planes[:: max(1, round(fps / _VBENCH_RATE))]
    if len(taken) < 2:
        taken = planes[[0, -1]]
    threshold = _MOVES_AT_256 * min(planes.shape[2:]) / 256
    moved = int((motion_of(block_flow(taken[:-1], taken[1:])) > threshold).sum())
    return moved >= max(1, round(_MOVES_OF_16 * len(taken) / 16))


def freezes(planes: Planes, strong: Bool[Tensor, " pairs"]) -> tuple[float, int]:
    """Share of the changes of frame that change nothing, and how many frames the longest still picture lasts.

    Nothing changes where no block of the planes differs by half a grey level and no change of the file's own frames is
    ``strong``.
    """
    still = torch.stack([block_means((b - a).abs().mean(0)[None]).amax() < _STILL for a, b in pairwise(planes)])
    still &= ~strong
    longest = run = 0
    for one in still.tolist():
        run = run + 1 if one else 0
        longest = max(longest, run)
    return still.float().mean().item(), longest + 1 if longest else 0


def loop_period(planes: Planes) -> int | None:
    """After how many frames the video repeats itself; None if it does not, or if it hardly changes.

    Lag ``p`` counts if frames ``p`` apart differ by a tenth of what frames usually differ by, having been further apart
    in between. At least half a period must have been seen again.
    """
    small = functional.interpolate(luma(planes)[:, None], size=(_THUMBNAIL, _THUMBNAIL), mode="area").flatten(1)
    frames = len(small)
    lags = range(1, frames - max(frames // 3, _SHORTEST_LOOP) + 1)
    if len(lags) < _SHORTEST_LOOP:
        return None
    distance = torch.stack([_apart(small, lag) for lag in lags])
    usual = distance.median()
    if usual < _STILL:
        return None
    for lag in lags:
        here = distance[lag - 1]
        away = distance[: lag - 1].max() if lag > 1 else distance[0]
        if lag < _SHORTEST_LOOP or here > _BACK * usual or away < _AWAY * here + _STILL:
            continue
        beside = distance[lag] if lag < len(distance) else torch.inf
        if here <= beside:
            return lag
    return None


def _apart(small: Float[Tensor, "frames pixels"], lag: int) -> Tensor:
    return (small[lag:] - small[:-lag]).abs().mean()
