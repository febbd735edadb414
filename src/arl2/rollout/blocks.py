"""What a rollout yields: a block of latents, and the same decoded."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8
from torch import Tensor

from arl2.geometry import FrameRange
from arl2.video.pixels import to_bytes


@dataclass(frozen=True)
class Block:
    """One finished block.

    Attributes:
        index: number of the block, from 0 at the start of the stream.
        frames: its latent frames, counted from the start of the stream.
        latents: ``[B, C, F, h, w]``.
        denoise_seconds, commit_seconds: host time of the denoising passes and of the cache-update pass (a GPU may still
            be busy); 0 denoising for conditioning latents.
        cut: it does not continue the block before it: the stream was rewound, cut to another prompt, or given real
            frames.
    """

    index: int
    frames: FrameRange
    latents: Float[Tensor, "batch channels frames height width"]
    denoise_seconds: float
    commit_seconds: float
    cut: bool = False


@dataclass(frozen=True)
class VideoBlock:
    """One block, denoised and decoded.

    Attributes:
        index: number of the block, from 0 at the start of the stream.
        frames: its latent frames, counted from the start of the stream.
        latents: ``[B, C, F, h, w]``.
        first_video_frame: number of its first video frame.
        video: RGB in [-1, 1], not clamped, ``[B, 3, video frames, height, width]``.
        denoise_seconds, commit_seconds, decode_seconds: host time of each part; 0 denoising for conditioning latents.
        cut: it does not continue the block before it; see :class:`Block`.
    """

    index: int
    frames: FrameRange
    latents: Float[Tensor, "batch channels latent_frames latent_height latent_width"]
    first_video_frame: int
    video: Float[Tensor, "batch 3 video_frames height width"]
    denoise_seconds: float
    commit_seconds: float
    decode_seconds: float
    cut: bool = False

    def pixels(self, sample: int = 0) -> UInt8[np.ndarray, "video_frames height width 3"]:
        """Video frames of one sample as bytes, ready for a writer."""
        return to_bytes(self.video[sample])
