"""Wall and background of a video: the wall is found as grey rows or columns."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from arl2.shapes.world.palette import BACKGROUNDS, WORLD_SIZE, background_table, colour_distance, wall_pixel

# Distances are between RGB values in [-1, 1]. Every other colour of the world is 0.85 or more from the grey.
GREY_WITHIN = 0.4
NOT_GREY_BEYOND = 0.6
# The two nearest grounds, black and navy, are 0.5 apart.
GROUND_WITHIN = 0.25
# A row or column of the wall is grey for at least this share: an object wrongly in front covers a third at most.
WALL_SHARE = 0.6
MIN_WALL_WIDTH = 6
# Pixels this near to a wall mix both colours (more so after a codec) and say nothing about the object.
WALL_MARGIN = 2
# Pixels that are not grey, well inside the wall, from which there is an object in front of it.
IN_FRONT_PIXELS = 25
# A ground is measured only where it shows; the medians of fewer pixels could be those of the object.
MIN_GROUND_PIXELS = 600


@dataclass(frozen=True)
class Surroundings:
    """Wall and ground of one clip of 64 x 64 video frames."""

    level: bool
    """Whether the wall is horizontal."""
    wall_span: Float[Tensor, "frames 2"]
    """First and last world pixel of the wall along its axis; NaN in video frames without one."""
    in_front: Bool[Tensor, " frames"]
    """Whether something is in front of the wall."""
    clear: Bool[Tensor, "frames height width"]
    """Pixels away from the wall."""
    bare: Bool[Tensor, "frames height width"]
    """All pixels outside the wall."""
    ground: Float[Tensor, "frames 3"]
    """Colour of the ground."""
    background: str | None
    """The ground's name, if it is one of the world's and stays the same throughout."""

    @property
    def wall_share(self) -> float:
        """Share of the video frames that show a wall."""
        return 1 - self.wall_span[:, 0].isnan().float().mean().item()


def read_surroundings(video: Float[Tensor, "frames 3 64 64"]) -> Surroundings:
    """Find wall and ground in every video frame."""
    from_grey = colour_distance(video, wall_pixel()[None])
    level, span = _find_wall(from_grey < GREY_WITHIN)
    along = torch.arange(WORLD_SIZE)
    first, last = span[:, :1], span[:, 1:]
    covered = (along >= first - WALL_MARGIN) & (along <= last + WALL_MARGIN - 1)
    wall = (along >= first) & (along < last)
    inside = (along >= first + WALL_MARGIN) & (along <= last - WALL_MARGIN - 1)
    covered, wall, inside = (
        (band[:, :, None] if level else band[:, None, :]).expand_as(from_grey) for band in (covered, wall, inside)
    )
    in_front = ((from_grey > NOT_GREY_BEYOND) & inside).sum((1, 2)) >= IN_FRONT_PIXELS
    ground, background = _read_ground(video, ~covered)
    return Surroundings(level, span, in_front, ~covered, ~wall, ground, background)


def _find_wall(grey: Bool[Tensor, "frames 64 64"]) -> tuple[bool, Float[Tensor, "frames 2"]]:
    upright, level = grey.float().mean(1) >= WALL_SHARE, grey.float().mean(2) >= WALL_SHARE
    # A video frame that is grey all over shows no direction; the others decide.
    lies = bool((level & ~level.all(1, keepdim=True)).sum() > (upright & ~upright.all(1, keepdim=True)).sum())
    rows = level if lies else upright
    along = torch.arange(WORLD_SIZE, dtype=torch.float32)
    first = torch.where(rows, along, torch.inf).amin(1)
    last = torch.where(rows, along, -torch.inf).amax(1) + 1
    found = (last - first >= MIN_WALL_WIDTH) & (rows.sum(1) >= 0.8 * (last - first))
    span = torch.stack((first, last), dim=1)
    return lies, torch.where(found[:, None], span, torch.nan)


def _read_ground(
    video: Float[Tensor, "frames 3 64 64"], clear: Bool[Tensor, "frames 64 64"]
) -> tuple[Float[Tensor, "frames 3"], str | None]:
    # The object covers less than half of what is clear, so the median is the background's; every third pixel will do.
    pixels, shown = video.flatten(2), clear.flatten(1)
    medians = torch.where(shown[:, None], pixels, torch.nan)[:, :, ::3].nanmedian(dim=2).values
    measured = shown.sum(1) >= MIN_GROUND_PIXELS
    if not measured.any():
        measured = shown.sum(1) == shown.sum(1).max()
    overall = medians[measured].nanmedian(dim=0).values.nan_to_num()
    ground = torch.where(measured[:, None], medians, overall)
    distance, nearest = torch.cdist(ground[measured], background_table()).min(dim=1)
    votes = torch.bincount(nearest[distance < GROUND_WITHIN], minlength=len(BACKGROUNDS))
    agreed = votes.max() >= 0.9 * measured.sum()
    return ground, list(BACKGROUNDS)[int(votes.argmax())] if agreed else None
