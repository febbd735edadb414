"""A finished video as HTML that needs no file beside it, for notebooks."""

import base64
import io
import tempfile
from pathlib import Path

from PIL import Image

from arl2.errors import GeometryError
from arl2.video.saving import Frames, frames_as_bytes, save_video

# Notebooks keep what they show: a large one is slow to open and to save.
LARGEST = 8_000_000  # bytes of the mp4
_MOST_PIXELS = 400_000_000  # of all frames; beyond it the mp4 is not even made
_SHOWN_SIDE = 256  # pixels; smaller videos are enlarged


def video_html(frames: Frames, *, fps: int) -> str:
    """A ``<video>`` with the mp4 inside; of a large video its first frame, and how to save it.

    Args:
        frames: as ``arl2.save_video`` takes them.
        fps: video frames per second.

    Raises:
        GeometryError: as for ``arl2.save_video``.
    """
    count, shape = len(frames), _size(frames)
    if count * shape[0] * shape[1] <= _MOST_PIXELS:
        data = _mp4(frames, fps)
        if data is not None and len(data) <= LARGEST:
            encoded = base64.b64encode(data).decode()
            return f'<video controls loop muted autoplay src="data:video/mp4;base64,{encoded}"></video>'
        why = "cannot be an mp4" if data is None else f"{len(data) / 1e6:.0f} MB"
    else:
        why = "too large to show"
    first = io.BytesIO()
    Image.fromarray(frames_as_bytes(frames[:1])[0]).save(first, format="PNG")
    picture = base64.b64encode(first.getvalue()).decode()
    return (
        f'<figure><img src="data:image/png;base64,{picture}"><figcaption>The first of {count} video frames ({why}); '
        'write the video with <code>.save("video.mp4")</code>.</figcaption></figure>'
    )


def _size(frames: Frames) -> tuple[int, int]:
    first = frames_as_bytes(frames[:1])
    return first.shape[1], first.shape[2]


def _mp4(frames: Frames, fps: int) -> bytes | None:
    """The bytes of the file; None for sizes that H.264 does not take."""
    scale = max(1, _SHOWN_SIDE // max(_size(frames)))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "video.mp4"
        try:
            save_video(frames, path, fps=fps, scale=scale)
        except GeometryError:
            if any(side * scale % 2 for side in _size(frames)):
                return None
            raise
        return path.read_bytes()
