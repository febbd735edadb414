"""Shares over some numbers, a line for each of a few models, as a PNG. Pillow draws it, as it does bars."""

from collections.abc import Mapping
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from arl2.errors import ConfigError
from arl2.shapes.evaluator.scoring import Share

_WIDTH, _HEIGHT, _EDGE, _KEY, _LINE = 560, 320, 56, 18, 16
_COLOURS = (
    "#0f172a",
    "#c2410c",
    "#15803d",
    "#1d4ed8",
    "#a21caf",
    "#b45309",
    "#0e7490",
    "#64748b",
    "#be123c",
    "#4d7c0f",
    "#facc15",
    "#94a3b8",
)


def line_chart(lines: Mapping[str, Mapping[int, Share]], *, title: str, across: str, path: Path | str) -> Image.Image:
    """A line a label through its shares, each with its Wilson 95 % interval; numbers are spaced as they are.

    Args:
        lines: by label: share by number. Shares of nothing are left out, and so are lines that have no other.
        title: above all.
        across: what the numbers are, below them.
        path: of the PNG.

    Raises:
        ConfigError: no line to draw.
    """
    known = {label: {x: y for x, y in sorted(line.items()) if y.of} for label, line in lines.items()}
    known = {label: line for label, line in known.items() if line}
    if not known:
        raise ConfigError("A chart needs one line or more, with a share that is known.")
    numbers = sorted({x for line in known.values() for x in line})
    first, spread = numbers[0], max(numbers[-1] - numbers[0], 1)
    font = ImageFont.load_default(12)
    chart = Image.new("RGB", (_WIDTH + 2 * _EDGE, _HEIGHT + 2 * _EDGE + _LINE * len(known) + _KEY), "white")
    draw = ImageDraw.Draw(chart)

    def place(x: int, y: float) -> tuple[float, float]:
        return _EDGE + 12 + (_WIDTH - 24) * (x - first) / spread, _EDGE + _HEIGHT * (1 - y)

    draw.text((_EDGE, 10), title, fill="black", font=font)
    draw.text((_EDGE, 30), "share", fill="#475569", font=font)
    for tenth in range(0, 11, 2):
        _, y = place(first, tenth / 10)
        draw.line((_EDGE, y, _EDGE + _WIDTH, y), fill="#e2e8f0")
        draw.text((_EDGE - 6, y), f"{tenth * 10} %", fill="#475569", font=font, anchor="rm")
    for number in numbers:
        x, y = place(number, 0)
        draw.text((x, y + 6), str(number), fill="#475569", font=font, anchor="mt")
    draw.text((_EDGE + _WIDTH / 2, _EDGE + _HEIGHT + 24), across, fill="#475569", font=font, anchor="mt")
    for order, (label, line) in enumerate(known.items()):
        colour = _COLOURS[order % len(_COLOURS)]
        # A little apart, so that intervals at one number do not hide each other.
        aside = 2 * (order - (len(known) - 1) / 2)
        points = [(x + aside, y) for x, y in (place(number, share.value) for number, share in line.items())]
        if len(points) > 1:
            draw.line(points, fill=colour, width=2)
        for (x, y), (number, share) in zip(points, line.items(), strict=True):
            low, high = (place(number, end)[1] for end in share.interval)
            draw.line((x, low, x, high), fill=colour)
            draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=colour)
        y = _HEIGHT + 2 * _EDGE + _LINE * order + 4
        draw.line((_EDGE, y, _EDGE + 24, y), fill=colour, width=3)
        draw.text((_EDGE + 32, y), label, fill="black", font=font, anchor="lm")
    chart.save(path, format="PNG")
    return chart
