"""What is read of the frames as they are stored, at their own size, two frames at a time."""

from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor
from torch.nn import functional

from arl2.evaluation.metrics.planes import BLOCK
from arl2.video.pixels import Frame, Frames

# Grey levels that encoders leave of a still picture, in single pixels: x264 at qualities (crf) of 18 to 33 left 2 to 8
# between its key frames, and in no block a mean of half a level beyond 4.
_LEFT_BY_ENCODERS, _CHANGED = 4, 0.5


def temporal_flickering(frames: Frames) -> float:
    """VBench's formula: 255 less the mean absolute change between neighbouring frames, over 255. 2 frames at least."""
    changed = sum(int(_change(a, b).sum(dtype=np.int64)) for a, b in pairwise(frames))
    return 1 - changed / (255 * frames[1:].size)


def strong_changes(frames: Frames) -> Bool[Tensor, " pairs"]:
    """Whether neighbouring frames differ in some block of 8 x 8 pixels by half a grey level beyond four of each pixel.

    The small planes of other metrics average a small object away; this sees one that moves, and not what encoders leave
    of a still picture.
    """
    return torch.tensor([_strong(_change(a, b)) for a, b in pairwise(frames)], dtype=torch.bool)


def _strong(change: Frame) -> bool:
    beyond = np.where(change > _LEFT_BY_ENCODERS, change - _LEFT_BY_ENCODERS, 0).mean(2, dtype=np.float32)
    # Blocks at the margin are what is left of them: a mean of fewer pixels.
    blocks = functional.avg_pool2d(torch.from_numpy(beyond)[None], BLOCK, ceil_mode=True)
    return bool(blocks.amax() >= _CHANGED)


def _change(one: Frame, other: Frame) -> Frame:
    """Absolute difference, in bytes, which have no sign."""
    return np.maximum(one, other) - np.minimum(one, other)
