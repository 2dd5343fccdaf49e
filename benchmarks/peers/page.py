"""The results as one HTML page with a picture of each network; nothing is fetched when it is read."""

from __future__ import annotations

from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from benchmarks.peers import tables
from edgekit.drawing import charts, numbers

OURS = "edgekit"
# Share of a picture's width and height within which names would lie on one another.
NEAR = 0.03


def page(result: dict[str, Any]) -> str:
    """One HTML document with its style and pictures inside; all text is escaped."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(Path(__file__).with_name("page.html").read_text("utf-8"))
    style = (resources.files("edgekit.drawing") / "style.css").read_text("utf-8")
    rendered = template.render(
        style=Markup(style),
        heading=tables.heading(result),
        networks=[_network(name, network) for name, network in result["networks"].items()],
        contests=tables.contests(result),
        failures=tables.failures(result),
        environments=tables.environments(result),
    )
    return rendered + "\n"


def _network(name: str, network: dict[str, Any]) -> dict[str, Any]:
    titles, cells = zip(*tables.columns(network), strict=True)
    files = tables.measured(network)
    # Where all agree, how far they are from the float network still tells them apart.
    key, height, shown = "snr_db", "Signal to noise", numbers.decibels
    if any("top1" in entry.get("quality", {}) for _, entry in files):
        key, height, shown = "top1", "Top-1", _percent
    return {
        "name": name,
        "height": height,
        "plot": _plot(files, key, f"{height} over latency of {name}", shown),
        "titles": titles,
        "rows": [
            {"name": who, "ours": who.startswith(OURS), "cells": [cell(entry) for cell in cells]}
            for who, entry in files
        ],
    }


def _plot(
    files: list[tuple[str, dict[str, Any]]], key: str, title: str, shown: Callable[[float], str]
) -> Markup | None:
    """Quantized files, for float ones would leave the others no room."""
    found = [
        (who, entry["latency_ms"]["p50"], entry["quality"][key])
        for who, entry in files
        if "latency_ms" in entry and entry.get("quality", {}).get(key) is not None and "float" not in who
    ]
    if not found:
        return None
    names = _names(found)
    points = [
        charts.Point(
            ms,
            value,
            f"{who}: {numbers.milliseconds(ms)}, {shown(value)}",
            "chosen" if who.startswith(OURS) else "good",
            names[who],
        )
        for who, ms, value in found
    ]
    return charts.scatter(
        points, title=title, x_limit=None, y_limit=None, x_shown=numbers.milliseconds, y_shown=shown
    )


def _names(found: list[tuple[str, float, float]]) -> dict[str, str]:
    """What stands beside each point; of those that lie on one another the first has the names of all."""
    wide = max(ms for _, ms, _ in found)
    high = (max(v for _, _, v in found) - min(v for _, _, v in found)) or 1.0
    heaps: list[list[tuple[str, float, float]]] = []
    for each in found:
        near = [
            heap
            for heap in heaps
            if abs(heap[0][1] - each[1]) < NEAR * wide and abs(heap[0][2] - each[2]) < NEAR * high
        ]
        if near:
            near[0].append(each)
        else:
            heaps.append([each])
    return {
        who: ", ".join(name for name, _, _ in heap) if index == 0 else ""
        for heap in heaps
        for index, (who, _, _) in enumerate(heap)
    }


def _percent(value: float) -> str:
    return f"{value:.2f}%"
