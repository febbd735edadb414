"""What a video starts with: an image or a video of a person's own, as latents for ``known=`` of the pipeline.

A model continues in whole blocks. An image is one latent frame, so it needs a first block of one; of a video the
oldest frames are left out until what remains is whole blocks.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from arl2.errors import GeometryError
from arl2.geometry import video_frames_of
from arl2.pipeline.pipeline import ARL2Pipeline
from arl2.streams.codec_device import for_codec
from arl2.video.codec import VideoCodec
from arl2.video.formats import VideoFileError
from arl2.video.images import frame_of, read_image
from arl2.video.pixels import Frame, from_bytes
from arl2.video.reading import clip_frames, count_clip_frames

FrameLatents = Float[Tensor, "1 channels 1 latent_height latent_width"]
ClipLatents = Float[Tensor, "1 channels latent_frames latent_height latent_width"]


@dataclass(frozen=True)
class VideoPrefix:
    """The start of a video that is to go on.

    Attributes:
        latents: ``[1, C, F, h, w]``, whole blocks.
        video_frames: video frames they stand for.
        left_out: the oldest video frames of the file, which did not fill a block.
    """

    latents: ClipLatents
    video_frames: int
    left_out: int


def image_prefix(pipe: ARL2Pipeline, path: Path) -> VideoPrefix:
    """An image file as the first latent frame of a video of the model's picture size.

    Raises:
        Arl2Error: not an image.
        GeometryError: the model's blocks do not let an image stand alone.
    """
    require_block_of_one(pipe)
    settings = pipe.settings
    latents = image_latents(pipe.codec, read_image(path), height=settings.height, width=settings.width)
    return VideoPrefix(latents, 1, 0)


def video_prefix(pipe: ARL2Pipeline, path: Path) -> VideoPrefix:
    """A video file as latents in whole blocks, at the model's picture size and rate.

    The file is decoded twice, first to count its frames: what is left out is at its start. Memory does not grow with
    its length but by the latents.

    Raises:
        VideoFileError: no video, or a broken one.
        GeometryError: a video shorter than a block.
    """
    settings = pipe.settings
    found = count_clip_frames(path, fps=settings.fps)
    whole = whole_blocks(
        found,
        temporal_factor=pipe.codec.temporal_factor,
        block_frames=pipe.block_frames,
        first_block_frames=settings.first_block_frames,
    )
    kept = video_frames_of(0, whole, pipe.codec.temporal_factor)
    frames = islice(clip_frames(path, fps=settings.fps), found - kept, None)
    latents = video_latents(pipe.codec, frames, height=settings.height, width=settings.width)
    return VideoPrefix(latents, kept, found - kept)


def frames_in_all(pipe: ARL2Pipeline, known: VideoPrefix | None) -> int:
    """Video frames of a video whose length nobody said: the model's number, after a known video that many more."""
    if known is None:
        return pipe.settings.num_frames
    return pipe.plan_frames(known.video_frames + pipe.settings.num_frames).video_frames


def image_latents(codec: VideoCodec, image: Image.Image, *, height: int, width: int) -> FrameLatents:
    """Encode an image as the first latent frame of a stream.

    Args:
        codec: of the model.
        image: of any size and mode; cropped around its centre and resized.
        height, width: of the picture, in pixels.
    """
    return video_latents(codec, [frame_of(image, Path("the image"))], height=height, width=width)


@torch.no_grad()
def video_latents(codec: VideoCodec, frames: Iterable[Frame], *, height: int, width: int) -> ClipLatents:
    """Encode video frames from the start of a stream, a latent frame at a time, in memory that does not grow.

    Args:
        codec: of the model.
        frames: RGB bytes of any sizes, ``1 + temporal_factor * n`` of them; cropped around the centre and resized.
        height, width: of the picture, in pixels.

    Returns:
        Latents in float32 on the CPU, ``[1, C, 1 + n, h, w]``.

    Raises:
        GeometryError: no frames, or a number that ends inside a latent frame.
    """
    cache = codec.new_cache("encoder")
    # As arrays: small tensors kept between large passing ones would hold the memory of these.
    pieces: list[np.ndarray] = []
    remaining = iter(frames)
    while piece := list(islice(remaining, codec.temporal_factor if pieces else 1)):
        fitted = np.stack([fit_picture(frame, height=height, width=width) for frame in piece])
        latents = codec.encode(for_codec(codec, from_bytes(fitted)[None]), cache)
        pieces.append(latents.float().cpu().numpy().copy())
    if not pieces:
        raise GeometryError("No video frames came; a known start has at least one.")
    return torch.from_numpy(np.concatenate(pieces, axis=2))


def fit_picture(
    frame: UInt8[np.ndarray, "tall wide 3"], *, height: int, width: int
) -> UInt8[np.ndarray, "height width 3"]:
    """The largest part around the centre that has the shape of ``width x height``, scaled to it.

    A part that is a whole number of times larger is averaged: a picture that was enlarged comes back as it was.
    """
    tall, wide, _ = frame.shape
    if (tall, wide) == (height, width):
        return frame
    times = min(tall / height, wide / width)
    # Rounding must not lead out of the picture.
    left, top = max(0.0, (wide - width * times) / 2), max(0.0, (tall - height * times) / 2)
    box = (left, top, min(float(wide), left + width * times), min(float(tall), top + height * times))
    whole = times >= 2 and all(edge == round(edge) for edge in (times, left, top))
    how = Image.Resampling.BOX if whole else Image.Resampling.LANCZOS
    return np.array(Image.fromarray(frame).resize((width, height), how, box=box))


def whole_blocks(
    video_frames: int, *, temporal_factor: int, block_frames: int, first_block_frames: int | None = None
) -> int:
    """The most latent frames in whole blocks that so many video frames fill.

    >>> whole_blocks(85, temporal_factor=4, block_frames=3)
    21

    Raises:
        GeometryError: fewer video frames than the first block.
    """
    first = block_frames if first_block_frames is None else first_block_frames
    filled = 1 + (video_frames - 1) // temporal_factor if video_frames else 0
    if filled < first:
        raise GeometryError(
            f"The video has {video_frames} video frames at the model's rate, and its first block takes "
            f"{video_frames_of(0, first, temporal_factor)}; give a longer video."
        )
    return first + (filled - first) // block_frames * block_frames


def require_block_of_one(pipe: ARL2Pipeline) -> None:
    """Raise ``GeometryError`` unless an image can be the first block of this model's videos."""
    first = pipe.settings.first_block_frames or pipe.block_frames
    if first != 1:
        raise GeometryError(
            f"An image is one latent frame, but this model's first block has {first}, so it cannot start from one. "
            "Framewise models can (blocks of 1 frame), and models with a first block of 1 (independent_first_frame)."
        )


def check_not_source(output: Path, source: Path | None) -> None:
    """Raise ``VideoFileError`` for an output that would overwrite what the video starts with."""
    if source is not None and source.exists() and output.exists() and output.samefile(source):
        raise VideoFileError(f"'{output}' is what the video starts with; choose another name for the output.")
