"""Plots as SVG, drawn in a millisecond: colours are CSS classes, so that light and dark share one drawing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 300, 52, 22, 26, 42
MARK = {"line": "line", "dots": "dot", "bars": "bar", "rule": "line", "thin": "line thin", "band": "bar", "area": "bar"}


@dataclass(frozen=True)
class Mark:
    """Something drawn from points x, y (arrays of equal length)."""

    kind: str
    """line, thin, dots, bars, rule (a vertical line at each x), band (from x[0] to x[1]), area (from y[0] to y[1])"""
    x: Any
    y: Any = None
    color: str = "a"  # a, b, c, d or grey
    label: str = ""
    dashed: bool = False


@dataclass(frozen=True)
class Axis:
    """An axis: its label and its range."""

    label: str
    low: float
    high: float

    def ticks(self, most: int) -> list[float]:
        """Round numbers on the axis, at most about `most`."""
        rough = (self.high - self.low) / most
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        return [k * step for k in range(first, math.floor(self.high / step + 1e-9) + 1)]


def axis(label: str, *values: Any, low: float = math.inf, high: float = -math.inf) -> Axis:
    """An axis that shows all finite values (and `low` and `high`), with a little room."""
    flat = np.concatenate([np.ravel(np.asarray(v, float)) for v in values]) if values else np.empty(0)
    flat = flat[np.isfinite(flat)]
    least, most = min([low, *flat.tolist()]), max([high, *flat.tolist()])
    if not math.isfinite(least + most):
        return Axis(label, 0.0, 1.0)
    room = (most - least) * 0.05 or max(abs(most), 1.0) * 0.1
    return Axis(label, least - room, most + room)


def plot(marks: Sequence[Mark], x: Axis, y: Axis, width: int = 640, title: str = "", height: int = HEIGHT) -> str:
    """One plot with its legend as HTML; `width` in pixels, so that its text keeps its size on a small screen."""
    w, h = width - LEFT - RIGHT, height - TOP - BOTTOM

    def px(value: Any) -> Any:
        return (np.asarray(value, float) - x.low) / (x.high - x.low) * w

    def py(value: Any) -> Any:
        return h - (np.asarray(value, float) - y.low) / (y.high - y.low) * h

    grid = []
    for value in x.ticks(max(4, width // 80)):
        at = LEFT + px(value)
        grid.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{TOP + h}"/>')
        grid.append(f'<text x="{at:.1f}" y="{TOP + h + 16}" text-anchor="middle">{number(value)}</text>')
    for value in y.ticks(5):
        at = TOP + py(value)
        grid.append(f'<line class="grid" x1="{LEFT}" x2="{LEFT + w}" y1="{at:.1f}" y2="{at:.1f}"/>')
        grid.append(f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{number(value)}</text>')
    body = "".join(_draw(mark, px, py, x, y, h) for mark in marks)
    words = (
        f'<text x="{LEFT + w / 2:.0f}" y="{height - 6}" text-anchor="middle">{escape(x.label)}</text>'
        f'<text x="4" y="14">{escape(y.label)}</text>'
        f'<text x="{width - RIGHT}" y="14" text-anchor="end" class="title">{escape(title)}</text>'
    )
    name = escape(f"{title or y.label} against {x.label}")
    drawing = (
        f'<svg class="plot" role="img" aria-label="{name}" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}">{"".join(grid)}{words}'
        f'<svg x="{LEFT}" y="{TOP}" width="{w}" height="{h}" overflow="hidden">{body}</svg></svg>'
    )
    keys = "".join(
        f'<li class="{MARK[m.kind]} {m.color}{" dashed" if m.dashed else ""}">{escape(m.label)}</li>'
        for m in marks
        if m.label
    )
    return f'<div class="panel">{drawing}<ul class="legend">{keys}</ul></div>'


def _draw(mark: Mark, px: Any, py: Any, x: Axis, y: Axis, h: int) -> str:
    style = f'class="{MARK[mark.kind]} {mark.color}{" dashed" if mark.dashed else ""}"'
    at = px(mark.x)
    if mark.kind == "rule":
        return "".join(f'<line {style} x1="{v:.1f}" x2="{v:.1f}" y1="0" y2="{h}"/>' for v in np.ravel(at))
    if mark.kind == "band":
        return f'<rect class="band {mark.color}" x="{at[0]:.1f}" width="{at[1] - at[0]:.1f}" y="0" height="{h}"/>'
    if mark.kind == "area":
        low, high = (py(np.asarray(v, float)) for v in mark.y)
        there = np.isfinite(low) & np.isfinite(high)
        there_and_back = zip([*at[there], *at[there][::-1]], [*low[there], *high[there][::-1]], strict=True)
        return (
            f'<polygon class="band {mark.color}" points="{" ".join(f"{a:.1f},{b:.1f}" for a, b in there_and_back)}"/>'
        )
    up = np.nan_to_num(py(np.clip(np.asarray(mark.y, float), -1e9, 1e9)), nan=np.inf)
    if mark.kind == "dots":
        return "".join(
            f'<circle {style} r="5" cx="{a:.1f}" cy="{b:.1f}"/>'
            for a, b in zip(np.ravel(at), np.ravel(up), strict=True)
            if math.isfinite(b)
        )
    if mark.kind == "bars":
        zero = float(py(min(max(0.0, y.low), y.high)))
        gap = float(np.diff(at).min()) if len(at) > 1 else float(px(x.high))
        wide = max(1.0, gap * 0.7)
        return "".join(
            f'<rect {style} x="{a - wide / 2:.1f}" width="{wide:.1f}" y="{min(b, zero):.1f}" '
            f'height="{abs(b - zero):.1f}"/>'
            for a, b in zip(at, up, strict=True)
            if math.isfinite(b)
        )
    pieces, pen = [], "M"
    for a, b in zip(at, up, strict=True):
        if math.isfinite(b):
            pieces.append(f"{pen}{a:.1f} {min(max(b, -1e5), 1e5):.1f}")
        pen = "L" if math.isfinite(b) else "M"
    return f'<path {style} d="{"".join(pieces)}"/>'


def half_of(width: int) -> int:
    """The width of one of two plots side by side; all of a small screen's."""
    return width if width < 560 else width // 2 - 10


def number(value: float) -> str:
    """A number for people: three significant digits, a real minus sign."""
    if 1000 <= abs(value) < 1e5:
        text = f"{value:,.0f}"
    else:
        text = f"{value:.3g}" if value == 0 or 1e-3 <= abs(value) < 1e5 else f"{value:.2e}"
    return text.replace("-", "−")
