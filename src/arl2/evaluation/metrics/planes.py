"""Video frames as the planes that metrics work on: small, in grey levels 0 to 255, and cut into blocks."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from arl2.video.pixels import Frames

BLOCK = 8
# Larger videos are scaled down so that their shorter side has this many pixels: motion and colour are still there.
SHORT_SIDE = 128

Planes = Float[Tensor, "frames 3 height width"]


def planes_of(frames: Frames) -> tuple[Float[Tensor, "frames 3 tall wide"], float]:
    """Planes in grey levels, both sides multiples of ``BLOCK``, and the file's pixels in each of theirs.

    Frames smaller than a block are padded by their edge; a margin that fills no block is cut off.
    """
    height, width = frames.shape[1:3]
    scale = max(1.0, min(height, width) / SHORT_SIDE)
    parts = []
    for start in range(0, len(frames), 64):
        part = torch.from_numpy(frames[start : start + 64].copy()).permute(0, 3, 1, 2).float()
        if scale > 1:
            size = (round(height / scale), round(width / scale))
            part = functional.interpolate(part, size=size, mode="area")
        parts.append(part)
    video = torch.cat(parts)
    low = [max(BLOCK - side, 0) for side in video.shape[2:]]
    if any(low):
        video = functional.pad(video, (0, low[1], 0, low[0]), mode="replicate")
    tall, wide = (side // BLOCK * BLOCK for side in video.shape[2:])
    return video[:, :, :tall, :wide].contiguous(), scale


def luma(planes: Planes) -> Float[Tensor, "frames height width"]:
    """Rec. 601 luma, 0 to 255."""
    red, green, blue = planes.unbind(1)
    return 0.299 * red + 0.587 * green + 0.114 * blue


def block_means(plane: Float[Tensor, "frames height width"], size: int = BLOCK) -> Float[Tensor, "frames rows columns"]:
    """Mean of each block of ``size`` x ``size``."""
    return functional.avg_pool2d(plane[:, None], size)[:, 0]
