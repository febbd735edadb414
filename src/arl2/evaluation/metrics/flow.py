"""Motion between video frames by block matching: exact for whole-pixel motion, and nothing to download.

A learned flow (VBench takes RAFT) sees more on textured video. Block matching is chosen before Farneback's or Lucas and
Kanade's method because flat, sharp-edged pictures give those no gradient to follow, and because its answer for a square
that moves by two pixels is two pixels. Where several displacements fit, the shortest is taken: along a straight edge
only motion across it can be seen.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from arl2.evaluation.metrics.planes import BLOCK, Planes, block_means

# Displacements searched, in pixels of the planes each way: one more than twice the coarse range.
_COARSE_RANGE = 4
# Grey levels that each pixel of displacement must gain: a tie goes to the shorter one.
_COST_A_PIXEL = 0.05
# A displacement between pixels is looked for where the best one misfits, and one beside it more, by so many levels.
_CURVED = 0.5
_PAIRS_AT_ONCE = 32
# Share of the blocks, those that move most, whose mean is a pair's motion: as in VBench's dynamic degree.
MOST_MOVED = 0.05

Flow = Float[Tensor, "pairs rows columns 2"]


def block_flow(first: Planes, second: Planes) -> Flow:
    """Displacement (x, y) of each block of ``first`` towards ``second``, in pixels of the planes."""
    parts = [
        _flow(first[start : start + _PAIRS_AT_ONCE], second[start : start + _PAIRS_AT_ONCE])
        for start in range(0, len(first), _PAIRS_AT_ONCE)
    ]
    return torch.cat(parts)


def motion_of(flow: Flow) -> Float[Tensor, " pairs"]:
    """Mean displacement of the 5 % of the blocks that move most, one block at least."""
    lengths = flow.norm(dim=-1).flatten(1)
    count = max(1, -(-lengths.shape[1] * 5 // 100))
    return lengths.topk(count, dim=1).values.mean(1)


def between(first: Planes, second: Planes, flow: Flow) -> Planes:
    """The frame half-way, from both sides along the flow."""
    whole = flow.permute(0, 3, 1, 2).repeat_interleave(BLOCK, 2).repeat_interleave(BLOCK, 3)
    return (_sampled(first, -whole / 2) + _sampled(second, whole / 2)) / 2


def _flow(first: Planes, second: Planes) -> Flow:
    coarse = _coarse(functional.avg_pool2d(first, 2), functional.avg_pool2d(second, 2))
    start = 2 * coarse
    best = torch.zeros_like(start)
    cost = _cost(first, second, best)
    nearby = sorted(((x, y) for x in (-1, 0, 1) for y in (-1, 0, 1)), key=lambda step: abs(step[0]) + abs(step[1]))
    for origin in (best, start, None):
        about = best if origin is None else origin
        for step in nearby:
            tried = about + torch.tensor(step)
            price = _cost(first, second, tried)
            better = price < cost
            cost, best = torch.where(better, price, cost), torch.where(better[..., None], tried, best)
    return best + _between_pixels(first, second, best)


def _coarse(first: Planes, second: Planes) -> Tensor:
    """Best whole-pixel displacement of each block of 4 x 4 pixels, by a full search."""
    reach = _COARSE_RANGE
    height, width = first.shape[2:]
    padded = functional.pad(second, (reach, reach, reach, reach), mode="replicate")
    steps = [(x, y) for x in range(-reach, reach + 1) for y in range(-reach, reach + 1)]
    best: Tensor | None = None
    cost: Tensor | None = None
    for x, y in sorted(steps, key=lambda step: (step[0] ** 2 + step[1] ** 2, step)):
        moved = padded[:, :, reach + y : reach + y + height, reach + x : reach + x + width]
        price = block_means((first - moved).abs().mean(1), BLOCK // 2) + 2 * _COST_A_PIXEL * (x**2 + y**2) ** 0.5
        here = torch.tensor((x, y)).expand(*price.shape, 2)
        if cost is None or best is None:
            cost, best = price, here.clone()
            continue
        better = price < cost
        cost, best = torch.where(better, price, cost), torch.where(better[..., None], here, best)
    assert best is not None
    return best


def _misfit(first: Planes, second: Planes, moved: Tensor) -> Float[Tensor, "pairs rows columns"]:
    """Mean absolute difference of each block of ``first`` and what lies ``moved`` from it in ``second``."""
    pairs, rows, columns, _ = moved.shape
    height, width = first.shape[2:]
    inside = torch.arange(BLOCK)
    down = (torch.arange(rows) * BLOCK)[None, :, None, None] + moved[..., 1, None] + inside
    across = (torch.arange(columns) * BLOCK)[None, None, :, None] + moved[..., 0, None] + inside
    down, across = down.clamp(0, height - 1), across.clamp(0, width - 1)
    flat = (down[..., :, None] * width + across[..., None, :]).reshape(pairs, 1, -1)
    there = second.flatten(2).gather(2, flat.expand(-1, 3, -1)).view(pairs, 3, rows, columns, BLOCK, BLOCK)
    here = first.view(pairs, 3, rows, BLOCK, columns, BLOCK).transpose(3, 4)
    return (here - there).abs().mean((1, 4, 5))


def _cost(first: Planes, second: Planes, moved: Tensor) -> Tensor:
    return _misfit(first, second, moved) + _COST_A_PIXEL * moved.float().norm(dim=-1)


def _between_pixels(first: Planes, second: Planes, best: Tensor) -> Flow:
    """What a parabola through the misfits beside the best displacement adds to it, at most half a pixel."""
    here = _misfit(first, second, best)
    added = []
    for axis in ((1, 0), (0, 1)):
        step = torch.tensor(axis)
        before, after = _misfit(first, second, best - step), _misfit(first, second, best + step)
        curved = (here > _CURVED) & (torch.maximum(before, after) > here + _CURVED)
        part = (before - after) / (2 * (before - 2 * here + after)).clamp(min=1e-6)
        added.append(torch.where(curved, part.clamp(-0.5, 0.5), 0.0))
    return torch.stack(added, dim=-1)


def _sampled(planes: Planes, moved: Float[Tensor, "pairs 2 height width"]) -> Planes:
    height, width = planes.shape[2:]
    across = torch.arange(width) + moved[:, 0]
    down = torch.arange(height)[:, None] + moved[:, 1]
    grid = torch.stack((2 * across / max(width - 1, 1) - 1, 2 * down / max(height - 1, 1) - 1), dim=-1)
    return functional.grid_sample(planes, grid, mode="bilinear", padding_mode="border", align_corners=True)
