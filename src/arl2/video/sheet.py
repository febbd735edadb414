"""Contact sheets: several clips in one image, a row each, time from left to right."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from arl2.errors import GeometryError
from arl2.files.atomic import atomic_file
from arl2.video.formats import VideoFileError
from arl2.video.pixels import Frames, enlarge

# No axis has a name: rows may differ in size and length.
LabelledClip = tuple[str, UInt8[np.ndarray, "_ _ _ 3"]]

_GAP = 3
_FONT_SIZE = 13


def contact_sheet(
    clips: Sequence[LabelledClip], *, every: int = 8, scale: int = 1, path: Path | str | None = None
) -> Image.Image:
    """One row a clip with its label above; shows video frames 0, ``every``, 2 ``every``, ...

    Args:
        clips: label and RGB frames; sizes and lengths may differ from row to row.
        every: which video frames are shown.
        scale: whole number by which pixels are enlarged.
        path: where to save it as PNG, if given.

    Raises:
        GeometryError: no clips, or a number below 1.
        VideoFileError: the file cannot be written.
    """
    if not clips or every < 1 or scale < 1:
        raise GeometryError(
            f"A contact sheet needs clips and whole numbers from 1; got {len(clips)} clips, every={every} and "
            f"scale={scale}."
        )
    rows = [_row(label, enlarge(frames[::every], scale)) for label, frames in clips]
    sheet = Image.new("RGB", (max(row.width for row in rows), sum(row.height for row in rows)), "white")
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height
    if path is not None:
        try:
            with atomic_file(Path(path)) as part:
                sheet.save(part, format="PNG")
        except OSError as error:
            raise VideoFileError(f"The contact sheet could not be written to '{path}' ({error.strerror}).") from error
    return sheet


def _row(label: str, frames: Frames) -> Image.Image:
    count, height, width, _ = frames.shape
    font = ImageFont.load_default(_FONT_SIZE)
    wide = count * (width + _GAP) + _GAP
    lines = _wrapped(label, font, wide - 2 * _GAP)
    top = len(lines) * (_FONT_SIZE + 3) + _GAP
    row = Image.new("RGB", (wide, top + height + _GAP), "white")
    draw = ImageDraw.Draw(row)
    for number, line in enumerate(lines):
        draw.text((_GAP, 1 + number * (_FONT_SIZE + 3)), line, fill="black", font=font)
    for index, frame in enumerate(frames):
        row.paste(Image.fromarray(frame), (_GAP + index * (width + _GAP), top))
    return row


def _wrapped(text: str, font: "ImageFont.FreeTypeFont | ImageFont.ImageFont", width: int) -> list[str]:
    """Words in lines no wider than ``width`` pixels; a single word may be wider."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines
