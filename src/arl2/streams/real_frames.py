"""Real video frames on their way into a running stream: checked, and encoded as the frames that come next."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from arl2.errors import ConfigError, GeometryError, NonFiniteError
from arl2.geometry import split_blocks, video_frames_of
from arl2.streams.components import for_codec
from arl2.video.codec import VideoCodec
from arl2.video.pixels import from_bytes

OVERSHOOT = 0.5  # above 1 and below -1, of decoded frames, which are not clamped
CONTEXT_FRAMES = (
    9  # latent frames decoded for the encoder to see first: leaves an error of 1e-3 in latents of Wan's VAE
)

RealFrames = Float[Tensor, "batch 3 frames height width"] | UInt8[np.ndarray, "frames height width 3"]


def as_video(frames: RealFrames, *, batch: int, height: int, width: int) -> Float[Tensor, "batch 3 frames tall wide"]:
    """Frames in [-1, 1], one video for each sample.

    Args:
        frames: ``[B, 3, F, height, width]`` in [-1, 1], or bytes ``[F, height, width, 3]``; one video for all
            samples, or one each.
        batch, height, width: of the stream, in pixels.

    Raises:
        ConfigError: an array that is not of bytes, an integer tensor, or values far from [-1, 1].
        GeometryError: another number of videos, another size, or no frames.
        NonFiniteError: NaN or infinity.
    """
    if isinstance(frames, np.ndarray) and frames.dtype != np.uint8:
        raise ConfigError(
            f"Got frames as an array of {frames.dtype}; give bytes (uint8, 0 to 255), or a torch tensor in [-1, 1]."
        )
    if isinstance(frames, Tensor) and not frames.is_floating_point():
        raise ConfigError(
            f"Got frames as a tensor of {frames.dtype}; give floating point in [-1, 1] (bytes / 127.5 - 1), or an "
            "array of bytes."
        )
    if isinstance(frames, np.ndarray) and frames.ndim != 4:
        raise GeometryError(f"Got bytes of {list(frames.shape)}; give [frames, height, width, 3].")
    video = from_bytes(frames)[None] if isinstance(frames, np.ndarray) else frames
    if video.dim() != 5 or video.shape[1] != 3 or not video.shape[2]:
        raise GeometryError(
            f"Got frames of {list(video.shape)}; give [batch, 3, frames, height, width] in [-1, 1], or bytes of "
            "[frames, height, width, 3]."
        )
    if len(video) not in (1, batch):
        raise GeometryError(f"Got {len(video)} videos for {batch} streams; give one, or one each.")
    if tuple(video.shape[3:]) != (height, width):
        raise GeometryError(
            f"Got frames of {video.shape[4]} x {video.shape[3]} pixels, but this stream is {width} x {height}; crop "
            "and resize them first."
        )
    if not bool(torch.isfinite(video).all()):
        raise NonFiniteError("The frames contain NaN or infinity; check what they were made from.")
    largest = float(video.abs().max())
    if largest > 1 + OVERSHOOT:
        raise ConfigError(f"Got frames that reach {largest:g}; give values in [-1, 1] (bytes / 127.5 - 1).")
    return video.expand(batch, -1, -1, -1, -1)


def whole_block_frames(
    video_frames: int, *, at: int, block_frames: int, first_block_frames: int | None, temporal_factor: int
) -> tuple[int, ...]:
    """Latent frames of each block that ``video_frames`` fill, from latent frame ``at`` on.

    Raises:
        GeometryError: they end inside a block; the message names the nearest numbers that do not.
    """
    step = block_frames * temporal_factor
    first = step if at else video_frames_of(0, first_block_frames or block_frames, temporal_factor)
    over = video_frames - first
    if over < 0 or over % step:
        below = first + max(0, over // step) * step
        choices = [below] if over < 0 else [below, below + step]
        raise GeometryError(
            f"{video_frames} video frames do not fill whole blocks here; give {' or '.join(map(str, choices))}."
        )
    if at:
        return (block_frames,) * (1 + over // step)
    frames = (first_block_frames or block_frames) + over // step * block_frames
    return tuple(len(block) for block in split_blocks(frames, block_frames, first_block_frames))


@torch.no_grad()
def encode_next(
    codec: VideoCodec,
    video: Float[Tensor, "batch 3 frames height width"],
    before: Sequence[Float[Tensor, "batch channels _ h w"]],
) -> Float[Tensor, "batch channels latent_frames h w"]:
    """Encode frames that continue a stream, or begin a video if nothing was ``before``.

    A causal encoder depends on the frames before. It sees the last latents first, decoded again, so its latents are
    those of encoding the whole video, up to the codec's loss.

    Args:
        codec: of the model.
        video: in [-1, 1]; as many frames as fill latent frames.
        before: latents of the last blocks.
    """
    cache = codec.new_cache("encoder")
    if before:
        latents = torch.cat([for_codec(codec, block) for block in before], dim=2)
        shown = codec.decode(latents[:, :, -CONTEXT_FRAMES:])
        codec.encode(for_codec(codec, shown.clamp(-1, 1)), cache)
    return codec.encode(for_codec(codec, video), cache).float()
