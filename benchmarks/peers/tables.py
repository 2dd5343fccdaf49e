"""The results as Markdown, for people."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from benchmarks.peers.table import CANDIDATES, CONTESTS
from edgekit.drawing import numbers

Result = dict[str, Any]
NONE: Final = "–"


def columns(network: Result) -> list[tuple[str, Callable[[Result], str]]]:
    """Titles and cells of a network's table; top-1 only where there are labels."""
    labelled = any("top1" in entry.get("quality", {}) for entry in network["candidates"].values())
    top1 = [("top-1", lambda entry: _percent(entry.get("quality", {}).get("top1")))] if labelled else []
    return [
        ("latency", lambda entry: numbers.milliseconds(entry.get("latency_ms", {}).get("p50"))),
        ("agreement", lambda entry: _percent(entry.get("quality", {}).get("agreement"))),
        ("signal to noise", lambda entry: numbers.decibels(entry.get("quality", {}).get("snr_db"))),
        *top1,
        ("size", lambda entry: numbers.size(entry.get("size_bytes"))),
        ("memory when it runs", lambda entry: _megabytes(entry.get("memory_mb"))),
        ("time to compress", lambda entry: _seconds(entry.get("seconds"))),
        ("memory to compress", lambda entry: _megabytes(entry.get("peak_mb"))),
    ]


def measured(network: Result) -> list[tuple[str, Result]]:
    """Candidates that gave a file that runs, in the order of the table."""
    found = network["candidates"]
    names = [each.name for each in CANDIDATES if each.name in found]
    return [(name, found[name]) for name in names if "failed" not in found[name]]


def failures(result: Result) -> list[tuple[str, str]]:
    """What was not measured and why; a peer that is not installed is named once."""
    missing = {n: e["failed"] for n, e in result.get("environments", {}).items() if "failed" in e}
    found = [(name, f"does not install: {why}") for name, why in missing.items()]
    gone = {c.name for c in CANDIDATES if {c.environment, c.runtime} & set(missing)}
    for network, content in result["networks"].items():
        found += [
            (f"{name}, {network}", entry["failed"])
            for name, entry in content["candidates"].items()
            if "failed" in entry and name not in gone
        ]
    return found


def markdown(result: Result) -> str:
    """Every figure of one result file."""
    parts = [
        "# edgekit beside its peers\n",
        *(f"{line}\n" for line in heading(result)),
        _markdown_environments(result),
    ]
    for name, network in result["networks"].items():
        titles, cells = zip(*columns(network), strict=True)
        rows = [[who, *(cell(entry) for cell in cells)] for who, entry in measured(network)]
        parts += [f"\n## {name}\n", table(["", *titles], rows)]
    parts += ["\n## Ratio of latencies, ours ÷ theirs (median over rounds; at most)\n", _contests(result)]
    lost = failures(result)
    if lost:
        parts += ["\n## Not measured\n", table(["who", "why"], [[who, _plain(why)] for who, why in lost])]
    return "\n".join(parts) + "\n"


def heading(result: Result) -> list[str]:
    """What the figures were measured on, and what they are."""
    head = result["machine"]
    versions = ", ".join(f"{name} {value}" for name, value in head["versions"].items())
    return [
        f"{head['cpu']}, {' '.join(head['isa'])}; {versions}.",
        "One thread, one sample a call; latencies are medians of interleaved rounds. Agreement is with the float"
        " network, in percent of samples. Memory when it runs is what loading and predicting add to the process;"
        " time and memory to compress are of the whole process of the peer, from the float file to its own.",
    ]


def environments(result: Result) -> list[tuple[str, str]]:
    """Each environment with the versions in it."""
    return [
        (name, ", ".join(f"{each} {version}" for each, version in found["versions"].items()))
        for name, found in result.get("environments", {}).items()
        if "versions" in found
    ]


def contests(result: Result) -> tuple[list[str], list[list[str]]]:
    """Titles and rows of the ratios."""
    titles = ["", *(f"{ours} ÷ {theirs} (≤ {bound:.2f})" for ours, theirs, bound in CONTESTS)]
    rows = []
    for name, network in result["networks"].items():
        ratios = [network["ratios"].get(f"{ours}/{theirs}") for ours, theirs, _ in CONTESTS]
        rows.append([name, *(NONE if value is None else f"{value:.3f}" for value in ratios)])
    return titles, rows


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def _markdown_environments(result: Result) -> str:
    return table(["environment", "versions"], [list(each) for each in environments(result)])


def _contests(result: Result) -> str:
    return table(*contests(result))


def _plain(text: str) -> str:
    """Text that stays within its cell."""
    return " ".join(text.split()).replace("|", "\\|")


def _percent(value: float | None) -> str:
    return NONE if value is None else f"{value:.2f}"


def _megabytes(value: float | None) -> str:
    return NONE if value is None else f"{value:.0f} MB"


def _seconds(value: float | None) -> str:
    return NONE if value is None else f"{value:.1f} s"
