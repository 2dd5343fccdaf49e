"""Results as tables for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from edgekit.bench.compare import Comparison, slowing
from edgekit.bench.results import EMULATED, PREDICTED, Result, Run
from edgekit.drawing import numbers

NAME_WIDTH = 24
ESTIMATE = "an estimate, not a measurement"
FUNCTION_ONLY = "emulated: it runs there; the times say nothing about a real board"


def summary(
    results: Sequence[Result], comparisons: Sequence[Sequence[Comparison]], warnings: Sequence[Sequence[str]]
) -> RenderableType:
    """Return one table a device, then what was compared, failed and disturbed.

    Args:
        results: one a device.
        comparisons: of each result.
        warnings: of each result.
    """
    parts: list[RenderableType] = []
    for result, compared, warned in zip(results, comparisons, warnings, strict=True):
        parts += [Text("")] if parts else []
        parts += [_title(result), *([_table(result)] if result.runs else [])]
        parts += [Text(f"· {each}", style="dim") for each in notes(result)]
        parts += [
            Text(f"  {compared_as(each, result)}", style=_TONES.get(each.verdict, "")) for each in compared
        ]
        parts += [Text(f"– {each.name}: {each.what}", style="dim") for each in result.skipped]
        parts += [Text(f"! {each}", style="yellow") for each in warned]
        parts += [Text(f"✗ {each.name}: {each.what}", style="red") for each in result.errors]
        if result.interrupted:
            parts.append(Text("! interrupted: figures are of what was measured by then", style="yellow"))
    return Group(*parts)


def notes(result: Result) -> list[str]:
    """What a reader should know of the figures, each sentence once."""
    said = {EMULATED: [FUNCTION_ONLY], PREDICTED: [ESTIMATE]}.get(result.kind, [])
    titles: dict[str, list[str]] = {}
    for run in result.runs:
        for note in run.notes:
            titles.setdefault(note, []).append(label(run, result))
    of_runs = [
        f"{named[0]}: {note}" if len(named) == 1 else f"{counted(len(named), 'run')}: {note}"
        for note, named in titles.items()
    ]
    of_heat = [
        f"{each.name} {each.format} without pauses: {slowing(each.latency_ms):+.0%} after {each.at_s[-1]:.0f} s"
        for each in result.sustained
        if each.at_s
    ]
    return list(dict.fromkeys([*said, *of_runs, *of_heat]))


def label(run: Run, result: Result) -> str:
    """Title of a run with what tells it from the others of its file."""
    threads = f", {counted(run.threads, 'thread')}" if len({r.threads for r in result.runs}) > 1 else ""
    batch = f", batch {run.batch}" if len({r.batch for r in result.runs}) > 1 else ""
    return f"{run.title}{threads}{batch}"


def counted(n: int, noun: str) -> str:
    """1 thread, 2 threads."""
    return f"{n} {noun}{'s' if n != 1 else ''}"


def machine_line(result: Result) -> str:
    """What it was measured on, in one line."""
    machine = result.machine
    runtimes = [f"{name} {version}" for name, version in machine.runtimes.items() if name in _RUNTIMES]
    parts = (machine.model, machine.cpu, counted(machine.cores, "core"), ", ".join(runtimes))
    return " · ".join(part for part in parts if part)


_RUNTIMES = ("onnxruntime", "onnxruntime-gpu", "ai-edge-litert", "tflite-runtime")
_TONES = {"faster": "green", "slower": "red"}


def _title(result: Result) -> Text:
    return Text.assemble((result.device, "bold"), (f"  {machine_line(result)}", "dim"))


def compared_as(comparison: Comparison, result: Result) -> str:
    """A comparison with what tells it from the others of its file."""
    parts = []
    if len({run.threads for run in result.runs}) > 1:
        parts.append(counted(comparison.threads, "thread"))
    if len({run.batch for run in result.runs}) > 1:
        parts.append(f"batch {comparison.batch}")
    return f"{', '.join(parts)}: {comparison}" if parts else str(comparison)


def _table(result: Result) -> Table:
    """One row a run. In a narrow terminal names break, and figures do not; the page and the JSON have more of them."""
    many_threads = len({run.threads for run in result.runs}) > 1
    many_batches = len({run.batch for run in result.runs}) > 1
    joules = any(run.energy_mj is not None for run in result.runs)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("", max_width=NAME_WIDTH, overflow="fold")
    figures = ("estimate", "from", "to") if result.kind == PREDICTED else ("p50", "p90", "p99")
    more = () if result.kind == PREDICTED else ("start", "memory")
    optional = (*(["thr."] if many_threads else []), *(["batch"] if many_batches else []))
    for title in (*optional, *figures, "per s", *more, *(["mJ"] if joules else [])):
        table.add_column(title, justify="right", no_wrap=True)
    for run in result.runs:
        table.add_row(
            Text(run.title),  # which is no markup
            *([str(run.threads)] if many_threads else []),
            *([str(run.batch)] if many_batches else []),
            *_latencies(run, result),
            rate(run.per_s),
            *(_start(run) if more else ()),
            *([numbers.NONE if run.energy_mj is None else f"{run.energy_mj:.3g}"] if joules else []),
        )
    return table


def _latencies(run: Run, result: Result) -> Iterator[str]:
    if result.kind == PREDICTED:
        low, high = run.interval_ms or (None, None)
        yield from (f"≈ {numbers.milliseconds(run.latency_ms.p50)}", numbers.milliseconds(low))
        yield numbers.milliseconds(high)
        return
    yield from (numbers.milliseconds(v) for v in (run.latency_ms.p50, run.latency_ms.p90, run.latency_ms.p99))


def _start(run: Run) -> Iterator[str]:
    yield numbers.milliseconds(run.cold_start_ms)
    yield megabytes(run.memory_mb.peak)


def rate(per_s: float) -> str:
    """Samples a second: 637, 12.5."""
    return f"{per_s:,.0f}" if per_s >= 100 else f"{per_s:.3g}"


def megabytes(mb: float | None) -> str:
    """Memory: 98 MB."""
    return numbers.NONE if mb is None else f"{mb:.0f} MB"
