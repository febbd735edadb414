"""Plots as SVG text for a page: intervals beside each other, and curves. No library, no script."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

COLOURS = ("#1d4ed8", "#c2410c", "#15803d", "#a21caf", "#0e7490", "#b45309", "#be123c", "#475569")
_INK, _PALE, _GRID = "#0f172a", "#64748b", "#e2e8f0"
_ROW, _LEFT, _PLOT, _RIGHT = 22, 140, 250, 190


@dataclass(frozen=True)
class Bar:
    """A mean with its interval; None where there is none."""

    label: str
    mean: float
    low: float | None
    high: float | None
    colour: str


@dataclass(frozen=True)
class Line:
    """A curve: (x, mean, low, high), low and high None where there is no interval."""

    label: str
    points: Sequence[tuple[float, float, float | None, float | None]]
    colour: str


def colour_of(number: int) -> str:
    """Of a subject, by its number."""
    return COLOURS[number % len(COLOURS)]


def forest(bars: Sequence[Bar], *, title: str, zero: bool = False) -> str:
    """Means and intervals, a row each.

    Args:
        bars: from top to bottom.
        title: what is shown, for readers of screens.
        zero: the axis holds 0, and a line marks it.
    """
    ends = [value for bar in bars for value in (bar.mean, bar.low, bar.high) if value is not None]
    low, high = _range([*ends, 0.0] if zero else ends)
    height = len(bars) * _ROW + 26

    def at(value: float) -> float:
        return _LEFT + _PLOT * (value - low) / (high - low)

    parts = []
    for mark in _marks(low, high):
        parts.append(f'<line x1="{at(mark):.1f}" x2="{at(mark):.1f}" y1="4" y2="{height - 20}" stroke="{_GRID}"/>')
        parts.append(_text(at(mark), height - 6, f"{mark:g}", _PALE, "middle"))
    if zero:
        parts.append(f'<line x1="{at(0):.1f}" x2="{at(0):.1f}" y1="4" y2="{height - 20}" stroke="{_INK}"/>')
    for row, bar in enumerate(bars):
        y = 4 + row * _ROW + _ROW / 2
        parts.append(_text(_LEFT - 10, y + 4, _cut(bar.label), _INK, "end"))
        if bar.low is not None and bar.high is not None:
            parts.append(
                f'<line x1="{at(bar.low):.1f}" x2="{at(bar.high):.1f}" y1="{y:.1f}" y2="{y:.1f}" '
                f'stroke="{bar.colour}" stroke-width="3" stroke-opacity="0.45"/>'
            )
        parts.append(f'<circle cx="{at(bar.mean):.1f}" cy="{y:.1f}" r="5" fill="{bar.colour}"/>')
        told = f"{bar.mean:.4g}"
        if bar.low is not None and bar.high is not None:
            told += f" ({bar.low:.3g} to {bar.high:.3g})"
        parts.append(_text(_LEFT + _PLOT + 10, y + 4, told, _PALE, "start"))
    return _svg(_LEFT + _PLOT + _RIGHT, height, title, parts)


def curves(lines: Sequence[Line], *, title: str, across: str) -> str:
    """Curves over one axis, with their intervals as bands and their labels below."""
    width, tall, left, top = 580, 220, 56, 12
    xs = [point[0] for line in lines for point in line.points]
    ys = [value for line in lines for point in line.points for value in point[1:] if value is not None]
    (first, last), (low, high) = _range(xs, spare=0.0), _range([*ys, 0.0])

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            left + (width - left - 20) * (x - first) / (last - first),
            top + tall * (1 - (y - low) / (high - low)),
        )

    parts = []
    for mark in _marks(low, high):
        _, y = place(first, mark)
        parts.append(f'<line x1="{left}" x2="{width - 20}" y1="{y:.1f}" y2="{y:.1f}" stroke="{_GRID}"/>')
        parts.append(_text(left - 6, y + 4, f"{mark:g}", _PALE, "end"))
    for number in sorted(set(xs)):
        x, _ = place(number, low)
        parts.append(_text(x, top + tall + 16, f"{number:g}", _PALE, "middle"))
    parts.append(_text(left + (width - left - 20) / 2, top + tall + 34, across, _PALE, "middle"))
    for line in lines:
        band = [(x, a, b) for x, _, a, b in line.points if a is not None and b is not None]
        if len(band) > 1:
            edge = [place(x, b) for x, _, b in band] + [place(x, a) for x, a, _ in reversed(band)]
            parts.append(f'<polygon points="{_points(edge)}" fill="{line.colour}" fill-opacity="0.12"/>')
        dots = [place(x, mean) for x, mean, _, _ in line.points]
        if len(dots) > 1:
            parts.append(f'<polyline points="{_points(dots)}" fill="none" stroke="{line.colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{line.colour}"/>' for x, y in dots]
    below = top + tall + 52
    for row, line in enumerate(lines):
        y = below + row * 18
        parts.append(f'<line x1="{left}" x2="{left + 24}" y1="{y}" y2="{y}" stroke="{line.colour}" stroke-width="3"/>')
        parts.append(_text(left + 32, y + 4, line.label, _INK, "start"))
    return _svg(width, below + len(lines) * 18, title, parts)


def _svg(width: float, height: float, title: str, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}" role="img" '
        f'aria-label="{escape(title, quote=True)}">{"".join(parts)}</svg>'
    )


def _text(x: float, y: float, said: str, colour: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="{colour}" text-anchor="{anchor}">{escape(said)}</text>'


def _cut(label: str) -> str:
    return label if len(label) <= 19 else f"{label[:9]}…{label[-9:]}"


def _points(places: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in places)


def _range(values: Sequence[float], spare: float = 0.05) -> tuple[float, float]:
    low, high = min(values), max(values)
    if high - low < 1e-9 * max(1.0, abs(high)):
        return low - 0.5 * max(1e-6, abs(low)), high + 0.5 * max(1e-6, abs(high))
    return low - spare * (high - low), high + spare * (high - low)


def _marks(low: float, high: float) -> list[float]:
    """Some four round numbers from ``low`` to ``high``."""
    rough = (high - low) / 4
    size = 10 ** math.floor(math.log10(rough))
    step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= rough)
    first = math.ceil(low / step)
    return [round((first + i) * step, 12) for i in range(int((high - first * step) / step) + 1)]
