"""What the report shows of a search: every trial in a table, and accuracy against latency and size."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from edgekit.drawing import charts, numbers
from edgekit.drawing.charts import Point

__all__ = ["described", "view"]


def view(report: Mapping[str, Any]) -> dict[str, Any] | None:
    """Rows and charts for the template; None where nothing was searched."""
    trials = report.get("trials") or []
    if not trials:
        return None
    metric, budget = report["baseline"]["metric"], report["budget"]
    measured = [trial for trial in trials if trial["outcome"] is not None]
    allowed = budget["max_drop"]
    draw = {
        "metric": metric,
        "chosen": report.get("trial"),
        "y_limit": None if allowed is None else -allowed,
    }
    size = budget["max_size_mb"]
    return {
        "rows": [_row(trial, metric, report.get("trial")) for trial in trials],
        "charts": [
            chart
            for chart in (
                _chart(
                    measured, "latency_ms", "latency", budget["max_latency_ms"], numbers.milliseconds, **draw
                ),
                _chart(measured, "size_bytes", "size", size and size * 1e6, numbers.size, **draw),
            )
            if chart
        ],
    }


def described(setting: Mapping[str, Any]) -> str:
    """A setting in words."""
    calibration, kept = setting["calibration"], len(setting["keep_float"])
    extras = {
        "equalized": calibration["equalize"],
        "compensated": calibration["compensation"],
        "bias corrected": calibration["bias_correction"],
    }
    words = (
        f"prune {setting['prune']:g}" if setting["prune"] else "",
        "QAT" if setting["qat"] else "",
        f"{kept} layer{'s' if kept > 1 else ''} float" if kept else "",
        "/".join(calibration["observers"]),
        *(word for word, on in extras.items() if on),
    )
    return ", ".join(word for word in words if word)


def _row(trial: Mapping[str, Any], metric: str, chosen: int | None) -> dict[str, Any]:
    outcome = trial["outcome"] or {}
    return {
        "number": trial["number"],
        "setting": described(trial["setting"]),
        "change": numbers.change(outcome.get("drop"), metric),
        "latency": numbers.milliseconds(outcome.get("latency_ms")),
        "size": numbers.size(outcome["size_bytes"]) if outcome else numbers.NONE,
        "feasible": trial["feasible"],
        "chosen": trial["number"] == chosen,
        "pareto": trial.get("pareto", False),
        "why": trial["why"],
    }


def _chart(
    trials: Sequence[Mapping[str, Any]],
    key: str,
    name: str,
    limit: float | None,
    shown: Callable[[float], str],
    *,
    metric: str,
    chosen: int | None,
    y_limit: float | None,
) -> dict[str, Any] | None:
    points = [
        Point(
            float(trial["outcome"][key]),
            -float(trial["outcome"]["drop"]),
            f"trial {trial['number']}: {described(trial['setting'])}: {shown(trial['outcome'][key])}, "
            f"{numbers.change(trial['outcome']['drop'], metric)}",
            "chosen" if trial["number"] == chosen else "good" if trial["feasible"] else "bad",
            str(trial["number"]),
        )
        for trial in trials
        if trial["outcome"][key] is not None and trial["outcome"]["drop"] is not None
    ]
    if not points:
        return None
    drawn = charts.scatter(
        points,
        title=f"{metric} against {name}",
        x_limit=limit,
        y_limit=y_limit,
        x_shown=shown,
        y_shown=lambda change: numbers.change(-change, metric),
    )
    return {"title": f"{metric} against {name}", "drawn": drawn}
