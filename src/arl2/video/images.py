"""One reader for every picture file: conditioning images, PNGs of a folder, pages of an animation."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from arl2.files.regular import first_line, is_folder, require_regular
from arl2.video.formats import VideoFileError
from arl2.video.pixels import Frame

# A picture larger than this is refused before it is decoded: a small file can claim any size.
MAX_SIDE = 8192
_LARGEST = 1_000_000_000  # bytes of a picture or an animation: some of Pillow's readers take the file as a whole


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
    if require_file(path, "image") > _LARGEST:
        raise VideoFileError(f"'{path}' is no image: it has more than {_LARGEST // 1_000_000:,} MB.")
    try:
        with Image.open(path) as image:
            require_size(path, image.width, image.height)
            if image.format == "PNG":
                with Image.open(path) as other:
                    other.verify()  # the checksums of all chunks, which decoding passes over
            yield image
    except VideoFileError:
        raise
    except Exception as error:  # a damaged file leads Pillow to almost any of them
        raise VideoFileError(
            f"'{path}' cannot be read as an image ({first_line(error)}); give a .png, .jpg or .webp."
        ) from error


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


def require_file(path: Path, what: str) -> int:
    """The bytes of a regular file; ``VideoFileError`` for anything else: a pipe would be waited for without end."""
    if is_folder(path):
        raise VideoFileError(f"There is no {what} '{path}': it is a folder.")
    return require_regular(path, error=VideoFileError)


def require_size(path: Path, width: int, height: int) -> None:
    """Raise ``VideoFileError`` for a picture that claims more than ``MAX_SIDE`` pixels a side, or none."""
    if not (0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE):
        raise VideoFileError(f"'{path}' claims {width} x {height} pixels; at most {MAX_SIDE} a side are accepted.")
