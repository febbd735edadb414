"""What frames look like: hand-made features of subject and background, statistics of the image, and their drift."""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from arl2.evaluation.metrics.planes import Planes, luma

_BINS, _DIRECTIONS = 8, 8
# Grey levels from the median over time from which a pixel belongs to what moves.
_DIFFERS = 24.0
# Share of a frame that is a subject at least, and video frames that the median over time is taken of.
_SMALLEST, _MEDIAN_OF = 0.002, 64

Mask = Bool[Tensor, "frames height width"]
Features = Float[Tensor, "frames features"]

# Names of ``image_statistics``, in its order.
STATISTICS = ("brightness", "contrast", "colourfulness", "sharpness", "noise", "clipped")


def subject_mask(planes: Planes) -> Mask:
    """Pixels that differ from the median over time: what moves."""
    step = max(1, len(planes) // _MEDIAN_OF)
    background = planes[::step].median(dim=0).values
    return (planes - background).abs().amax(1) > _DIFFERS


def consistency(planes: Planes, mask: Mask) -> float | None:
    """Mean over frames of the similarity to the frame before and to the first one, as VBench combines them.

    Features are the square roots of two histograms of the pixels of ``mask``, colours and directions of edges. None if
    fewer than two frames show anything there.
    """
    shown = mask.float().mean((1, 2)) >= _SMALLEST
    if int(shown.sum()) < 2:
        return None
    features = features_of(planes[shown], mask[shown])
    to_first = (features[1:] * features[0]).sum(1)
    to_previous = (features[1:] * features[:-1]).sum(1)
    return ((to_first + to_previous) / 2).mean().item()


def features_of(planes: Planes, mask: Mask) -> Features:
    """Feature vectors of length 1, one a frame."""
    return torch.cat((_colours(planes, mask), _edges(planes, mask)), dim=1) / math.sqrt(2)


def image_statistics(planes: Planes) -> Float[Tensor, "frames statistics"]:
    """Of each frame: mean and standard deviation of luma (0 to 1), colourfulness (Hasler and Suesstrunk), variance of
    the Laplacian, standard deviation of noise (Immerkaer, grey levels), share of clipped values."""
    grey = luma(planes)
    red, green, blue = planes.unbind(1)
    across, along = (red - green).flatten(1), ((red + green) / 2 - blue).flatten(1)
    spread = (across.var(1, correction=0) + along.var(1, correction=0)).sqrt()
    colourful = spread + 0.3 * (across.mean(1).square() + along.mean(1).square()).sqrt()
    laplacian = _convolved(grey, ((0, 1, 0), (1, -4, 1), (0, 1, 0)))
    noise = _convolved(grey, ((1, -2, 1), (-2, 4, -2), (1, -2, 1))).abs().mean((1, 2)) * math.sqrt(math.pi / 2) / 6
    clipped = ((planes <= 0.5) | (planes >= 254.5)).float().mean((1, 2, 3))
    flat = grey.flatten(1) / 255
    return torch.stack(
        (
            flat.mean(1),
            flat.std(1, correction=0),
            colourful,
            laplacian.flatten(1).var(1, correction=0),
            noise,
            clipped,
        ),
        dim=1,
    )


def drift(planes: Planes, fps: float) -> dict[str, float]:
    """How the last seconds of 3 frames or more differ from the first; head and tail are 2 s, or a quarter if shorter.

    ``drift_colour`` is 1 less the similarity of colour histograms, ``drift_slope`` its growth a second (least squares
    of the distance from the head of every frame after it: those of the head are near it by definition, and would tilt
    the line of a video that does not drift). The others are tail less head, ``drift_sharpness`` in octaves.
    """
    length = max(1, min(round(2 * fps), len(planes) // 4))
    everywhere = torch.ones_like(planes[:, 0], dtype=torch.bool)
    colours = _colours(planes, everywhere)
    head = functional.normalize(colours[:length].mean(0), dim=0)
    tail = functional.normalize(colours[-length:].mean(0), dim=0)
    away = 1 - colours @ head
    away = away[length:]
    times = torch.arange(len(away), dtype=torch.float32) / fps
    centred = times - times.mean()
    statistics = image_statistics(planes)
    first, last = statistics[:length].mean(0), statistics[-length:].mean(0)
    brightness, contrast = (last - first)[:2].tolist()
    sharpness = math.log2((last[3].item() + 1) / (first[3].item() + 1))
    return {
        "drift_colour": 1 - (head @ tail).item(),
        "drift_slope": (centred @ away / centred.square().sum()).item(),
        "drift_brightness": brightness,
        "drift_contrast": contrast,
        "drift_sharpness": sharpness,
    }


def _colours(planes: Planes, mask: Mask) -> Features:
    """Square roots of smoothed colour histograms; a colour between two bins counts for both."""
    bins = (planes * (_BINS / 256)).long().clamp(0, _BINS - 1)
    index = (bins[:, 0] * _BINS + bins[:, 1]) * _BINS + bins[:, 2]
    counts = torch.zeros(len(planes), _BINS**3).scatter_add_(1, index.flatten(1), mask.flatten(1).float())
    cube = counts.view(-1, 1, _BINS, _BINS, _BINS)
    tap = torch.tensor((0.25, 0.5, 0.25))
    kernel = (tap[:, None, None] * tap[None, :, None] * tap[None, None, :])[None, None]
    return functional.normalize(functional.conv3d(cube, kernel, padding=1).flatten(1).sqrt(), dim=1)


def _edges(planes: Planes, mask: Mask) -> Features:
    grey = functional.pad(luma(planes)[:, None], (1, 1, 1, 1), mode="replicate")[:, 0]
    across = (grey[:, 1:-1, 2:] - grey[:, 1:-1, :-2]) / 2
    down = (grey[:, 2:, 1:-1] - grey[:, :-2, 1:-1]) / 2
    length = torch.hypot(across, down)
    angle = torch.atan2(down, across) % math.pi
    # Around each centre both neighbours share a direction, so that one that turns a little stays similar.
    place = angle * (_DIRECTIONS / math.pi)
    low = place.floor().long()
    part = place - low
    weight = length * mask
    counts = torch.full((len(planes), _DIRECTIONS), 1e-3)
    counts.scatter_add_(1, (low % _DIRECTIONS).flatten(1), (weight * (1 - part)).flatten(1))
    counts.scatter_add_(1, ((low + 1) % _DIRECTIONS).flatten(1), (weight * part).flatten(1))
    return functional.normalize(counts.sqrt(), dim=1)


def _convolved(grey: Tensor, kernel: tuple[tuple[int, ...], ...]) -> Tensor:
    return functional.conv2d(grey[:, None], torch.tensor(kernel, dtype=torch.float32)[None, None])[:, 0]
