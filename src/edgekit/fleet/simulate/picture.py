"""A rollout over time as one SVG file that needs nothing else, and as a short table for terminals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Final

from markupsafe import escape
from rich.table import Table

from edgekit.fleet.rules import rollouts
from edgekit.fleet.simulate.many import Summary
from edgekit.fleet.simulate.run import History, Moment

WIDTH, HEIGHT = 1000, 560
LEFT, RIGHT = 64, 24
SHARES: Final = (96, 300)
AGREEMENT: Final = (368, 500)
# Of the points of one line: more than there are pixels show nothing.
MOST_POINTS: Final = 600
STYLE: Final = """
text { font: 13px system-ui, sans-serif; fill: #1a2230; }
.title { font-size: 19px; font-weight: 600; } .quiet { fill: #5a6577; } .page { fill: #ffffff; }
.grid { stroke: #dde2ea; } .shadow { fill: #eef2fb; } .live { fill: #ffffff; }
.drawn { stroke: #98a2b3; stroke-dasharray: 5 4; } .beside { stroke: #8b5cf6; } .serves { stroke: #2563c9; }
.mean { stroke: #14713d; } .band { fill: #14713d; opacity: .15; } .limit { stroke: #b42318; stroke-dasharray: 2 3; }
.line { fill: none; stroke-width: 2; } .good { fill: #14713d; } .bad { fill: #b42318; } .warn { fill: #8a5a00; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6eaf1; } .quiet { fill: #9aa6b8; } .page { fill: #181e28; } .grid { stroke: #2a3342; }
  .shadow { fill: #202a3d; } .live { fill: #181e28; } .drawn { stroke: #6f7c91; } .beside { stroke: #b79dfb; }
  .serves { stroke: #6ea8fe; } .mean { stroke: #5fd58d; } .band { fill: #5fd58d; } .limit { stroke: #ff8a7a; }
  .good { fill: #5fd58d; } .bad { fill: #ff8a7a; } .warn { fill: #f0c15a; }
}
"""
TONES: Final = {rollouts.COMPLETED: "good", rollouts.FAILED: "bad", rollouts.ABORTED: "bad"}


def svg(history: History) -> str:
    """The document: what was drawn, ran beside and served; the agreement between its bounds; stages as stripes."""
    moments = _thinned(history.moments)
    last = max(history.seconds, 1)

    def across(t_s: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * t_s / last

    parts = [
        f'<rect class="page" width="{WIDTH}" height="{HEIGHT}"/>',
        f'<text class="title" x="{LEFT}" y="32">{escape(_title(history))}</text>',
        f'<text class="{TONES.get(history.state, "warn")}" x="{LEFT}" y="56">{escape(_clipped(history.why))}</text>',
        *_stages(history, across),
        *_shares(moments, across),
        *_agreement(history, moments, across),
        *_times(last, across),
    ]
    described = escape(f"{_title(history)}: {history.why}")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{described}"><title>{described}</title><style>{STYLE}</style>{"".join(parts)}</svg>\n'
    )


def table(history: History) -> Table:
    """A row for each decision but those that only made a bound larger."""
    shown = Table(title=_title(history), title_justify="left", caption=history.why, caption_justify="left")
    for name in ("after", "stage", "phase", "drawn", "beside", "serves", "told", "failed", "decision"):
        shown.add_column(name, justify="left" if name in {"phase", "decision"} else "right")
    for each in history.moments:
        if each.decided and each.decided != "grown":
            shown.add_row(
                _hours(each.t_s), f"{history.plan.stages[each.stage]:g}%", each.phase, f"{each.bound:.1%}",
                f"{each.beside:.1%}", f"{each.serves:.1%}", f"{each.told:,}", f"{each.failed:,}", each.decided,
            )  # fmt: skip
    return shown


def summary_table(summary: Summary) -> Table:
    """Of many rollouts."""
    shown = Table(title=f"{summary.runs:,} rollouts", title_justify="left", show_header=False)
    places = ", ".join(f"{place} {count}" for place, count in list(summary.places.items())[:4])
    gates = ", ".join(f"{gate} {count}" for gate, count in list(summary.gates.items())[:4])
    for name, said in (
        ("completed", f"{summary.completed:.1%}"),
        ("stopped by a gate", f"{summary.failed:.1%}"),
        ("held for a person", f"{summary.held:.1%}"),
        ("where they ended", places or "nowhere"),
        ("by", gates or "no gate"),
        ("serving at most, median", f"{summary.exposed:.2%} (nine of ten below {summary.exposed_p90:.2%})"),
        ("running at most, median", f"{summary.touched:.2%}"),
        ("length, median", _hours(summary.seconds)),
    ):
        shown.add_row(name, said)
    return shown


def _stages(history: History, across: Callable[[float], float]) -> list[str]:
    parts, began = [], 0.0
    top, bottom = SHARES[0] - 22, AGREEMENT[1]
    for (stage, phase), group in groupby(history.moments, key=lambda each: (each.stage, each.phase)):
        ended = float(list(group)[-1].t_s)
        x, width = across(began), across(ended) - across(began)
        parts.append(
            f'<rect class="{phase}" x="{x:.1f}" y="{top}" width="{width:.1f}" height="{bottom - top}"/>'
            f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{bottom}"/>'
        )
        if width > 74:
            said = f"{history.plan.stages[stage]:g}% {phase}"
            parts.append(f'<text class="quiet" x="{x + 5:.1f}" y="{top + 15}">{said}</text>')
        began = ended
    return parts


def _shares(moments: Sequence[Moment], across: Callable[[float], float]) -> list[str]:
    top, bottom = SHARES

    def down(share: float) -> float:
        return bottom - (bottom - top) * share

    parts = _axis([(0.0, "0%"), (0.5, "50%"), (1.0, "100%")], down)
    lines: tuple[tuple[str, str, Callable[[Moment], float]], ...] = (
        ("drawn", "drawn", lambda each: each.bound),
        ("beside", "runs it beside", lambda each: each.beside),
        ("serves", "serves it", lambda each: each.serves),
    )
    for at, (tone, said, share) in enumerate(lines):
        points = [(across(0.0), down(0.0)), *((across(m.t_s), down(share(m))) for m in moments)]
        x = LEFT + 150 * at
        parts.append(_line(tone, points))
        parts.append(f'<line class="line {tone}" x1="{x}" x2="{x + 22}" y1="332" y2="332"/>')
        parts.append(f'<text x="{x + 28}" y="336">{said}</text>')
    return parts


def _agreement(history: History, moments: Sequence[Moment], across: Callable[[float], float]) -> list[str]:
    found = [
        (m.t_s, v.lower, v.estimate, v.upper)
        for m in moments
        for v in m.verdicts
        if v.gate == "agreement" and v.estimate is not None and not v.slice
        and v.lower is not None and v.upper is not None
    ]  # fmt: skip
    limit = history.plan.limits.agreement
    top, bottom = AGREEMENT
    parts = [f'<text x="{LEFT}" y="{top - 8}">agreement on devices, with its bounds at every look</text>']
    if not found:
        return [*parts, f'<text class="quiet" x="{LEFT}" y="{top + 24}">nothing was compared</text>']
    low = max(0.0, min(limit, *(each[2] for each in found)) - 0.05)

    def down(value: float) -> float:
        return bottom - (bottom - top) * (min(max(value, low), 1.0) - low) / (1 - low)

    upper = [(across(t), down(high)) for t, _, _, high in found]
    lower = [(across(t), down(least)) for t, least, _, _ in found]
    band = " ".join(f"{x:.1f},{y:.1f}" for x, y in [*upper, *reversed(lower)])
    return [
        *parts,
        *_axis([(low, f"{low:.2f}"), ((1 + low) / 2, f"{(1 + low) / 2:.2f}"), (1.0, "1")], down),
        f'<polygon class="band" points="{band}"/>',
        _line("mean", [(across(t), down(mean)) for t, _, mean, _ in found]),
        _line("limit", [(LEFT, down(limit)), (WIDTH - RIGHT, down(limit))]),
        f'<text class="bad" x="{WIDTH - RIGHT}" y="{down(limit) - 5:.1f}" text-anchor="end">limit {limit:g}</text>',
    ]


def _axis(ticks: Sequence[tuple[float, str]], down: Callable[[float], float]) -> list[str]:
    return [
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{down(at):.1f}" y2="{down(at):.1f}"/>'
        f'<text class="quiet" x="{LEFT - 8}" y="{down(at) + 4:.1f}" text-anchor="end">{said}</text>'
        for at, said in ticks
    ]


def _times(last: int, across: Callable[[float], float]) -> list[str]:
    return [
        f'<text class="quiet" x="{across(last * part):.1f}" y="{AGREEMENT[1] + 26}" text-anchor="{anchor}">'
        f"{_hours(last * part)}</text>"
        for part, anchor in ((0.0, "start"), (0.5, "middle"), (1.0, "end"))
    ]


def _line(tone: str, points: Sequence[tuple[float, float]]) -> str:
    return f'<polyline class="line {tone}" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}"/>'


def _thinned(moments: Sequence[Moment]) -> Sequence[Moment]:
    step = max(1, -(-len(moments) // MOST_POINTS))
    return [*moments[:-1:step], moments[-1]]


def _title(history: History) -> str:
    hits = ", ".join(str(each) for each in history.world.hits)
    return f"{history.cohort:,} devices{f', {hits}' if hits else ''}: {history.state}"


def _clipped(text: str) -> str:
    return text if len(text) <= 130 else text[:129] + "…"


def _hours(seconds: float) -> str:
    return f"{int(seconds) // 3600}:{int(seconds) % 3600 // 60:02d} h"
