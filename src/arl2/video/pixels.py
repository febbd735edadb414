"""Frames as arrays: between a codec's pixels in [-1, 1] and the bytes of a file, enlarged, and side by side."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from arl2.errors import GeometryError

Frame = UInt8[np.ndarray, "height width 3"]
Frames = UInt8[np.ndarray, "frames height width 3"]

# White pixels between videos that are side by side.
_GAP = 2
# H.264 encodes no larger frames.
_LARGEST_SIDE = 16384


def to_bytes(video: Float[Tensor, "3 frames height width"]) -> Frames:
    """Video frames for a writer; values outside [-1, 1] are clamped, which a codec's output needs."""
    scaled = (video.detach().float().clamp(-1, 1) + 1) * 127.5
    return scaled.round().to(torch.uint8).permute(1, 2, 3, 0).cpu().numpy()


def from_bytes(frames: Frames) -> Float[Tensor, "3 frames height width"]:
    """Video in [-1, 1] of frames that were read from a file."""
    return torch.from_numpy(np.ascontiguousarray(frames)).permute(3, 0, 1, 2).float() / 127.5 - 1


def enlarge(frames: Frames, scale: int) -> UInt8[np.ndarray, "frames tall wide 3"]:
    """Every pixel becomes a square of ``scale`` x ``scale``."""
    return frames if scale == 1 else frames.repeat(scale, axis=1).repeat(scale, axis=2)


def check_scale(height: int, width: int, scale: int) -> None:
    """Raise ``GeometryError`` unless frames of this size can be enlarged by ``scale``."""
    if scale < 1 or max(height, width) * scale > _LARGEST_SIDE:
        raise GeometryError(
            f"Got scale={scale} for frames of {width} x {height}; it is a whole number from 1 that leads to at most "
            f"{_LARGEST_SIDE} pixels a side."
        )


def side_by_side(videos: Sequence[Frames]) -> UInt8[np.ndarray, "frames tall wide 3"]:
    """Videos of one size in rows and columns, white between them; a single one as it is."""
    if len(videos) == 1:
        return videos[0]
    columns = math.ceil(math.sqrt(len(videos)))
    rows = math.ceil(len(videos) / columns)
    frames, height, width, _ = videos[0].shape
    shape = (frames, rows * (height + _GAP) - _GAP, columns * (width + _GAP) - _GAP, 3)
    grid = np.full(shape, 255, dtype=np.uint8)
    for number, video in enumerate(videos):
        top, left = (height + _GAP) * (number // columns), (width + _GAP) * (number % columns)
        grid[:, top : top + height, left : left + width] = video
    return grid


def require_same_size(got: tuple[int, ...], first: tuple[int, ...]) -> None:
    """Raise ``GeometryError`` unless a frame has the size of the first."""
    if got != first:
        raise GeometryError(
            f"Got a video frame of {got[1]} x {got[0]} in a video of {first[1]} x {first[0]}; all frames of a file "
            "have one size."
        )
