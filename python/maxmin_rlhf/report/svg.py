"""Figures as inline SVG: no script, no network, colours from the page, so that they are readable in the dark too.

Drawn 380 units wide, which is a phone: a wide screen enlarges them, nothing is made smaller than that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from maxmin_rlhf.report.html import escape

WIDTH = 380
_LETTER = 5.7  # mean width of a letter at the size of the labels


@dataclass(frozen=True)
class Point:
    """A value with its interval; without one: ``low`` and ``high`` None."""

    value: float
    low: float | None = None
    high: float | None = None

    @property
    def ends(self) -> tuple[float, float]:
        low = self.value if self.low is None else self.low
        high = self.value if self.high is None else self.high
        return low, high


@dataclass(frozen=True)
class Series:
    """A line of points, one a category; ``colour`` is one of the page's, 0 to 5, or "grey". Dashed ones are hollow."""

    name: str
    points: Sequence[Point]
    colour: int | str
    dashed: bool = False


def lines(categories: Sequence[str], series: Sequence[Series], x_label: str, y_label: str) -> str:
    """Values against categories, with intervals."""
    left, right, top, bottom = 44, 10, 12, 42
    height = 240
    low, high, ticks = _scale([e for s in series for p in s.points for e in p.ends] + [0.0])
    step = (WIDTH - left - right) / max(1, len(categories))

    def x(i: float) -> float:
        return left + step * (i + 0.5)

    def y(value: float) -> float:
        return top + (height - top - bottom) * (high - value) / (high - low)

    parts = [_grid_y(ticks, y, left, WIDTH - right)]
    for i, name in enumerate(categories):
        parts.append(_text(x(i), height - bottom + 16, name, "middle"))
    parts.append(_text(left + (WIDTH - left - right) / 2, height - 6, x_label, "middle", "muted"))
    for j, one in enumerate(series):
        # Side by side, so that intervals do not hide each other.
        shift = (j - (len(series) - 1) / 2) * min(7.0, step / (len(series) + 1))
        at = [(x(i) + shift, p) for i, p in enumerate(one.points)]
        way = " ".join(f"{px:.1f},{y(p.value):.1f}" for px, p in at)
        kind = f"c{one.colour}" + (" dashed" if one.dashed else "")
        parts.append(f'<polyline class="line {kind}" points="{way}"/>')
        parts += [_mark(px, y(p.value), y(p.ends[0]), y(p.ends[1]), kind, p) for px, p in at]
    return _svg(height, y_label + " against " + x_label, parts)


def forest(rows: Sequence[tuple[str, Sequence[tuple[Point, int | str]]]], label: str, zero: bool = True) -> str:  # fmt: skip
    """Points with intervals, a row each, several marks a row."""
    marks = max(len(points) for _, points in rows)
    left = min(150, 12 + _LETTER * max(len(name) for name, _ in rows))
    right, top, bottom = 12, 6, 38
    row = 12 + 13 * marks
    height = top + row * len(rows) + bottom
    ends = [e for _, points in rows for p, _ in points for e in p.ends]
    low, high, ticks = _scale(ends + ([0.0] if zero else []))

    def x(value: float) -> float:
        return left + (WIDTH - left - right) * (value - low) / (high - low)

    parts = []
    for tick in ticks:
        kind = "axis" if tick == 0 else "grid"
        parts.append(
            f'<line class="{kind}" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{top}" y2="{height - bottom}"/>'
        )
        parts.append(_text(x(tick), height - bottom + 14, _number(tick), "middle", "muted"))
    for i, (name, points) in enumerate(rows):
        middle = top + row * (i + 0.5)
        parts.append(_text(left - 8, middle + 4, _cut(name, left), "end"))
        for j, (p, colour) in enumerate(points):
            at = middle + 13 * (j - (len(points) - 1) / 2)
            parts.append(
                f'<line class="whisker c{colour}" x1="{x(p.ends[0]):.1f}" x2="{x(p.ends[1]):.1f}" y1="{at:.1f}" y2="{at:.1f}"/>'
                f'<circle class="dot c{colour}" cx="{x(p.value):.1f}" cy="{at:.1f}" r="4"><title>{_said(p)}</title></circle>'
            )
    parts.append(_text(left + (WIDTH - left - right) / 2, height - 6, label, "middle", "muted"))
    return _svg(height, label, parts)


def bars(rows: Sequence[tuple[str, float, str, int | str]], label: str) -> str:
    """Horizontal bars from 0 to 1: name, value, what is written at its end, colour."""
    left = min(150, 12 + _LETTER * max(len(name) for name, *_ in rows))
    right, top, row = 92, 4, 26
    height = top + row * len(rows) + 6
    parts = []
    for i, (name, value, said, colour) in enumerate(rows):
        at = top + row * i
        width = (WIDTH - left - right) * min(max(value, 0.0), 1.0)
        parts.append(_text(left - 8, at + 17, _cut(name, left), "end"))
        parts.append(
            f'<rect class="bar c{colour}" x="{left:.1f}" y="{at + 4}" width="{max(width, 1):.1f}" height="18" rx="2"/>'
        )
        parts.append(_text(left + width + 6, at + 17, said))
    return _svg(height, label, parts)


def histogram(edges: Sequence[str], counts: Sequence[int], x_label: str) -> str:
    """Counts in bins, ``edges`` being one more than the bins."""
    left, right, top, bottom, height = 10, 10, 20, 38, 180
    most = max(1, *counts)
    step = (WIDTH - left - right) / len(counts)
    parts = []
    for i, count in enumerate(counts):
        tall = (height - top - bottom) * count / most
        parts.append(
            f'<rect class="bar c0" x="{left + step * i + 1:.1f}" y="{height - bottom - tall:.1f}" '
            f'width="{step - 2:.1f}" height="{tall:.1f}"/>'
        )
        if count:
            parts.append(
                _text(left + step * (i + 0.5), height - bottom - tall - 4, str(count), "middle")
            )
    parts.append(
        f'<line class="axis" x1="{left}" x2="{WIDTH - right}" y1="{height - bottom}" y2="{height - bottom}"/>'
    )
    for i, edge in enumerate(edges):
        anchor = "start" if i == 0 else "end" if i == len(edges) - 1 else "middle"
        parts.append(_text(left + step * i, height - bottom + 14, edge, anchor, "muted"))
    parts.append(_text(WIDTH / 2, height - 6, x_label, "middle", "muted"))
    return _svg(height, x_label, parts)


# ---- pieces


def _svg(height: float, title: str, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(title)}">'
        + "".join(parts)
        + "</svg>"
    )


def _text(x: float, y: float, text: str, anchor: str = "start", kind: str = "") -> str:
    return (
        f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
    )


def _mark(x: float, y: float, low: float, high: float, kind: str, point: Point) -> str:
    whisker = "" if point.low is None else f'<line class="whisker {kind}" x1="{x:.1f}" x2="{x:.1f}" y1="{low:.1f}" y2="{high:.1f}"/>'  # fmt: skip
    return whisker + f'<circle class="dot {kind}" cx="{x:.1f}" cy="{y:.1f}" r="4"><title>{_said(point)}</title></circle>'  # fmt: skip


def _said(point: Point) -> str:
    if point.low is None or point.high is None:
        return _number(point.value)
    return f"{_number(point.value)} ({_number(point.low)} to {_number(point.high)})"


def _grid_y(ticks: Sequence[float], y: object, left: float, right: float) -> str:
    assert callable(y)
    parts = []
    for tick in ticks:
        kind = "axis" if tick == 0 else "grid"
        at = y(tick)
        parts.append(
            f'<line class="{kind}" x1="{left}" x2="{right}" y1="{at:.1f}" y2="{at:.1f}"/>'
            + _text(left - 6, at + 4, _number(tick), "end", "muted")
        )
    return "".join(parts)


def _scale(values: Sequence[float]) -> tuple[float, float, list[float]]:
    """Ends that hold all values, and about five round ticks between them."""
    low, high = min(values), max(values)
    if high <= low:
        low, high = low - 0.5, high + 0.5
    margin = 0.06 * (high - low)
    low, high = low - margin, high + margin
    rough = (high - low) / 5
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * m for m in (1, 2, 5, 10) if unit * m >= rough)
    first, last = math.ceil(low / step), math.floor(high / step)
    return low, high, [step * i for i in range(first, last + 1)]


def _number(value: float) -> str:
    text = f"{value:.3g}"
    return text.replace("-", "−")


def _cut(name: str, room: float) -> str:
    most = int((room - 10) / _LETTER)
    return name if len(name) <= most else name[: most - 1] + "…"
