"""The results as one self-contained HTML page; nothing is fetched when it is read."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup

from edgekit.bench.compare import Comparison
from edgekit.bench.plots import thinned, timeline
from edgekit.bench.results import EMULATED, MEASURED, PREDICTED, Result, Run, Sustained
from edgekit.bench.table import compared_as, label, machine_line, megabytes, notes, rate
from edgekit.drawing import charts, numbers

__all__ = ["render_page"]

TONES = {"onnx": "bytes", "tflite": "macs"}
VERDICTS = {"faster": "good", "slower": "bad"}


def render_page(
    results: Sequence[Result], comparisons: Sequence[Sequence[Comparison]], warnings: Sequence[Sequence[str]]
) -> str:
    """Render results of one or several devices.

    Args:
        results: one a device; names in it may come from anywhere and are escaped.
        comparisons: of each result.
        warnings: of each result.

    Returns:
        One HTML document with its style and plots inside.
    """
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(ms=numbers.milliseconds, mb=megabytes, rate=rate)
    environment.globals.update(bar=charts.bar)
    template = environment.from_string((resources.files("edgekit.bench") / "page.html").read_text("utf-8"))
    style = (resources.files("edgekit.drawing") / "style.css").read_text("utf-8")
    devices = [_device(*each) for each in zip(results, comparisons, warnings, strict=True)]
    files = list(dict.fromkeys(run.title for result in results for run in result.runs))
    return template.render(style=Markup(style), devices=devices, files=files) + "\n"  # noqa: S704 - our own file


def _device(result: Result, compared: Sequence[Comparison], warned: Sequence[str]) -> dict[str, Any]:
    """Everything that the template shows of a device, ready to print."""
    slowest = max((run.latency_ms.p90 or run.latency_ms.p50 for run in result.runs), default=0.0)
    fastest = max((run.per_s for run in result.runs), default=0.0)
    rows = [_row(run, result) for run in result.runs]
    return {
        "name": result.device,
        "machine": machine_line(result),
        "isa": ", ".join(result.machine.isa),
        "energy": result.machine.energy,
        "kind": result.kind,
        "kind_tone": {MEASURED: "good", EMULATED: "bad", PREDICTED: "bad"}[result.kind],
        "rows": rows,
        "slowest": slowest * 1.02,  # room for the tick
        "fastest": fastest * 1.02,
        "many": len({run.key[2:] for run in result.runs}) > 1,
        "joules": any(run.energy_mj is not None for run in result.runs),
        "predicted": result.kind == PREDICTED,
        "rounds": [_rounds(run, result) for run in result.runs if len(run.rounds_ms) > 1],
        "sustained": [_sustained(each) for each in result.sustained if len(each.at_s) > 1],
        "compared": [
            {"text": compared_as(each, result), "tone": VERDICTS.get(each.verdict, "")} for each in compared
        ],
        "warnings": list(warned),
        "notes": notes(result),
        "failed": [f"{each.name}: {each.what}" for each in (*result.errors, *result.skipped)],
        "interrupted": result.interrupted,
    }


def _row(run: Run, result: Result) -> dict[str, Any]:
    low, high = run.interval_ms or (None, None)
    return {
        "label": label(run, result),
        "tone": TONES.get(run.format, "int8"),
        "p50": run.latency_ms.p50,
        "p90": run.latency_ms.p90,
        "p99": run.latency_ms.p99,
        "n": run.latency_ms.n,
        "low": low,
        "high": high,
        "mark": high if result.kind == PREDICTED else run.latency_ms.p90,
        "per_s": run.per_s,
        "load_ms": run.load_ms,
        "cold_start_ms": run.cold_start_ms,
        "memory": run.memory_mb,
        "energy_mj": run.energy_mj,
    }


def _rounds(run: Run, result: Result) -> dict[str, Any]:
    plot = timeline(
        thinned(run.rounds_ms),
        title=f"Rounds of {label(run, result)}",
        shown=numbers.milliseconds,
        unit_x="rounds",
        tone=TONES.get(run.format, "int8"),
    )
    return {"label": label(run, result), "plot": plot}


def _sustained(each: Sustained) -> dict[str, Any]:
    """The plots of a run without pauses: what the board told of heat and clock, too."""
    series = (
        ("latency", each.latency_ms, numbers.milliseconds, "bytes"),
        ("temperature", each.temperature_c, lambda c: f"{c:.0f} °C", "worst"),
        ("clock", each.clock_mhz, lambda mhz: f"{mhz:.0f} MHz", "macs"),
    )
    plots = []
    for name, values, shown, tone in series:
        points = [(at, value) for at, value in zip(each.at_s, values, strict=True) if value is not None]
        if len(points) > 1:
            title = f"{name} of {each.name}"
            plots.append((name, timeline(points, title=title, shown=shown, unit_x="seconds", tone=tone)))
    return {"label": f"{each.name} {each.format}, threads {each.threads}, batch {each.batch}", "plots": plots}
