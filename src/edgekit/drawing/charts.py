"""Charts as inline SVG that keep their text size: lengths are percent of the width, heights are pixels.

Colours come from the classes of the style sheet, so that a chart follows light and dark. All text is escaped
here, because names of layers come from the user's model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup, escape

__all__ = ["Bar", "Column", "Point", "bar", "columns", "height_at", "line", "nice_ceiling", "scatter"]

PLOT_HEIGHT = 190
# Room of a scatter plot's axis, of what lies on its edge, and radius of a point, in pixels or percent.
SCATTER_HEIGHT, RADIUS, EDGE = 240, 6, 4.0
# Of a line beside its figures.
LINE_WIDTH, LINE_HEIGHT = 140, 36
NAME_LENGTH = 16
# Of a column without a value: seen, and not taken for one.
MARK_HEIGHT = 6


@dataclass(frozen=True, slots=True)
class Column:
    """One column of `columns`.

    Attributes:
        label: full name, shown on hover and read aloud.
        value: height, None leaves a mark at the foot.
        shown: value with its unit.
        tone: class of the style sheet: "int8", "worst", "kept".
        name: short text under the column, "" for none.
    """

    label: str
    value: float | None
    shown: str
    tone: str = "int8"
    name: str = ""


@dataclass(frozen=True, slots=True)
class Bar:
    """One horizontal bar.

    Attributes:
        label: what it is.
        value: length, None draws none.
        shown: value with its unit.
        tone: class of the style sheet.
        note: small text after the value.
        mark: second value drawn as a tick, for p90.
    """

    label: str
    value: float | None
    shown: str
    tone: str = "int8"
    note: str = ""
    mark: float | None = None


@dataclass(frozen=True, slots=True)
class Point:
    """One point of `scatter`.

    Attributes:
        x: place on the axis, at least 0.
        y: height; lower is drawn lower.
        label: full text, shown on hover.
        tone: class of the style sheet: "good", "bad", "chosen".
        name: short text beside it.
    """

    x: float
    y: float
    label: str
    tone: str
    name: str = ""


def bar(value: float | None, full: float, tone: str, mark: float | None = None) -> Markup:
    """Draw one horizontal bar on a scale from 0 to `full`; hidden from readers, the text stands beside it."""
    track = '<rect class="track" width="100%" height="100%" rx="3"/>'
    length = 0.0 if value is None or full <= 0 else max(0.0, min(1.0, value / full)) * 100
    body = f'<rect class="fill {escape(tone)}" width="{length:.2f}%" height="100%" rx="3"/>' if length else ""
    tick = ""
    if mark is not None and full > 0:
        place = max(0.0, min(1.0, mark / full)) * 100
        tick = f'<rect class="tick" x="{place:.2f}%" width="2" height="100%"/>'
    return Markup(f'<svg class="bar" aria-hidden="true" focusable="false">{track}{body}{tick}</svg>')  # noqa: S704


def columns(items: Sequence[Column], *, title: str, unit: str) -> Markup:
    """Draw one column per item on a common scale that starts at 0.

    Args:
        items: in the order of execution.
        title: names the chart for those who do not see it.
        unit: of the axis.
    """
    values = [item.value for item in items if item.value is not None]
    top = nice_ceiling(max(values, default=1.0))
    bottom = -nice_ceiling(-min(values)) if values and min(values) < 0 else 0.0
    span = top - bottom

    def place(value: float) -> float:
        return PLOT_HEIGHT * (top - value) / span

    width = 100 / max(len(items), 1)
    drawn = [_column(item, index, width, place) for index, item in enumerate(items)]
    ticks = sorted({bottom, 0.0, top / 2, top})
    lines = [f'<line class="grid" x1="0" x2="100%" y1="{place(t):.1f}" y2="{place(t):.1f}"/>' for t in ticks]
    texts = [
        f'<text class="axis" x="34" y="{place(t) + 12:.1f}" text-anchor="end">{t:g}</text>' for t in ticks
    ]
    described = escape(f"{title}: {len(items)} layers, {unit}; the table below has every value")
    height = PLOT_HEIGHT + (32 if any(item.name for item in items) else 16)
    return Markup(  # noqa: S704 - every part is made of numbers and escaped text
        f'<div class="plot"><svg class="scale" width="38" height="{height}" aria-hidden="true">'
        f"{''.join(texts)}</svg>"
        f'<svg class="columns" height="{height}" role="img" aria-label="{described}">'
        f'<g transform="translate(0 8)">{"".join(lines)}{"".join(drawn)}</g></svg></div>'
    )


def scatter(
    points: Sequence[Point],
    *,
    title: str,
    x_limit: float | None,
    y_limit: float | None,
    x_shown: Callable[[float], str],
    y_shown: Callable[[float], str],
) -> Markup:
    """Draw points over an axis that starts at 0, with the limits that they should keep.

    Args:
        points: one at least.
        title: names the chart for those who do not see it.
        x_limit: upright line; points should lie left of it.
        y_limit: level line; points should lie above it.
        x_shown: prints a place.
        y_shown: prints a height.
    """
    right = nice_ceiling(max([p.x for p in points] + ([x_limit] if x_limit is not None else [])))
    heights = [p.y for p in points] + ([y_limit] if y_limit is not None else [])
    low, high = min(heights), max(heights)
    slack = 0.12 * (high - low) or 0.01 * abs(high) or 1.0
    low, high = low - slack, high + slack

    def across(x: float) -> float:
        return EDGE + (100 - 2 * EDGE) * x / right

    def down(y: float) -> float:
        return SCATTER_HEIGHT * (high - y) / (high - low)

    parts = []
    for y in (low, (low + high) / 2, high):
        parts.append(f'<line class="grid" x1="0" x2="100%" y1="{down(y):.1f}" y2="{down(y):.1f}"/>')
        parts.append(f'<text class="axis" x="2" y="{down(y) - 4:.1f}">{escape(y_shown(y))}</text>')
    for x, anchor in ((0.0, "start"), (right / 2, "middle"), (right, "end")):
        place = f'x="{across(x):.2f}%" y="{SCATTER_HEIGHT + 18}" text-anchor="{anchor}"'
        parts.append(f'<text class="axis" {place}>{escape(x_shown(x))}</text>')
    if x_limit is not None:
        place = f'x1="{across(x_limit):.2f}%" x2="{across(x_limit):.2f}%"'
        parts.append(f'<line class="limit" {place} y1="0" y2="{SCATTER_HEIGHT}"/>')
    if y_limit is not None:
        parts.append(
            f'<line class="limit" x1="0" x2="100%" y1="{down(y_limit):.1f}" y2="{down(y_limit):.1f}"/>'
        )
    parts += [_point(p, across(p.x), down(p.y)) for p in points]
    described = escape(f"{title}: {len(points)} trials; the table below has every value")
    return Markup(  # noqa: S704 - every part is made of numbers and escaped text
        f'<svg class="columns scatter" height="{SCATTER_HEIGHT + 32}" role="img" aria-label="{described}">'
        f'<g transform="translate(0 14)">{"".join(parts)}</g></svg>'
    )


def line(values: Sequence[tuple[float, float]], *, top: float, marked: float) -> Markup:
    """Draw a small line without axes; hidden from readers, the text stands beside it.

    Args:
        values: places, ascending, and heights, at least 0.
        top: of the scale, which several lines may share; what is higher is cut off.
        marked: place of the dot.
    """
    low, high = values[0][0], values[-1][0]
    span = high - low or 1.0

    def across(x: float) -> float:
        return 4 + (LINE_WIDTH - 8) * (x - low) / span

    def down(y: float) -> float:
        return 4 + (LINE_HEIGHT - 8) * (1 - min(y / top, 1.0) if top > 0 else 1.0)

    drawn = " ".join(f"{across(x):.1f},{down(y):.1f}" for x, y in values)
    at = height_at(values, marked)
    return Markup(  # noqa: S704 - numbers only
        f'<svg class="line" viewBox="0 0 {LINE_WIDTH} {LINE_HEIGHT}" aria-hidden="true" focusable="false">'
        f'<line class="grid" x1="0" x2="{LINE_WIDTH}" y1="{down(0):.1f}" y2="{down(0):.1f}"/>'
        f'<polyline class="stroke" points="{drawn}"/>'
        f'<circle class="fill chosen" cx="{across(marked):.1f}" cy="{down(at):.1f}" r="3.5"/></svg>'
    )


def height_at(values: Sequence[tuple[float, float]], x: float) -> float:
    """Height of a line at a place; at its ends beyond them."""
    for (a, low), (b, high) in pairwise(values):
        if a <= x <= b:
            return low + (high - low) * (x - a) / (b - a)
    return values[0][1] if x < values[0][0] else values[-1][1]


def _point(point: Point, x: float, y: float) -> str:
    # A name that would run over the right edge stands on the left of its point.
    side, anchor = (-10, "end") if x > 85 else (10, "start")
    return (
        f'<circle class="fill {escape(point.tone)}" cx="{x:.2f}%" cy="{y:.1f}" r="{RADIUS}">'
        f"<title>{escape(point.label)}</title></circle>"
        f'<text class="axis" x="{x:.2f}%" dx="{side}" y="{y + 4:.1f}" text-anchor="{anchor}">'
        f"{escape(point.name)}</text>"
    )


def _column(item: Column, index: int, width: float, place: Callable[[float], float]) -> str:
    foot = place(0.0)
    tip = foot - MARK_HEIGHT if item.value is None else place(item.value)
    top, height = min(tip, foot), max(abs(foot - tip), 1.5)
    gap = 0.2 * width
    name = ""
    if item.name:
        middle = (index + 0.5) * width
        text = escape(_shortened(item.name))
        name = f'<text class="axis name" x="{middle:.3f}%" y="{PLOT_HEIGHT + 18}" text-anchor="middle">{text}</text>'
    return (
        f'<rect class="fill {escape(item.tone)}" x="{index * width + gap / 2:.3f}%" y="{top:.1f}"'
        f' width="{width - gap:.3f}%" height="{height:.1f}">'
        f"<title>{escape(item.label)}: {escape(item.shown)}</title></rect>{name}"
    )


def _shortened(name: str) -> str:
    """The end of a long name, which tells it from its neighbours."""
    return name if len(name) <= NAME_LENGTH else f"…{name[1 - NAME_LENGTH :]}"


def nice_ceiling(value: float) -> float:
    """Return the lowest round number that is at least `value`: 1, 2, 4, 5, 6 or 8 times a power of ten."""
    if not math.isfinite(value) or value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 4, 5, 6, 8, 10, 20) if step * power >= value)
