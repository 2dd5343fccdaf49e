"""The report as a table for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from edgekit.drawing import numbers

__all__ = ["summary"]

TITLES = {"onnx": "ONNX", "tflite": "TFLite", "coreml": "Core ML"}


def summary(report: Mapping[str, Any]) -> RenderableType:
    """Return the verdict, one row per format beside float, then the reasons and notes.

    Args:
        report: the content of `report.json`.
    """
    accepted = report["accepted"]
    model = report.get("model", {})
    name = f"{model.get('name', '')} {model.get('version', '')}".strip()
    parts: list[RenderableType] = [
        Text.assemble(
            ("✓ accepted" if accepted else "✗ refused", "bold green" if accepted else "bold red"),
            f"  {name}, judged on {report['baseline']['n']} inputs",
        ),
        _table(report),
    ]
    parts += [Text(f"~ {line}", style="cyan") for line in _estimates(report)]
    # Text, not markup: a layer's name may hold square brackets.
    parts += [Text(f"* {note}", style="dim") for note in _on_fewer(report)]
    parts += [Text(f"✗ {reason}", style="red") for reason in report["reasons"]]
    parts += [Text(f"! {note}", style="yellow") for note in report["notes"]]
    return Group(*parts)


def _table(report: Mapping[str, Any]) -> Table:
    """One row per file; it fits 80 columns, so that nothing wraps in a plain terminal."""
    baseline = report["baseline"]
    metric = baseline["metric"]
    agreement = metric != "agreement"  # which would stand there twice
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("", no_wrap=True)
    change = "points" if metric in numbers.SHARES else "change"
    titles = (
        "size",
        metric,
        change,
        *(["agrees"] if agreement else []),
        "latency",
        "float",
        "speed",
        "proof",
    )
    for title in titles:
        table.add_column(title, justify="right", no_wrap=True)
    value = numbers.value(baseline["value"], metric)
    table.add_row("float", numbers.size(baseline["size_bytes"]), value, style="dim")
    for name, artifact in report["artifacts"].items():
        latency, floats = artifact["latency_ms"], artifact["float_latency_ms"]
        fewer = artifact["n"] not in (None, baseline["n"])
        table.add_row(
            TITLES.get(name, name),
            numbers.size(artifact["size_bytes"]),
            numbers.value(artifact["metric"], metric) + ("*" if fewer else ""),
            numbers.change(artifact["drop"], metric).removesuffix(" points"),
            *([numbers.percent(artifact["agreement"])] if agreement else []),
            numbers.milliseconds(latency["p50"] if latency else None),
            numbers.milliseconds(floats["p50"] if floats else None),
            numbers.times(artifact["speedup"]),
            _proof(artifact["proof"]),
        )
    return table


def _estimates(report: Mapping[str, Any]) -> list[str]:
    """What the files would take on the targets; none of it was measured."""
    return [
        f"{TITLES.get(name, name)}: about {numbers.milliseconds(found['ms'])} on {target} "
        f"({numbers.milliseconds(found['low'])} to {numbers.milliseconds(found['high'])}), an estimate"
        for name, artifact in report["artifacts"].items()
        for target, found in artifact.get("predicted", {}).items()
    ]


def _on_fewer(report: Mapping[str, Any]) -> list[str]:
    """Which files were judged on fewer inputs than the float model, and on how many."""
    usual = report["baseline"]["n"]
    return [
        f"{TITLES.get(name, name)}: on the first {artifact['n']} of them"
        for name, artifact in report["artifacts"].items()
        if artifact["n"] not in (None, usual)
    ]


def _proof(proof: Mapping[str, Any] | None) -> Text:
    if proof is None:
        return Text("not proven", style="red")
    shown = f"max {numbers.steps(proof['max_steps'])} of {numbers.steps(proof['max_allowed'])}"
    return Text(shown, style="green" if proof["holds"] else "red")
