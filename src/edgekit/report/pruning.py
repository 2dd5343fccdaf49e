"""What the report shows of pruning: what narrowing each layer does to the answers, and how far it went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from edgekit.drawing import charts

__all__ = ["view"]

# Height of the scale over the largest damage that was accepted.
ROOM: Final = 4.0


def view(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows for the template, in the order of the network; none where nothing was pruned."""
    pruned = report.get("pruning") or []
    top = _top(pruned)
    return [_row(each, top) for each in pruned]


def _top(pruned: Sequence[Mapping[str, Any]]) -> float:
    """Of the scale: room for what was accepted; what is far worse than that is cut off."""
    most = max((max(each["damage"], default=0.0) for each in pruned), default=0.0)
    accepted = max((charts.height_at(_values(each), each["after"]) for each in pruned), default=0.0)
    return min(most, ROOM * accepted) if accepted else most


def _values(each: Mapping[str, Any]) -> list[tuple[float, float]]:
    return list(zip(each["widths"], each["damage"], strict=True))


def _row(each: Mapping[str, Any], top: float) -> dict[str, Any]:
    before, after = each["before"], each["after"]
    values = _values(each)
    if each["branch"]:
        went = "kept" if after else "left out"
    else:
        went = str(before) if after == before else f"{before} → {after}"
    return {
        "layer": each["layer"],
        "kind": "residual branch" if each["branch"] else "",
        "went": went,
        "changed": after != before,
        "drawn": charts.line(values, top=top, marked=after),
        "most": f"{values[0][1]:.3g} with {values[0][0] or 'none'}",
    }
