"""A bar chart as a PNG, by Pillow: a plotting library would be one more dependency."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from arl2.errors import ConfigError
from arl2.files.atomic import atomic_file

_WIDTH, _HEIGHT, _EDGE, _FONT_SIZE = 28, 240, 40, 12
_MARKED, _PLAIN = "#c2410c", "#94a3b8"


def bar_chart(
    bars: Sequence[tuple[str, float]], *, title: str, marked: Sequence[str] = (), path: Path | str
) -> Image.Image:
    """Bars from left to right, each with its label below and its number above.

    Args:
        bars: label and height, 0 or more.
        title: above all.
        marked: labels of highlighted bars.
        path: of the PNG.

    Raises:
        ConfigError: no bars, or a negative one.
    """
    if not bars or min(height for _, height in bars) < 0:
        raise ConfigError("A chart needs one bar or more, none of them negative.")
    font = ImageFont.load_default(_FONT_SIZE)
    wide = max(len(bars) * (_WIDTH + 12) + 2 * _EDGE, round(font.getlength(title)) + 2 * _EDGE)
    chart = Image.new("RGB", (wide, _HEIGHT + 2 * _EDGE), "white")
    draw = ImageDraw.Draw(chart)
    draw.text((_EDGE, 6), title, fill="black", font=font)
    floor, highest = _EDGE + _HEIGHT, max(height for _, height in bars) or 1.0
    for number, (label, height) in enumerate(bars):
        left = _EDGE + number * (_WIDTH + 12)
        top = floor - round((_HEIGHT - 20) * height / highest)
        draw.rectangle((left, top, left + _WIDTH, floor), fill=_MARKED if label in marked else _PLAIN)
        draw.text((left + _WIDTH / 2, top - 3), f"{height:.2g}", fill="black", font=font, anchor="mb")
        draw.text((left + _WIDTH / 2, floor + 4), label, fill="black", font=font, anchor="mt")
    draw.line((_EDGE, floor, wide - _EDGE, floor), fill="black")
    with atomic_file(Path(path)) as part:
        chart.save(part, format="PNG")
    return chart
