"""What the gates say: each estimate and its interval beside the limit, now and over time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from markupsafe import Markup

from edgekit.fleet.rules.gates import Verdict
from edgekit.fleet.server.dashboard import plots, words
from edgekit.fleet.server.dashboard.views.common import Tag, tag_of
from edgekit_runtime.policies import BUCKETS


@dataclass(frozen=True, slots=True)
class Gate:
    """What one gate says.

    Attributes:
        name: of the gate.
        title: in words.
        tag: outcome.
        drawn: interval beside the limit, to scale; "" where there is no figure.
        ends: left and right end of the axis.
        estimate: in words.
        between: interval in words.
        limit: in words.
        why: verdict in words.
        part: slice of the fleet, "" for all.
    """

    name: str
    title: str
    tag: Tag
    drawn: Markup
    ends: tuple[str, str]
    estimate: str
    between: str
    limit: str
    why: str
    part: str


def gates_of(verdicts: Sequence[Mapping[str, Any]]) -> tuple[Gate, ...]:
    """Rows of the gates, those that fail first, then those that hold."""
    order = {"fail": 0, "hold": 1}
    found = [Verdict(**each) for each in verdicts]
    return tuple(_gate(each) for each in sorted(found, key=lambda each: order.get(each.outcome, 2)))


def _gate(verdict: Verdict) -> Gate:
    gate = verdict.gate
    ends: tuple[str, str] = ("", "")
    drawn = Markup("")
    if verdict.estimate is not None:
        scale = plots.scale_of(gate, verdict.limit, [verdict.estimate])
        ends = plots.shown(gate, scale.low), plots.shown(gate, scale.high)
        drawn = plots.interval(verdict, scale)
    sign = "≥" if gate in plots.AT_LEAST else "≤"
    limit = f"{sign} {plots.shown(gate, verdict.limit)}" if gate != "arms" else "not worse"
    return Gate(
        gate, words.GATES.get(gate, gate), tag_of(words.OUTCOMES, verdict.outcome), drawn, ends,
        plots.shown(gate, verdict.estimate), _between(verdict), limit,
        verdict.why, verdict.slice,
    )  # fmt: skip


def _between(verdict: Verdict) -> str:
    # A figure that is never below zero is at least zero, whatever is known.
    if verdict.upper is None and not verdict.lower:
        return ""
    if verdict.upper is None:
        return f"at least {plots.shown(verdict.gate, verdict.lower)}"
    if verdict.lower is None:
        return f"at most {plots.shown(verdict.gate, verdict.upper)}"
    return f"{plots.shown(verdict.gate, verdict.lower)} to {plots.shown(verdict.gate, verdict.upper)}"


def history_of(looks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Series for the plots: bound and share of the devices that have it, and the interval of each gate.

    Args:
        looks: oldest first.
    """
    bounds = [100 * each["bound"] / BUCKETS for each in looks]
    have = [
        bound * min(1.0, each["counts"].get("taken", 0) / meant)
        if (meant := each["counts"].get("meant", 0))
        else 0.0
        for bound, each in zip(bounds, looks, strict=True)
    ]
    gates = []
    for name, title in words.GATES.items():
        if name in {"sample_ratio", "arms"}:
            # A probability that falls once something is wrong, and several figures at once: no line over time.
            continue
        found = [
            next((v for v in each["verdicts"] if v["gate"] == name and not v.get("slice")), None)
            for each in looks
        ]
        if sum(each is not None and each["estimate"] is not None for each in found) > 1:
            gates.append(_series(name, title, found))
    steps = [
        {"at": after["at_s"], "phase": after["phase"], "stage": after["stage"] + 1}
        for before, after in pairwise(looks)
        if (before["stage"], before["phase"]) != (after["stage"], after["phase"])
    ]
    return {
        "at": [each["at_s"] for each in looks],
        "bound": bounds,
        "have": have,
        "steps": steps,
        "gates": gates,
    }


def _series(name: str, title: str, found: Sequence[Mapping[str, Any] | None]) -> dict[str, Any]:
    times = 100 if name in plots.SHARES else 1
    known = [each["estimate"] for each in found if each is not None and each["estimate"] is not None]
    limit = next(each["limit"] for each in reversed(found) if each is not None)
    scale = plots.scale_of(name, limit, known)

    def column(key: str, default: float | None) -> list[float | None]:
        # An interval that is open to one side, or wider than the plot, runs over its edge.
        return [
            None
            if each is None or each["estimate"] is None
            else times * min(max(each[key], scale.low), scale.high)
            if each[key] is not None
            else default
            for each in found
        ]

    return {
        "gate": name, "title": title, "unit": {"latency_ratio": "×"}.get(name, "%" if times == 100 else ""),
        "limit": times * limit, "low": times * scale.low, "high": times * scale.high,
        "estimate": column("estimate", None), "lower": column("lower", times * scale.low),
        "upper": column("upper", times * scale.high), "at_least": name in plots.AT_LEAST,
    }  # fmt: skip
