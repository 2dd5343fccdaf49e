"""The report as a table for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from edgekit.report import numbers

__all__ = ["summary"]

TITLES = {"onnx": "ONNX", "tflite": "TFLite", "coreml": "Core ML"}


def summary(report: Mapping[str, Any]) -> RenderableType:
    """Return the verdict, one row per format beside float, then the reasons and notes.

    Args:
        report: the content of `report.json`.
    """
    accepted = report["accepted"]
    model = report.get("model", {})
    parts: list[RenderableType] = [
        Text.assemble(
            ("✓ accepted" if accepted else "✗ refused", "bold green" if accepted else "bold red"),
            f"  {model.get('name', '')} {model.get('version', '')}".rstrip(),
        ),
        _table(report),
    ]
    # Text, not markup: a layer's name may hold square brackets.
    parts += [Text(f"✗ {reason}", style="red") for reason in report["reasons"]]
    parts += [Text(f"! {note}", style="yellow") for note in report["notes"]]
    return Group(*parts)


def _table(report: Mapping[str, Any]) -> Table:
    baseline = report["baseline"]
    metric = baseline["metric"]
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    for title in ("size", metric, "change", "agreement", "latency", "speed", "proof"):
        table.add_column(title, justify="right")
    table.add_row(
        f"float, n = {baseline['n']}",
        numbers.size(baseline["size_bytes"]),
        numbers.value(baseline["value"], metric),
        style="dim",
    )
    for name, artifact in report["artifacts"].items():
        latency, floats = artifact["latency_ms"], artifact["float_latency_ms"]
        shown = numbers.milliseconds(latency["p50"] if latency else None)
        if floats:
            shown += f" (float {numbers.milliseconds(floats['p50'])})"
        table.add_row(
            TITLES.get(name, name),
            numbers.size(artifact["size_bytes"]),
            numbers.judged(artifact["metric"], metric, artifact["n"], baseline["n"]),
            numbers.change(artifact["drop"], metric),
            numbers.percent(artifact["agreement"]),
            shown,
            numbers.times(artifact["speedup"]),
            _proof(artifact["proof"]),
        )
    return table


def _proof(proof: Mapping[str, Any] | None) -> Text:
    if proof is None:
        return Text("not proven", style="red")
    shown = f"max {numbers.steps(proof['max_steps'])} of {numbers.steps(proof['max_allowed'])}"
    return Text(shown, style="green" if proof["holds"] else "red")
