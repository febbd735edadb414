"""Conditioning frames: an image or video file that a video starts with, as latents for ``known=`` of the pipeline.

A model continues in whole blocks. An image is one latent frame, so it needs a first block of one; of a video, the
oldest frames are left out so that the rest fills whole blocks.
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
from arl2.files.regular import naming
from arl2.geometry import video_frames_of
from arl2.streams.components import VideoModel, for_codec
from arl2.video.codec import VideoCodec
from arl2.video.formats import VideoFileError
from arl2.video.images import frame_of, read_image
from arl2.video.pixels import Frame, from_bytes
from arl2.video.reading import clip_frames, count_clip_frames

FrameLatents = Float[Tensor, "1 channels 1 latent_height latent_width"]
ClipLatents = Float[Tensor, "1 channels latent_frames latent_height latent_width"]


@dataclass(frozen=True)
class VideoPrefix:
    """Conditioning latents that a video starts with.

    Attributes:
        latents: ``[1, C, F, h, w]``, whole blocks.
        video_frames: video frames they decode to.
        left_out: number of the file's oldest video frames that are left out, as they do not fill a block.
        source: the video file that they come from, if any.
    """

    latents: ClipLatents
    video_frames: int
    left_out: int
    source: Path | None = None


def image_prefix(model: VideoModel, path: Path) -> VideoPrefix:
    """An image file as the first latent frame, at the model's height and width.

    Raises:
        Arl2Error: not an image.
        GeometryError: the model's first block has more than one latent frame.
    """
    require_block_of_one(model)
    settings = model.settings
    with naming(path):
        latents = image_latents(model.codec, read_image(path), height=settings.height, width=settings.width)
    return VideoPrefix(latents, 1, 0)


def video_prefix(model: VideoModel, path: Path) -> VideoPrefix:
    """A video file as latents in whole blocks, at the model's height, width and frame rate.

    The file is decoded twice, first to count its frames, since frames are left out at its start. Only the latents grow
    with its length.

    Raises:
        VideoFileError: no video, or a broken one.
        GeometryError: a video shorter than a block.
    """
    settings = model.settings
    kept, found = prefix_frames(model, path)
    frames = islice(clip_frames(path, fps=settings.fps), found - kept, None)
    latents = video_latents(model.codec, frames, height=settings.height, width=settings.width)
    return VideoPrefix(latents, kept, found - kept, path)


def prefix_frames(model: VideoModel, path: Path, *, most: int | None = None) -> tuple[int, int]:
    """How many video frames of a file a video would start with, and how many the file has at the model's rate.

    Raises:
        VideoFileError, GeometryError: as ``video_prefix``; more than ``most`` frames.
    """
    found = count_clip_frames(path, fps=model.settings.fps, most=most)
    with naming(path):
        whole = whole_blocks(
            found,
            temporal_factor=model.codec.temporal_factor,
            block_frames=model.block_frames,
            first_block_frames=model.settings.first_block_frames,
        )
    return video_frames_of(0, whole, model.codec.temporal_factor), found


def frames_in_all(model: VideoModel, known: VideoPrefix | None) -> int:
    """The default length in video frames: the model's own, on top of the conditioning video's if there is one."""
    if known is None:
        return model.settings.num_frames
    return model.plan_frames(known.video_frames + model.settings.num_frames).video_frames


def image_latents(codec: VideoCodec, image: Image.Image, *, height: int, width: int) -> FrameLatents:
    """Encode an image as the first latent frame of a stream.

    Args:
        codec: of the model.
        image: of any size and mode; cropped around its centre and resized.
        height, width: in pixels.
    """
    return video_latents(codec, [frame_of(image, Path("the image"))], height=height, width=width)


@torch.no_grad()
def video_latents(codec: VideoCodec, frames: Iterable[Frame], *, height: int, width: int) -> ClipLatents:
    """Encode video frames from the start of a stream, a latent frame at a time, in memory that does not grow.

    Args:
        codec: of the model.
        frames: RGB bytes of any sizes, ``1 + temporal_factor * n`` of them; cropped around the centre and resized.
        height, width: in pixels.

    Returns:
        Latents in float32 on the CPU, ``[1, C, 1 + n, h, w]``.

    Raises:
        GeometryError: no frames, or a number that ends inside a latent frame.
    """
    cache = codec.new_cache("encoder")
    # As arrays: small tensors kept between large temporary ones would fragment their memory.
    encoded: list[np.ndarray] = []
    remaining = iter(frames)
    while group := list(islice(remaining, codec.temporal_factor if encoded else 1)):
        fitted = np.stack([fit_picture(frame, height=height, width=width) for frame in group])
        latents = codec.encode(for_codec(codec, from_bytes(fitted)[None]), cache)
        encoded.append(latents.float().cpu().numpy().copy())
    if not encoded:
        raise GeometryError("No video frames to encode; give at least one.")
    return torch.from_numpy(np.concatenate(encoded, axis=2))


def fit_picture(
    frame: UInt8[np.ndarray, "tall wide 3"], *, height: int, width: int
) -> UInt8[np.ndarray, "height width 3"]:
    """The largest centre crop with the aspect ratio of ``width x height``, scaled to it.

    A crop that is an integer factor larger is averaged, so an enlarged video frame comes back exactly.
    """
    tall, wide, _ = frame.shape
    if (tall, wide) == (height, width):
        return frame
    times = min(tall / height, wide / width)
    # Rounding must not lead out of the frame.
    left, top = max(0.0, (wide - width * times) / 2), max(0.0, (tall - height * times) / 2)
    box = (left, top, min(float(wide), left + width * times), min(float(tall), top + height * times))
    whole = times >= 2 and all(edge == round(edge) for edge in (times, left, top))
    how = Image.Resampling.BOX if whole else Image.Resampling.LANCZOS
    return np.array(Image.fromarray(frame).resize((width, height), how, box=box))


def whole_blocks(
    video_frames: int, *, temporal_factor: int, block_frames: int, first_block_frames: int | None = None
) -> int:
    """The most latent frames in whole blocks that ``video_frames`` fill.

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


def require_block_of_one(model: VideoModel) -> None:
    """Raise ``GeometryError`` unless an image can be the first block of this model's videos."""
    first = model.settings.first_block_frames or model.block_frames
    if first != 1:
        raise GeometryError(
            f"An image is one latent frame, but this model's first block has {first}, so it cannot start from one. "
            "Framewise models can (blocks of 1 frame), and models with a first block of 1 (independent_first_frame)."
        )


def check_not_source(output: Path, source: Path | None) -> None:
    """Raise ``VideoFileError`` for an output that would overwrite the conditioning file."""
    if source is not None and source.exists() and output.exists() and output.samefile(source):
        raise VideoFileError(f"'{output}' is what the video starts with; choose another name for the output.")
