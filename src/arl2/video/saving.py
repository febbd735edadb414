"""A finished video to a file, whichever of diffusers' output types it is in."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from arl2.errors import ConfigError, GeometryError
from arl2.files.numbers import whole
from arl2.video.formats import check_writable
from arl2.video.writers import DEFAULT_FPS, open_video

_MAX_FPS = 1000
_LAYOUTS = "an array [frames, height, width, 3] or a tensor [frames, 3, height, width]"
_DECODE = 'Latents are not video frames: decode them with pipe.codec.decode, or use output_type "pil", "np" or "pt".'

Frames = Sequence[Image.Image] | np.ndarray | Tensor


def save_video(
    frames: Frames, path: Path | str, *, fps: int = DEFAULT_FPS, scale: int = 1, overwrite: bool = False
) -> None:
    """Write one video. The file name gives the format: .mp4, .gif, .webp, .y4m, or a new folder of PNGs.

    Args:
        frames: PIL images; an array ``[frames, height, width, 3]``, bytes or floats in [0, 1]; or a tensor
            ``[frames, 3, height, width]`` in [0, 1]. These are one entry of ``pipe(...).frames``.
        path: Where to write.
        fps: Video frames per second, 1 to 1000.
        scale: Enlarges each pixel to a square of this many.
        overwrite: Replace a video that is there. A folder with anything else in it never is.

    Raises:
        ConfigError: an argument of another type, or a number out of range.
        GeometryError: frames of another shape or range, such as latents.
        VideoFileError: an unknown extension, or a place that cannot be written, or where a video is already.
    """
    if not isinstance(path, str | Path) or not str(path):
        raise ConfigError(f"Got path {path!r:.80}; give the name of a file or folder, such as 'video.mp4'.")
    fps, scale = whole("fps", fps, least=1, most=_MAX_FPS), whole("scale", scale, least=1)
    if not isinstance(overwrite, bool):
        raise ConfigError(f"Got overwrite {overwrite!r:.80}; give True or False.")
    pixels = frames_as_bytes(frames)
    check_writable(Path(path), overwrite=overwrite)
    with open_video(path, fps=fps, scale=scale) as writer:
        writer.write(pixels)


def frames_as_bytes(frames: Frames) -> UInt8[np.ndarray, "frames height width 3"]:
    """The frames as bytes; arguments and errors as for ``save_video``."""
    if isinstance(frames, Tensor):
        array = frames.detach().float().cpu().numpy()
        array = np.moveaxis(array, 1, -1) if array.ndim == 4 else array
    else:
        array = frames if isinstance(frames, np.ndarray) else _stacked(frames)
    if array.ndim != 4 or array.shape[-1] != 3 or not len(array):
        raise GeometryError(
            f"Got shape {list(np.shape(array))}; one video is a list of PIL images, {_LAYOUTS}. {_DECODE}"
        )
    if array.dtype == np.uint8:
        return array
    low, high = float(array.min()), float(array.max())
    if not (low >= 0 and high <= 1):
        raise GeometryError(f"Got values from {low:.3g} to {high:.3g}; frames are bytes or floats in [0, 1]. {_DECODE}")
    return (array * 255).round().astype(np.uint8)


def _stacked(images: Sequence[Image.Image]) -> np.ndarray:
    if not isinstance(images, Sequence) or not all(isinstance(image, Image.Image) for image in images):
        raise ConfigError(f"Got frames of type {type(images).__name__}; one video is a list of PIL images, {_LAYOUTS}.")
    if len({image.size for image in images}) > 1:
        raise GeometryError("The images differ in size; all frames of a video have one size.")
    return np.stack([np.asarray(image.convert("RGB")) for image in images]) if images else np.empty((0, 0, 0, 3))
