"""Lines over time as inline SVG; widths are percent, so that text keeps its size. All text is escaped here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

from markupsafe import Markup, escape

from edgekit.drawing.charts import nice_ceiling

HEIGHT = 150
# A line of more points is drawn by as many medians.
MOST_POINTS = 240


def timeline(
    points: Sequence[tuple[float, float]],
    *,
    title: str,
    shown: Callable[[float], str],
    unit_x: str,
    tone: str = "int8",
) -> Markup:
    """Draw a line over an axis of time or rounds; heights begin at 0, so that a small change looks small.

    Args:
        points: places, ascending, and heights of at least 0; two at least.
        title: names the chart for those who do not see it.
        shown: prints a height.
        unit_x: after the last place.
        tone: class of the style sheet.
    """
    left, right = points[0][0], points[-1][0]
    top = nice_ceiling(max(y for _, y in points))
    span = right - left or 1.0

    def across(x: float) -> str:
        return f"{100 * (x - left) / span:.2f}%"

    def down(y: float) -> str:
        return f"{HEIGHT * (1 - y / top):.1f}"

    parts = []
    for y in (0.0, top / 2, top):
        parts.append(f'<line class="grid" x1="0" x2="100%" y1="{down(y)}" y2="{down(y)}"/>')
        if y:
            parts.append(f'<text class="axis" x="2" y="{float(down(y)) - 4:.1f}">{escape(shown(y))}</text>')
    parts += [
        f'<line class="stroke {escape(tone)}" x1="{across(a)}" y1="{down(low)}" x2="{across(b)}" y2="{down(high)}"/>'
        for (a, low), (b, high) in pairwise(points)
    ]
    for x, anchor in ((left, "start"), (right, "end")):
        text = escape(f"{x:g} {unit_x}" if x == right else f"{x:g}")
        parts.append(
            f'<text class="axis" x="{across(x)}" y="{HEIGHT + 16}" text-anchor="{anchor}">{text}</text>'
        )
    described = escape(f"{title}, {shown(min(y for _, y in points))} to {shown(max(y for _, y in points))}")
    return Markup(  # noqa: S704 - every part is made of numbers and escaped text
        f'<svg class="timeline" height="{HEIGHT + 36}" role="img" aria-label="{described}">'
        f'<g transform="translate(0 14)">{"".join(parts)}</g></svg>'
    )


def thinned(values: Sequence[float]) -> list[tuple[float, float]]:
    """(number, value) of a long row by medians of as many stretches as can be told apart."""
    step = -(-len(values) // MOST_POINTS)
    stretches = [sorted(values[k : k + step]) for k in range(0, len(values), max(step, 1))]
    return [(float(k * step), each[len(each) // 2]) for k, each in enumerate(stretches)]
