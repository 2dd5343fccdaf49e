"""Charts as inline SVG that keep their text size: lengths are percent of the width, heights are pixels.

Colours come from the classes of the style sheet, so that a chart follows light and dark. All text is escaped
here, because names of layers come from the user's model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

__all__ = ["Bar", "Column", "bar", "columns", "nice_ceiling"]

PLOT_HEIGHT = 190
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
