"""Where the object is and which shape it has in each video frame, by drawing candidates and comparing.

Axes: `frames`, `shapes` in the order of `SHAPES`, and the window of pixels around a candidate.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional

from arl2.shapes.evaluator.surroundings import Surroundings
from arl2.shapes.world.outline import SQUARE_HALF_SIDE, signed_distance
from arl2.shapes.world.palette import SHAPES, WORLD_SIZE, colour_distance, colour_table

# Distances between RGB values in [-1, 1]; the two nearest object colours are 1.0 apart.
OBJECT_BEYOND = 0.55
COLOUR_WITHIN = 0.45
# Pixels away from the object's edges from which a colour is read, at least, and the share of them that must agree.
MIN_COLOUR_PIXELS = 12
PURE_SHARE = 0.8
MIN_OBJECT_PIXELS = 10
# Cover below and above these counts as none and full, so that mild noise far from the object adds nothing.
NO_COVER, FULL_COVER = 0.15, 0.85

COARSE_RADII = (8.5, 10.0, 11.5)
RADIUS_RANGE = (5.0, 18.0)
USUAL_RADIUS = 10.0
WINDOW = 32
REFINEMENTS = 4
# Pull of each refinement towards where it is (x, y) and towards the usual radius. A whole circle pulls with about 60.
PULL_PLACE, PULL_RADIUS = 0.5, 2.0


@dataclass(frozen=True)
class Silhouettes:
    """The object in each video frame of one clip."""

    colour: Int64[Tensor, " frames"]
    """Index into `COLOURS`, -1 where there is too little to see or it is none of them."""
    core: Int64[Tensor, " frames"]
    """Pixels that the colour was read from; 0 where there were too few."""
    place: Float[Tensor, "frames shapes 2"]
    """Centre (x, y) of the best fit of each shape; NaN where nothing is visible."""
    radius: Float[Tensor, "frames shapes"]
    """Radius of the best fit of each shape; NaN where nothing is visible."""
    misfit: Float[Tensor, "frames shapes"]
    """Squared difference between the frame and the best fit of each shape, as a share of the whole shape."""
    visible: Float[Tensor, "frames shapes"]
    """Visible share of the fitted shape's area: in the frame, outside the wall, and really there."""


def read_silhouettes(video: Float[Tensor, "frames 3 64 64"], around: Surroundings) -> Silhouettes:
    """Fit every shape to every video frame in which something differs from wall and ground."""
    colour, core, cover = _colour_and_cover(video, around)
    pixels = cover.sum((1, 2))
    shown = (pixels >= MIN_OBJECT_PIXELS).nonzero().flatten()
    frames, shapes = len(video), len(SHAPES)
    fit = video.new_full((frames, shapes, 3), torch.nan)
    misfit, visible = fit[..., 0].clone(), video.new_zeros(frames, shapes)
    if len(shown):
        fit[shown], misfit[shown], visible[shown] = _fit(cover[shown], around.clear[shown], around.bare[shown])
    return Silhouettes(colour, core, fit[..., :2], fit[..., 2], misfit, visible)


def shape_area(shape: int, radius: Float[Tensor, " frames"]) -> Float[Tensor, " frames"]:
    """Area of a shape in world pixels."""
    factors = (math.pi, 4 * SQUARE_HALF_SIDE**2, math.sqrt(3))
    return factors[shape] * radius.square()


def _colour_and_cover(
    video: Float[Tensor, "frames 3 64 64"], around: Surroundings
) -> tuple[Int64[Tensor, " frames"], Int64[Tensor, " frames"], Float[Tensor, "frames 64 64"]]:
    """The object's colour in each video frame, from how many pixels, and its cover of each clear pixel."""
    ground = around.ground[:, :, None, None]
    core = _without_edges(colour_distance(video, around.ground) > OBJECT_BEYOND, around.clear)
    count = core.sum((1, 2))
    own = torch.einsum("fchw,fhw->fc", video, core.float()) / count.clamp(min=1)[:, None]
    distance, nearest = torch.cdist(own, colour_table()).min(dim=1)
    # The mean of an object of two colours is near to part of it at most.
    pure = (colour_distance(video, own) < COLOUR_WITHIN) & core
    enough = count >= MIN_COLOUR_PIXELS
    known = (distance < COLOUR_WITHIN) & enough & (pure.sum((1, 2)) >= PURE_SHARE * count)

    # Where too little shows, cover is measured by the colour that the clip shows most.
    usual = own[enough].median(dim=0).values if enough.any() else own.new_ones(3)
    own = torch.where(enough[:, None], own, usual)
    towards = own - around.ground
    length = towards.square().sum(1).clamp(min=OBJECT_BEYOND**2)
    share = torch.einsum("fchw,fc->fhw", video - ground, towards) / length[:, None, None]
    cover = ((share - NO_COVER) / (FULL_COVER - NO_COVER)).clamp(0, 1) * around.clear
    return torch.where(known, nearest, -1), count * enough, cover


def _without_edges(
    found: Bool[Tensor, "frames 64 64"], clear: Bool[Tensor, "frames 64 64"]
) -> Bool[Tensor, "frames 64 64"]:
    """The found pixels all of whose neighbours are found too; wall and frame edges do not count against."""
    gaps = (clear & ~found).float()[:, None]
    return found & clear & (functional.max_pool2d(gaps, 3, stride=1, padding=1)[:, 0] == 0)


def _fit(
    cover: Float[Tensor, "frames 64 64"], clear: Bool[Tensor, "frames 64 64"], bare: Bool[Tensor, "frames 64 64"]
) -> tuple[Float[Tensor, "frames shapes 3"], Float[Tensor, "frames shapes"], Float[Tensor, "frames shapes"]]:
    """(x, y, radius), misfit and visible share of every shape, compared only where no wall stands."""
    best = _coarse_fit(cover, clear.float())
    corner = (best[..., :2] - WINDOW / 2).round().long()
    seen, known = _window(cover, corner), _window(clear.float(), corner)
    error = _errors(best, seen, known, corner).square().sum((2, 3))
    for _ in range(REFINEMENTS):
        moved = _refine(best, seen, known, corner)
        moved_error = _errors(moved, seen, known, corner).square().sum((2, 3))
        better = moved_error < error
        best, error = torch.where(better[..., None], moved, best), torch.where(better, moved_error, error)

    area = torch.stack([shape_area(shape, best[:, shape, 2]) for shape in range(len(SHAPES))], dim=1)
    # What lies beyond the window is not explained by any candidate in it.
    beyond = cover.square().sum((1, 2))[:, None] - seen.square().sum((2, 3))
    full = _cover(best, corner)
    present = (seen.sum((2, 3)) / (full * known).sum((2, 3)).clamp(min=1)).clamp(max=1)
    in_view = (full * _window(bare.float(), corner)).sum((2, 3)) / area
    return best, (error + beyond) / area, (present * in_view).clamp(max=1)


def _coarse_fit(
    cover: Float[Tensor, "frames 64 64"], clear: Float[Tensor, "frames 64 64"]
) -> Float[Tensor, "frames shapes 3"]:
    """Best (x, y, radius) of each shape among all places two pixels apart, also partly outside the frame."""
    half_cover, half_clear = (functional.avg_pool2d(plane[:, None], 2) for plane in (cover, clear))
    # In cells of two pixels: how far a shape reaches, and how far outside the frame its centre may be.
    reach, outside = 6, 5
    grid = torch.arange(-reach, reach + 1) * 2.0
    shapes = torch.arange(len(SHAPES)).repeat_interleave(len(COARSE_RADII))
    radii = torch.tensor(COARSE_RADII).repeat(len(SHAPES))
    templates = torch.stack(
        [
            (0.5 - signed_distance(shape, grid, grid, radius) / 2).clamp(0, 1)
            for shape, radius in zip(shapes.tolist(), radii, strict=True)
        ]
    )[:, None]
    # Squared difference to each template, less the part that does not depend on the place.
    both = functional.conv2d(half_cover, templates, padding=reach + outside)
    alone = functional.conv2d(half_clear, templates.square(), padding=reach + outside)
    value, where = (alone - 2 * both).flatten(2).unflatten(1, (len(SHAPES), -1)).min(dim=3)
    value, which = value.min(dim=2)
    where = where.gather(2, which[..., None])[..., 0]
    columns = WORLD_SIZE // 2 + 2 * outside
    x, y = (2.0 * (cells - outside) + 1 for cells in (where % columns, where // columns))
    return torch.stack((x, y, torch.tensor(COARSE_RADII)[which]), dim=-1)


def _window(
    plane: Float[Tensor, "frames 64 64"], corner: Int64[Tensor, "frames shapes 2"]
) -> Float[Tensor, "frames shapes window window"]:
    """The pixels around each candidate; 0 outside the frame."""
    padded = functional.pad(plane, (WINDOW, WINDOW, WINDOW, WINDOW))
    steps = torch.arange(WINDOW)
    columns = (corner[..., 0, None] + WINDOW + steps)[..., None, :]
    rows = (corner[..., 1, None] + WINDOW + steps)[..., :, None]
    return padded[torch.arange(len(plane))[:, None, None, None], rows, columns]


def _cover(
    candidate: Float[Tensor, "frames shapes 3"], corner: Int64[Tensor, "frames shapes 2"]
) -> Float[Tensor, "frames shapes window window"]:
    """Cover of the pixels in its window by each candidate, without occlusion."""
    grid = corner[..., None] + (torch.arange(WINDOW) + 0.5) - candidate[..., :2, None]
    distances = [
        signed_distance(shape, grid[:, shape, 0], grid[:, shape, 1], candidate[:, shape, 2])
        for shape in range(len(SHAPES))
    ]
    return (0.5 - torch.stack(distances, dim=1)).clamp(0, 1)


def _errors(
    candidate: Float[Tensor, "frames shapes 3"],
    seen: Float[Tensor, "frames shapes window window"],
    known: Float[Tensor, "frames shapes window window"],
    corner: Int64[Tensor, "frames shapes 2"],
) -> Float[Tensor, "frames shapes window window"]:
    return (_cover(candidate, corner) - seen) * known


def _refine(
    candidate: Float[Tensor, "frames shapes 3"],
    seen: Float[Tensor, "frames shapes window window"],
    known: Float[Tensor, "frames shapes window window"],
    corner: Int64[Tensor, "frames shapes 2"],
) -> Float[Tensor, "frames shapes 3"]:
    """One damped Gauss-Newton step on x, y and radius, with slopes taken over half a pixel."""
    step = 0.5
    here = _errors(candidate, seen, known, corner).flatten(2)
    slopes = torch.stack(
        [(_errors(candidate + step * axis, seen, known, corner).flatten(2) - here) / step for axis in torch.eye(3)],
        dim=2,
    )
    pull = torch.tensor((PULL_PLACE, PULL_PLACE, PULL_RADIUS))
    from_usual = (candidate - USUAL_RADIUS) * torch.tensor((0.0, 0.0, 1.0))
    curvature = slopes @ slopes.mT + torch.diag(pull)
    slope = (slopes @ here[..., None])[..., 0] + pull * from_usual
    moved = candidate - torch.linalg.solve(curvature, slope).clamp(-2, 2)
    radius = moved[..., 2:].clamp(*RADIUS_RANGE)
    return torch.cat((moved[..., :2], radius), dim=-1)
