"""Plots as SVG, written by hand: bars of ratios with their floors and aims, and lines over a logarithmic axis."""

from __future__ import annotations

import math
from html import escape

FONT = 'font-family="sans-serif" font-size="12"'
COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd")


def _svg(width: int, height: int, parts: list[str]) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" {FONT}>'
    return "\n".join([head, f'<rect width="{width}" height="{height}" fill="white"/>', *parts, "</svg>", ""])


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, width: float = 1) -> str:
    return f'<path d="M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}" stroke="{colour}" stroke-width="{width}"/>'


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def bars(rows: list[tuple[str, float, float | None, float | None]]) -> str:
    """Return bars of (name, ratio, floor, aim): a black mark is the floor, a green one the aim, the grey line 1."""
    left, wide, tall = 340, 420, 24
    most = max([value for row in rows for value in row[1:] if value] + [1.0]) * 1.1
    parts = []
    for index, (name, ratio, floor, aim) in enumerate(rows):
        y = 10 + index * tall
        colour = "#1f77b4" if floor is None or ratio >= floor else "#d62728"
        parts.append(_text(left - 8, y + 14, name, "end"))
        parts.append(f'<rect x="{left}" y="{y}" width="{wide * ratio / most:.1f}" height="16" fill="{colour}"/>')
        for mark, paint in ((floor, "black"), (aim, "#2ca02c")):
            if mark:
                parts.append(_line(left + wide * mark / most, y - 3, left + wide * mark / most, y + 19, paint, 2))
        parts.append(_text(left + wide * ratio / most + 6, y + 13, f"{ratio:.2f}"))
    bottom = 10 + len(rows) * tall
    return _svg(
        left + wide + 60, bottom + 10, [_line(left + wide / most, 4, left + wide / most, bottom, "#999"), *parts]
    )


def lines(title: str, series: dict[str, list[tuple[float, float]]]) -> str:
    """Return lines through (x, y) with x on a logarithmic axis and y from zero."""
    left, top, wide, tall = 60, 30, 480, 220
    points = [point for line in series.values() for point in line]
    low, high = (math.log2(pick(x for x, _ in points)) for pick in (min, max))
    most = max(y for _, y in points) * 1.1 or 1.0

    def place(x: float, y: float) -> tuple[float, float]:
        return left + wide * (math.log2(x) - low) / max(high - low, 1e-9), top + tall * (1 - y / most)

    parts = [_text(left, 18, title), _line(left, top + tall, left + wide, top + tall, "black")]
    for x in sorted({x for x, _ in points}):
        parts.append(_text(place(x, 0)[0], top + tall + 16, f"{x:g}", "middle"))
    for step in range(5):
        parts.append(_text(left - 6, top + tall * (1 - step / 4) + 4, f"{most * step / 4:.3g}", "end"))
    for (name, line), colour in zip(series.items(), COLOURS, strict=False):
        path = "L".join("{:.1f} {:.1f}".format(*place(x, y)) for x, y in line)
        parts.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        x, y = place(*line[-1])
        parts.append(_text(x + 6, y + 4, name))
    return _svg(left + wide + 120, top + tall + 30, parts)
