"""Pictures of a finished video: its first frame, and a sheet of frames from its start to its end."""

import io
import math
from pathlib import Path

from PIL import Image

from arl2.files.atomic import write_atomically
from arl2.serving.videos.shelf import SPRITESHEET, THUMBNAIL
from arl2.video.formats import writing_failed
from arl2.video.reading import iterate_video

_MOST_FRAMES, _SIDE = 25, 192  # of the sheet; pixels of its frames at most


def write_pictures(video: Path, frames: int) -> None:
    """``thumbnail.webp`` and ``spritesheet.jpg`` beside a video; the same video gives the same pictures.

    Args:
        video: the file.
        frames: that it has.

    Raises:
        VideoFileError: the video cannot be read, or the system refuses to write.
    """
    count = min(_MOST_FRAMES, frames)
    wanted = {number * (frames - 1) // max(1, count - 1) for number in range(count)}
    shown: list[Image.Image] = []
    first: Image.Image | None = None
    for index, frame in enumerate(iterate_video(video)):
        if index == 0:
            first = Image.fromarray(frame)
        if index in wanted:
            small = Image.fromarray(frame)
            small.thumbnail((_SIDE, _SIDE))
            shown.append(small)
    assert first is not None
    _write(video.with_name(THUMBNAIL), first, "WEBP")
    columns = math.ceil(math.sqrt(len(shown)))
    width, height = shown[0].size
    sheet = Image.new("RGB", (columns * width, math.ceil(len(shown) / columns) * height))
    for index, picture in enumerate(shown):
        sheet.paste(picture, (index % columns * width, index // columns * height))
    _write(video.with_name(SPRITESHEET), sheet, "JPEG")


def _write(path: Path, picture: Image.Image, kind: str) -> None:
    data = io.BytesIO()
    picture.save(data, format=kind, quality=90)
    try:
        write_atomically(path, data.getvalue())
    except OSError as error:
        raise writing_failed(path, error) from error
