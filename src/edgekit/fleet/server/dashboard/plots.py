"""Pictures as SVG inside the page: intervals to scale, latencies of two versions, columns of activity. Pure.

Lengths are percent of the width and heights are pixels, so a picture keeps its text size at any width. Colours come
from classes of the style sheet. There is no style attribute, which the page's policy would refuse.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from markupsafe import Markup, escape

from edgekit.fleet.rules.gates import Verdict
from edgekit.fleet.server.dashboard import words
from edgekit_runtime.sketches import GROWTH, Sketch

AT_LEAST: Final = frozenset({"agreement", "sample_ratio"})
SHARES: Final = frozenset({"failures", "agreement", "errors", "nans"})
# Of what is to be seen beside the limit: so many times its distance from perfect.
BEYOND: Final = 2.5
HEIGHT: Final = 26
BINS: Final = 48
TAIL: Final = 0.002


@dataclass(frozen=True, slots=True)
class Scale:
    """What a gate's axis shows.

    Attributes:
        low: at its left end.
        high: at its right end.
    """

    low: float
    high: float

    def place(self, value: float) -> float:
        """Where a value lies, as percent of the width."""
        share = (value - self.low) / (self.high - self.low) if self.high > self.low else 0.5
        return 100 * min(max(share, 0.0), 1.0)


def shown(gate: str, value: float | None) -> str:
    """A figure of a gate, for people."""
    if value is None or math.isnan(value):
        return words.NONE
    if gate in SHARES:
        return words.share(value, 2)
    return f"{value:.2f}×" if gate == "latency_ratio" else f"{value:.3g}"


def scale_of(gate: str, limit: float, values: Sequence[float]) -> Scale:
    """An axis on which the limit, what is perfect and the figures are seen.

    An interval may be much wider than that while little is known; it then runs over the edge.
    """
    perfect = {"agreement": 1.0, "latency_ratio": 1.0, "sample_ratio": 1.0}.get(gate, 0.0)
    apart = abs(limit - perfect) or 0.05
    if gate == "sample_ratio":
        return Scale(0.0, 1.0)
    if gate == "agreement":
        return Scale(max(0.0, min([perfect - BEYOND * apart, *(each - apart / 2 for each in values)])), 1.0)
    high = max([perfect + BEYOND * apart, *(each + apart / 2 for each in values)])
    low = min([perfect - apart, *(each - apart / 2 for each in values)]) if gate == "latency_ratio" else 0.0
    return Scale(max(low, 0.0), min(high, 1.0) if gate in SHARES else high)


def interval(verdict: Verdict, scale: Scale) -> Markup:
    """An interval with its estimate beside the limit that is to be kept; the text beside it says the same."""
    limit = scale.place(verdict.limit)
    good = (limit, 100 - limit) if verdict.gate in AT_LEAST else (0.0, limit)
    parts = [
        f'<rect class="track" y="6" width="100%" height="{HEIGHT - 12}" rx="4"/>',
        f'<rect class="good" x="{good[0]:.2f}%" y="6" width="{good[1]:.2f}%" height="{HEIGHT - 12}" rx="4"/>',
    ]
    if verdict.lower is not None or verdict.upper is not None:
        low = scale.place(scale.low if verdict.lower is None else verdict.lower)
        high = scale.place(scale.high if verdict.upper is None else verdict.upper)
        y = HEIGHT / 2
        parts.append(f'<line class="span" x1="{low:.2f}%" x2="{high:.2f}%" y1="{y}" y2="{y}"/>')
        for at, value in ((low, verdict.lower), (high, verdict.upper)):
            # What runs over the edge has no end there.
            if value is not None and scale.low <= value <= scale.high:
                parts.append(f'<line class="span" x1="{at:.2f}%" x2="{at:.2f}%" y1="{y - 4}" y2="{y + 4}"/>')
    parts.append(f'<line class="limit" x1="{limit:.2f}%" x2="{limit:.2f}%" y1="1" y2="{HEIGHT - 1}"/>')
    if verdict.estimate is not None:
        at = scale.place(verdict.estimate)
        parts.append(f'<circle class="dot" cx="{at:.2f}%" cy="{HEIGHT / 2}" r="5"/>')
    tone = words.OUTCOMES.get(verdict.outcome, ("", "quiet"))[1]
    return _svg(f"interval {tone}", HEIGHT, parts)


def spans(
    rows: Sequence[tuple[str, float | None, float | None, float | None]],
    scale: Scale,
    *,
    zone: tuple[float, float] | None = None,
    described: str,
) -> Markup:
    """Intervals below one another on one axis.

    Args:
        rows: (tone, estimate, lower, upper) of each; a bound that is None runs over the edge.
        scale: of the axis.
        zone: stretch that is marked, with zero in it.
        described: for who does not see it.
    """
    tall = HEIGHT * len(rows)
    parts = [f'<rect class="track" width="100%" height="{tall}" rx="4"/>']
    if zone is not None:
        left, right, zero = (scale.place(each) for each in (*zone, 0.0))
        parts += [
            f'<rect class="good" x="{left:.2f}%" width="{right - left:.2f}%" height="{tall}" rx="4"/>',
            f'<line class="limit" x1="{zero:.2f}%" x2="{zero:.2f}%" y1="0" y2="{tall}"/>',
        ]
    for number, (tone, estimate, lower, upper) in enumerate(rows):
        if estimate is None:
            continue
        low, high = scale.low if lower is None else lower, scale.high if upper is None else upper
        left, at, right = (scale.place(each) for each in (low, estimate, high))
        y, kind = HEIGHT * (number + 0.5), escape(tone)
        parts += [
            f'<line class="span {kind}" x1="{left:.2f}%" x2="{right:.2f}%" y1="{y}" y2="{y}"/>',
            f'<circle class="dot {kind}" cx="{at:.2f}%" cy="{y}" r="5"/>',
        ]
    return _svg("interval", tall, parts, described)


def track(value: float, full: float, tone: str) -> Markup:
    """A bar on a scale from 0 to `full`."""
    length = 100 * min(max(value / full, 0.0), 1.0) if full > 0 else 0.0
    fill = f'<rect class="fill {escape(tone)}" width="{length:.2f}%" height="8" rx="4"/>' if length else ""
    return _svg("track-bar", 8, ['<rect class="track" width="100%" height="8" rx="4"/>', fill])


def columns(counts: Sequence[int], labels: Sequence[str], described: str) -> Markup:
    """A column for each count.

    Args:
        counts: heights.
        labels: of each, shown on hover.
        described: for who does not see it.
    """
    height, top, width = 56, max([*counts, 1]), 100 / max(len(counts), 1)
    parts = []
    for number, (value, label) in enumerate(zip(counts, labels, strict=True)):
        tall = max(height * value / top, 2.0 if value else 1.0)
        tone = "fill live" if value else "track"
        parts.append(
            f'<rect class="{tone}" x="{number * width + width * 0.12:.2f}%" y="{height - tall:.1f}"'
            f' width="{width * 0.76:.2f}%" height="{tall:.1f}" rx="1.5"><title>{escape(label)}</title></rect>'
        )
    return _svg("columns", height, parts, described)


@dataclass(frozen=True, slots=True)
class Distribution:
    """Latencies of two versions on one axis, which is logarithmic.

    Attributes:
        drawn: the picture.
        ticks: (percent of the width, text) along it.
    """

    drawn: Markup
    ticks: tuple[tuple[str, str], ...]


def distributions(live: Sketch, candidate: Sketch) -> Distribution | None:
    """Draw how often each latency occurred, as a share of each version's own; None where nothing was measured."""
    known = [each for each in (live, candidate) if each.above]
    if not known:
        return None
    low = min(each.quantile(TAIL) for each in known) / GROWTH
    high = max(each.quantile(1 - TAIL) for each in known) * GROWTH
    low, high = max(low, 1e-6), max(high, low * GROWTH**4, 1e-6 * GROWTH**4)
    edges = math.log(low), math.log(high)
    shares = [_binned(each, edges) for each in (live, candidate)]
    top = max(max(each, default=0.0) for each in shares) or 1.0
    parts = [
        f'<path class="area {tone}" d="{_outline(each, top)}" vector-effect="non-scaling-stroke"/>'
        for tone, each in (("live", shares[0]), ("candidate", shares[1]))
        if any(each)
    ]
    medians = live.quantile(0.5), candidate.quantile(0.5)
    described = "Latency of live, median {:.3g} ms, and of the candidate, {:.3g} ms".format(*medians)
    drawn = Markup(  # noqa: S704 - numbers and escaped text
        '<svg class="distribution" viewBox="0 0 480 150" preserveAspectRatio="none" role="img"'
        f' aria-label="{escape(described)}">{"".join(parts)}</svg>'
    )
    return Distribution(drawn, _ticks(edges))


def _binned(sketch: Sketch, edges: tuple[float, float]) -> list[float]:
    """Share of the values within each of `BINS` stretches; a bin of the sketch is spread over those it touches."""
    low, high = edges
    width = (high - low) / BINS
    found, step = [0.0] * BINS, math.log(GROWTH)
    for number, counted in sketch.above.items():
        left, right = ((number - 1) * step - low) / width, (number * step - low) / width
        for at in range(max(0, math.floor(left)), min(BINS, math.ceil(right))):
            found[at] += counted * (min(right, at + 1) - max(left, at)) / (right - left)
    return [each / sketch.n for each in found] if sketch.n else found


def _outline(shares: Sequence[float], top: float) -> str:
    width = 480 / BINS
    points = [f"M0 150L0 {150 - 140 * shares[0] / top:.1f}"]
    for number, each in enumerate(shares):
        points.append(f"H{(number + 1) * width:.1f}")
        after = shares[number + 1] if number + 1 < BINS else 0.0
        points.append(f"V{150 - 140 * after / top:.1f}")
        del each
    return "".join(points) + "Z"


def _ticks(edges: tuple[float, float]) -> tuple[tuple[str, str], ...]:
    low, high = edges
    found = []
    for power in range(-6, 9):
        for step in (1, 1.5, 2, 3, 5, 7):
            value = step * 10.0**power
            at = (math.log(value) - low) / (high - low)
            if 0.03 <= at <= 0.97:
                found.append((f"{100 * at:.2f}%", f"{value:g} ms"))
    every = max(1, math.ceil(len(found) / 7))
    return tuple(found[::every])


def _svg(kind: str, height: int, parts: Sequence[str], described: str = "") -> Markup:
    told = (
        f'role="img" aria-label="{escape(described)}"'
        if described
        else 'aria-hidden="true" focusable="false"'
    )
    return Markup(f'<svg class="{kind}" height="{height}" {told}>{"".join(parts)}</svg>')  # noqa: S704 - as above
