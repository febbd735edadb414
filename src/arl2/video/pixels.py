"""Between a codec's pixels in [-1, 1] and the bytes of a file."""

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor


def to_bytes(video: Float[Tensor, "3 frames height width"]) -> UInt8[np.ndarray, "frames height width 3"]:
    """Video frames for a writer; values outside [-1, 1] are clamped, which a codec's output needs."""
    scaled = (video.detach().float().clamp(-1, 1) + 1) * 127.5
    return scaled.round().to(torch.uint8).permute(1, 2, 3, 0).cpu().numpy()


def from_bytes(frames: UInt8[np.ndarray, "frames height width 3"]) -> Float[Tensor, "3 frames height width"]:
    """Video in [-1, 1] of frames that were read from a file."""
    return torch.from_numpy(np.ascontiguousarray(frames)).permute(3, 0, 1, 2).float() / 127.5 - 1


def enlarge(frames: UInt8[np.ndarray, "frames height width 3"], scale: int) -> UInt8[np.ndarray, "frames tall wide 3"]:
    """Every pixel becomes a square of ``scale`` x ``scale``."""
    return frames if scale == 1 else frames.repeat(scale, axis=1).repeat(scale, axis=2)
