"""One reader for every picture file: conditioning images, PNGs of a folder, pages of an animation."""

import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from arl2.video.formats import VideoFileError
from arl2.video.pixels import Frame

# A picture larger than this is refused before it is decoded: a small file can claim any size.
MAX_SIDE = 8192
# What Pillow raises for a damaged file.
_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)


def read_image(path: Path) -> Image.Image:
    """An image file, upright, in 8-bit RGB; what is transparent becomes white, 16 bits are scaled.

    Raises:
        VideoFileError: no such file, not an image, a broken one, pixels that have no fixed range, or more than
            ``MAX_SIDE`` pixels a side.
    """
    with opened_image(path) as image:
        return rgb_of(ImageOps.exif_transpose(image), path)


@contextmanager
def opened_image(path: Path) -> Iterator[Image.Image]:
    """A picture file, its size checked and nothing decoded yet; damage that is met inside becomes a sentence."""
    require_file(path, "image")
    try:
        with Image.open(path) as image:
            require_size(path, image.width, image.height)
            yield image
    except VideoFileError:
        raise
    except _DAMAGED as error:
        raise VideoFileError(f"'{path}' cannot be read as an image ({error}); give a .png, .jpg or .webp.") from error


def rgb_of(image: Image.Image, path: Path) -> Image.Image:
    """A picture in 8-bit RGB, over white; ``path`` is for the message if its pixels have no fixed range."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        return Image.fromarray(np.rint(np.asarray(image) / 257).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise VideoFileError(
            f"'{path}' has 32-bit pixels (mode {image.mode}) without a fixed range; save it with 8 or 16 bits."
        )
    if "A" not in image.getbands() and "transparency" not in image.info:
        return image.convert("RGB")
    layer = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")


def frame_of(image: Image.Image, path: Path) -> Frame:
    """``rgb_of`` as an array."""
    return np.array(rgb_of(image, path))


def require_file(path: Path, what: str) -> None:
    """Raise ``VideoFileError`` unless ``path`` is a regular file: a named pipe would be waited for without end."""
    if not path.exists() or path.is_dir():
        raise VideoFileError(f"There is no {what} '{path}'.")
    if not path.is_file():
        raise VideoFileError(f"'{path}' is not a file; give a regular file, not a pipe or a device.")


def require_size(path: Path, width: int, height: int) -> None:
    """Raise ``VideoFileError`` for a picture that claims more than ``MAX_SIDE`` pixels a side, or none."""
    if not (0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE):
        raise VideoFileError(f"'{path}' claims {width} x {height} pixels; at most {MAX_SIDE} a side are accepted.")
