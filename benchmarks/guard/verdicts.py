"""What moved: ratios read from pytest-benchmark's JSON, held against stored ones, and shown. Nothing here measures."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np

from benchmarks.machine import Machine
from edgekit.bench.timing import Ratio, ratio

SCHEMA: Final = 1
# Where the rounds of the reference lie in pytest-benchmark's `extra_info`, in seconds of one call.
REFERENCE: Final = "reference_s"
CALLS: Final = "calls"

WITHIN, SLOWER, FASTER = "within noise", "SLOWER", "faster"
NEW, GONE = "new", "not measured"


class GuardError(Exception):
    """Results that cannot be read; the message says what, what was expected, and the way out."""


@dataclass(frozen=True, slots=True)
class HotPath:
    """One hot path, measured.

    Attributes:
        ratio: time of one call over that of the reference, with its interval.
        ms: median of one call in milliseconds; for people, never compared.
    """

    ratio: Ratio
    ms: float


@dataclass(frozen=True, slots=True)
class Row:
    """One hot path, then and now.

    Attributes:
        name: of the path.
        then: as stored, None where it was not.
        now: as measured, None where it was not.
        change: of now over then; above 1 it is slower now. None without both.
        verdict: one of the constants above.
    """

    name: str
    then: HotPath | None
    now: HotPath | None
    change: Ratio | None
    verdict: str


def measured(documents: Sequence[Mapping[str, Any]]) -> dict[str, HotPath]:
    """Sum up the documents of pytest-benchmark, one of each process.

    Where memory lies differs between processes and moves a ratio by more than rounds of one process show. So the
    value is the median over the processes, and the interval reaches over those of all of them.

    Raises:
        GuardError: a benchmark has no reference, or not as many rounds of it.
    """
    found: dict[str, list[tuple[Ratio, float]]] = {}
    for document in documents:
        for each in document["benchmarks"]:
            name = _name(each["name"])
            took = np.asarray(each["stats"]["data"]) / each["extra_info"].get(CALLS, 1)
            reference = np.asarray(each["extra_info"].get(REFERENCE, ()))
            if took.shape != reference.shape or not len(took):
                raise GuardError(
                    f"{name}: {len(took)} rounds beside {len(reference)} of its reference; expected as many. "
                    "Measure it with the fixture `against`."
                )
            found.setdefault(name, []).append((ratio(took, reference), 1e3 * float(np.median(took))))
    return {name: _over_processes(each) for name, each in found.items()}


def compare(then: Mapping[str, HotPath], now: Mapping[str, HotPath], *, margin: float) -> tuple[Row, ...]:
    """Hold what was measured against what was stored, in the order of the suites.

    Args:
        then: name to what was stored.
        now: name to what was measured.
        margin: share that a path may move beyond noise before it is told: 0.05 lets 5% pass.
    """
    names = [*now, *(name for name in then if name not in now)]
    return tuple(_row(name, then.get(name), now.get(name), margin) for name in names)


def change(then: Ratio, now: Ratio) -> Ratio:
    """Now over then. Its interval takes the worst of both, so it is wider than one of 95%."""
    return Ratio(now.value / then.value, now.low / then.high, now.high / then.low)


def render(rows: Sequence[Row]) -> str:
    """The table, as Markdown; a ratio and a change with their intervals."""
    lines = [("name", "then", "now", "change", "verdict")]
    lines += [
        (each.name, _shown(each.then), _shown(each.now), _percent(each.change), each.verdict) for each in rows
    ]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    lines.insert(1, tuple("-" * width for width in widths))  # type: ignore[arg-type]
    return "\n".join(
        f"| {' | '.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))} |"
        for line in lines
    )


def stored(tree: object, isa: Sequence[str]) -> dict[str, HotPath] | None:
    """What was stored on machines with these extensions; None where nothing was.

    Args:
        tree: of the file, as JSON has it.
        isa: extensions of this machine.

    Raises:
        GuardError: the tree is no such file.
    """
    for entry in _entries(tree):
        if entry["machine"]["isa"] == list(isa):
            return {name: HotPath(Ratio(*each["ratio"]), each["ms"]) for name, each in entry["paths"].items()}
    return None


def known(tree: object) -> list[str]:
    """The machines that results are stored of, each with its extensions."""
    machines = [entry["machine"] for entry in _entries(tree)]
    return [f"{each['cpu']} ({', '.join(each['isa']) or 'no extensions'})" for each in machines]


def with_entry(tree: object, machine: Machine, now: Mapping[str, HotPath]) -> dict[str, Any]:
    """The tree with the results of this machine in place of those with the same extensions.

    Paths that were not measured now stay as they were stored.
    """
    before = stored(tree, machine["isa"]) or {}
    paths = {
        name: {"ratio": [round(part, 5) for part in asdict(each.ratio).values()], "ms": round(each.ms, 5)}
        for name, each in {**before, **now}.items()
    }
    others = [entry for entry in _entries(tree) if entry["machine"]["isa"] != machine["isa"]]
    return {"schema": SCHEMA, "entries": [*others, {"machine": machine, "paths": paths}]}


def _entries(tree: object) -> list[dict[str, Any]]:
    try:
        if tree["schema"] != SCHEMA:  # type: ignore[index]
            raise GuardError(f"schema {tree['schema']!r}; expected {SCHEMA}. Store anew with --update.")  # type: ignore[index]
        entries: list[dict[str, Any]] = tree["entries"]  # type: ignore[index]
        for entry in entries:
            _ = [*entry["machine"]["isa"], entry["machine"]["cpu"]]
            for name, each in entry["paths"].items():
                value, low, high = each["ratio"]
                if not (0 < low <= high and value > 0 and each["ms"] > 0):
                    raise GuardError(
                        f"{name}: the ratio {each['ratio']} is no [value, low, high] of numbers above 0. Store anew."
                    )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise GuardError(
            f"no results of the guard: {type(error).__name__} {error}; expected a file that --update wrote. "
            "Take the one of the repository, or remove it and store anew."
        ) from error
    return entries


def _name(test: str) -> str:
    """Of the path that a test measures; pytest's `-k` takes it as well."""
    return test.removeprefix("test_")


def _over_processes(each: Sequence[tuple[Ratio, float]]) -> HotPath:
    ratios = [found for found, _ in each]
    whole = Ratio(
        statistics.median(found.value for found in ratios),
        min(found.low for found in ratios),
        max(found.high for found in ratios),
    )
    return HotPath(whole, statistics.median(ms for _, ms in each))


def _row(name: str, then: HotPath | None, now: HotPath | None, margin: float) -> Row:
    if then is None or now is None:
        return Row(name, then, now, None, NEW if then is None else GONE)
    moved = change(then.ratio, now.ratio)
    if moved.low > 1 + margin:
        return Row(name, then, now, moved, SLOWER)
    return Row(name, then, now, moved, FASTER if moved.high < 1 / (1 + margin) else WITHIN)


def _shown(path: HotPath | None) -> str:
    if path is None:
        return "–"
    value, low, high = (f"{part:.3g}" for part in (path.ratio.value, path.ratio.low, path.ratio.high))
    return f"{value} [{low}, {high}]"


def _percent(found: Ratio | None) -> str:
    if found is None:
        return "–"
    value, low, high = (f"{100 * (part - 1):+.0f}" for part in (found.value, found.low, found.high))
    return f"{value}% [{low}, {high}]"
