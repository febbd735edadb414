"""Lines over numbers, in panels one below the other, as a PNG. Pillow draws it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from arl2.errors import ConfigError

_WIDTH, _HEIGHT, _LEFT, _EDGE, _LINE = 620, 240, 76, 44, 17
_COLOURS = ("#c2410c", "#a21caf", "#1d4ed8", "#15803d", "#0f172a", "#b45309", "#0e7490", "#64748b")
_INK, _PALE, _GRID = "#0f172a", "#475569", "#e2e8f0"


@dataclass(frozen=True)
class Panel:
    """One set of axes.

    Attributes:
        title: what stands up, with its unit.
        lines: by label: height by number.
    """

    title: str
    lines: Mapping[str, Mapping[float, float]]


def draw_chart(panels: list[Panel], *, title: str, across: str, path: Path) -> Image.Image:
    """Draw and write.

    Args:
        panels: each with the same labels.
        title: above all.
        across: what the numbers are, below.
        path: of the PNG.

    Raises:
        ConfigError: nothing to draw.
    """
    labels = list(dict.fromkeys(label for panel in panels for label in panel.lines))
    if not labels:
        raise ConfigError("This part has nothing to draw; leave --plot out.")
    font = ImageFont.load_default(12)
    height = _EDGE + len(panels) * (_HEIGHT + _EDGE) + _LINE * (len(labels) + 1)
    chart = Image.new("RGB", (_WIDTH + _LEFT + _EDGE, height), "white")
    draw = ImageDraw.Draw(chart)
    draw.text((_LEFT, 10), title, fill=_INK, font=font)
    colours = {label: _COLOURS[i % len(_COLOURS)] for i, label in enumerate(labels)}
    for order, panel in enumerate(panels):
        _draw_panel(draw, font, panel, top=_EDGE + order * (_HEIGHT + _EDGE), colours=colours)
    below = _EDGE + len(panels) * (_HEIGHT + _EDGE)
    draw.text((_LEFT + _WIDTH / 2, below - 12), across, fill=_PALE, font=font, anchor="mm")
    for order, label in enumerate(labels):
        y = below + _LINE * order + 8
        draw.line((_LEFT, y, _LEFT + 24, y), fill=colours[label], width=3)
        draw.text((_LEFT + 32, y), label, fill=_INK, font=font, anchor="lm")
    chart.save(path, format="PNG")
    return chart


def _draw_panel(draw: ImageDraw.ImageDraw, font: object, panel: Panel, *, top: int, colours: Mapping[str, str]) -> None:
    points = [(x, y) for line in panel.lines.values() for x, y in line.items()]
    left, right = min(x for x, _ in points), max(x for x, _ in points)
    highest = max(y for _, y in points) or 1.0

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - left) / max(right - left, 1e-9)
        return _LEFT + 10 + (_WIDTH - 20) * across, top + 20 + (_HEIGHT - 20) * (1 - y / highest)

    draw.text((_LEFT, top), panel.title, fill=_PALE, font=font)  # type: ignore[arg-type]
    for mark in _marks(0, highest):
        _, y = place(left, mark)
        draw.line((_LEFT, y, _LEFT + _WIDTH, y), fill=_GRID)
        draw.text((_LEFT - 6, y), f"{mark:g}", fill=_PALE, font=font, anchor="rm")  # type: ignore[arg-type]
    for mark in _marks(left, right):
        x, y = place(mark, 0)
        draw.text((x, y + 5), f"{mark:g}", fill=_PALE, font=font, anchor="mt")  # type: ignore[arg-type]
    for label, line in panel.lines.items():
        placed = [place(x, y) for x, y in sorted(line.items())]
        if len(placed) > 1:
            draw.line(placed, fill=colours[label], width=2)
        for x, y in placed:
            draw.ellipse((x - 2, y - 2, x + 2, y + 2), fill=colours[label])


def _marks(low: float, high: float) -> list[float]:
    """Some five round numbers from ``low`` to ``high``."""
    rough = max(high - low, 1e-9) / 5
    size = 10 ** math.floor(math.log10(rough))
    step = next(size * n for n in (1, 2, 5, 10) if size * n >= rough)
    first = math.ceil(low / step)
    return [round((first + i) * step, 12) for i in range(int((high - first * step) / step) + 1)]
