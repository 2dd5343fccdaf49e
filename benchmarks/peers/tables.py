"""The results as Markdown, for people."""

from __future__ import annotations

from typing import Any

from benchmarks.peers.table import CANDIDATES, CONTESTS

Result = dict[str, Any]


def markdown(result: Result) -> str:
    """Latency, contests and accuracy of one result file."""
    head = result["machine"]
    versions = ", ".join(f"{name} {value}" for name, value in head["versions"].items())
    parts = [
        "# edgekit beside its peers\n",
        f"{head['cpu']}, {' '.join(head['isa'])}; {versions}.\n",
        "## Latency, milliseconds a call, one thread, median of interleaved rounds\n",
        _grid(result, [c.name for c in CANDIDATES if c.timed], _latency),
        "\n## Ratio of latencies, ours ÷ theirs (median over rounds; at most)\n",
        _contests(result),
        "\n## Agreement with the float network in percent (signal to noise, top-1 where there are labels)\n",
        _grid(result, [c.name for c in CANDIDATES], _quality),
    ]
    return "\n".join(parts) + "\n"


def _grid(result: Result, columns: list[str], cell: Any) -> str:
    rows = ["| network | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, network in result["networks"].items():
        cells = [cell(network["candidates"].get(column, {})) for column in columns]
        rows.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def _latency(entry: Result) -> str:
    if "failed" in entry:
        return "failed"
    return f"{entry['latency_ms']['p50']:.3f}" if "latency_ms" in entry else "–"


def _quality(entry: Result) -> str:
    if "failed" in entry:
        return "failed"
    if "quality" not in entry:
        return "–"
    figures = entry["quality"]
    top1 = f", top-1 {figures['top1']:.2f}" if "top1" in figures else ""
    return f"{figures['agreement']:.2f} ({figures['snr_db']:.1f} dB{top1})"


def _contests(result: Result) -> str:
    columns = [f"{ours} ÷ {theirs} (≤ {bound:.2f})" for ours, theirs, bound in CONTESTS]
    rows = ["| network | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, network in result["networks"].items():
        ratios = [network["ratios"].get(f"{ours}/{theirs}") for ours, theirs, _ in CONTESTS]
        cells = ["–" if value is None else f"{value:.3f}" for value in ratios]
        rows.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(rows)
