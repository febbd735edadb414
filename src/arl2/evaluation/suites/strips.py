"""Filmstrips: a few video frames side by side, as a small JPEG."""

import io

import numpy as np
from PIL import Image

from arl2.video.pixels import Frames

_SHOWN, _HEIGHT, _QUALITY = 8, 72, 72


def filmstrip(frames: Frames) -> bytes:
    """Eight frames from the first to the last, evenly spaced, at most 72 pixels high; equal frames give equal bytes."""
    count, height, width, _ = frames.shape
    chosen = np.unique(np.linspace(0, count - 1, min(_SHOWN, count)).round().astype(int))
    tall = min(height, _HEIGHT)
    wide = max(1, round(width * tall / height))
    strip = Image.new("RGB", (len(chosen) * (wide + 1) - 1, tall), "white")
    for place, index in enumerate(chosen):
        picture = Image.fromarray(frames[index])
        if picture.size != (wide, tall):
            picture = picture.resize((wide, tall), Image.Resampling.BOX)
        strip.paste(picture, (place * (wide + 1), 0))
    written = io.BytesIO()
    strip.save(written, format="JPEG", quality=_QUALITY, optimize=True)
    return written.getvalue()
