"""`edgekit bench`: measures files on devices, compares them, and shows what came of it."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from edgekit.bench.compare import Comparison, comparisons, noise_warnings
from edgekit.bench.results import SCHEMA, ModelFile, Result, Spec
from edgekit.bench.targets import Told
from edgekit.errors import UsageError

DONE, UNREADABLE, INTERRUPTED = 0, 2, 130
LOCAL, EMULATED, REMOTE = "local", "arm64", "ssh://"
SUFFIXES: Final = (".onnx", ".tflite")
TRAINED: Final = (".pt", ".pt2", ".pth")
MOST_THREADS, MOST_BATCH = 1024, 4096


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of all devices.

    Attributes:
        results: one a device.
        comparisons: of each result.
        warnings: of each result.
        interrupted: devices after the last were not measured.
        refused: why the devices that have no result have none.
    """

    results: tuple[Result, ...]
    comparisons: tuple[tuple[Comparison, ...], ...]
    warnings: tuple[tuple[str, ...], ...]
    interrupted: bool
    refused: tuple[UsageError, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As `--json` prints it."""
        per_device = zip(self.results, self.comparisons, self.warnings, strict=True)
        return {
            "schema": SCHEMA,
            "interrupted": self.interrupted,
            "refused": [each.what for each in self.refused],
            "devices": [
                {"result": result.to_dict(), "comparisons": [asdict(c) for c in compared], "warnings": list(warned)}
                for result, compared, warned in per_device
            ],
        }  # fmt: skip

    @property
    def exit_code(self) -> int:
        """0, or 2 where a file could not be measured, or 130."""
        if self.interrupted:
            return INTERRUPTED
        return UNREADABLE if any(each.errors for each in self.results) else DONE


def spec_of(
    paths: Sequence[Path],
    *,
    threads: str | None = None,
    batch: str | None = None,
    seconds: float | None = None,
    sustained: float | None = None,
) -> Spec:
    """Read the options.

    Args:
        paths: of bundles and files.
        threads: numbers with commas.
        batch: numbers with commas.
        seconds: least time for each run.
        sustained: seconds of a run without pauses.

    Raises:
        UsageError: a value is wrong, or a path is no bundle, `.onnx` or `.tflite`.
    """
    spec = Spec(
        files=_files(paths),
        threads=_numbers("--threads", threads, MOST_THREADS),
        batches=_numbers("--batch", batch, MOST_BATCH),
    )
    return replace(
        spec,
        seconds=_seconds("--seconds", seconds, spec.seconds),
        sustained_s=_seconds("--sustained", sustained, spec.sustained_s),
    )


def measure_all(spec: Spec, devices: Sequence[str], reference: str, told: Callable[[str], Told]) -> Outcome:
    """Measure on one device after the other; Ctrl-C ends it, and neither that nor a device that fails loses the others.

    Args:
        spec: what to measure.
        devices: as they were asked for.
        reference: name of the file that the others are held against.
        told: gives a device's name the function that is told how far it is.

    Raises:
        UsageError: the first device cannot be reached, or lacks something.
        ProfileError: a device is not known.
        KeyboardInterrupt: Ctrl-C came before anything was measured.
    """
    measures = [(device, target(device)) for device in dict.fromkeys(devices)]
    results: list[Result] = []
    refused: list[UsageError] = []
    interrupted = False
    for device, measure in measures:
        try:
            results.append(measure(spec, told(device)))
            interrupted = results[-1].interrupted
        except UsageError as error:
            if not results:
                raise
            refused.append(error)
        except KeyboardInterrupt:
            if not results:
                raise
            interrupted = True
        if interrupted:
            break
    return Outcome(
        tuple(results),
        tuple(comparisons(result, reference) for result in results),
        tuple(noise_warnings(result) for result in results),
        interrupted,
        tuple(refused),
    )


def target(device: str) -> Callable[[Spec, Told], Result]:
    """Return how to measure on a device; only what it takes is imported.

    Raises:
        ProfileError: neither a machine nor a profile is of this name.
    """
    if device == LOCAL:
        from edgekit.bench.targets import local

        return lambda spec, told: local.measure(spec, told=told)
    if device.startswith(REMOTE):
        from edgekit.bench.targets import ssh

        return lambda spec, told: ssh.measure(spec, device, told=told)
    if device == EMULATED:
        from edgekit.bench.targets import emulated

        return lambda spec, told: emulated.measure(spec, told=told)
    from edgekit.bench.targets import predicted
    from edgekit_devices import find_profile

    profile = find_profile(device)
    return lambda spec, told: predicted.measure(spec, profile, told=told)


def bench(
    paths: Sequence[Path],
    *,
    devices: Sequence[str] = (),
    threads: str | None = None,
    batch: str | None = None,
    seconds: float | None = None,
    sustained: float | None = None,
    against: Path | None = None,
    html: Path | None = None,
    png: Path | None = None,
    out: Path | None = None,
    as_json: bool = False,
    console: Console,
) -> int:
    """Measure, show, and write what was asked for.

    Args:
        paths: bundles and files.
        devices: where; none is this machine.
        threads: as typed, numbers with commas.
        batch: as typed, numbers with commas.
        seconds: least time for each run.
        sustained: seconds without pauses.
        against: what the others are held against.
        html: where a page goes.
        png: where a picture goes.
        out: where the result goes as JSON.
        as_json: the result on stdout, and nothing else there.
        console: of stderr.

    Returns:
        The exit code.

    Raises:
        UsageError: an option, a path or a device is wrong, or a file cannot be written.
    """
    # The reference comes first, so that it is what the others are held against.
    every = [against, *paths] if against is not None else list(paths)
    spec = spec_of(every, threads=threads, batch=batch, seconds=seconds, sustained=sustained)
    _can_write(html, png, out)
    with shown(console) as told:
        outcome = measure_all(spec, devices or (LOCAL,), spec.files[0].name, told)
    if as_json:
        sys.stdout.write(json.dumps(outcome.to_dict(), indent=2, ensure_ascii=False) + "\n")
    else:
        from edgekit.bench.table import summary

        Console(highlight=False).print(summary(outcome.results, outcome.comparisons, outcome.warnings))
    _write(outcome, html=html, png=png, out=out)
    if outcome.refused and not outcome.interrupted:
        first, *others = outcome.refused
        for each in others:
            first.add_note(str(each))
        raise first
    return outcome.exit_code


@contextmanager
def shown(console: Console) -> Iterator[Callable[[str], Told]]:
    """Give the functions that show how far devices are.

    Args:
        console: of stderr; on a terminal a bar is drawn, elsewhere each step is one line.
    """
    if not console.is_terminal:
        yield lambda device: _Lines(console, device)
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.fields[device]}"),
        BarColumn(bar_width=24),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeRemainingColumn(),
        TextColumn("[dim]{task.description}", markup=True),
    )
    with Progress(*columns, console=console, transient=True) as bar:

        def of(device: str) -> Told:
            task = bar.add_task("", total=1.0, device=device)

            def told(share: float, what: str) -> None:
                # A file's name may hold square brackets, which are markup here.
                bar.update(task, completed=share, description=what.replace("[", r"\["))

            return told

        yield of


class _Lines:
    """A line when something else begins."""

    def __init__(self, console: Console, device: str) -> None:
        self.console, self.device, self.what = console, device, ""

    def __call__(self, share: float, what: str) -> None:
        del share
        if what != self.what:
            self.what = what
            self.console.print(f"{self.device}: {what}", markup=False, soft_wrap=True)


def _files(paths: Sequence[Path]) -> tuple[ModelFile, ...]:
    names: list[str] = []
    for path in paths:
        _check(path)
        choices = (path.resolve().name, str(path), *(f"{path} ({n})" for n in range(2, len(paths) + 2)))
        names.append(next(name for name in choices if name not in names))
    return tuple(ModelFile(name, str(path.resolve()), None) for name, path in zip(names, paths, strict=True))


def _check(path: Path) -> None:
    if path.suffix == ".mlpackage":
        raise UsageError(
            f"{path}: Core ML packages cannot be timed here",
            expected="a bundle, a .onnx or a .tflite file",
            way_out="Xcode times it on a Mac or a phone: Instruments, or the performance report of the package.",
        )
    if not path.exists():
        raise UsageError(
            f"{path}: no such file",
            expected="a bundle, a .onnx or a .tflite file",
            way_out="Check the path.",
        )
    if path.is_dir() and not (path / "manifest.json").is_file():
        raise UsageError(
            f"{path}: a directory without manifest.json",
            expected="a bundle",
            way_out="Give the directory that `edgekit compress` wrote, or a file in this one.",
        )
    if path.is_file() and path.suffix not in SUFFIXES:
        raise UsageError(
            f"{path}: not a file that a device runs",
            expected="a bundle, a .onnx or a .tflite file",
            way_out=f"Make it one first: edgekit compress {path.name}"
            if path.suffix in TRAINED
            else "Name a bundle that `edgekit compress` wrote, or a file in it.",
        )


def _numbers(option: str, text: str | None, most: int) -> tuple[int, ...]:
    if text is None:
        return (1,)
    parts = [part.strip() for part in text.split(",")]
    # `isdecimal` takes the digits of every script, and so does `int`.
    if not all(part.isascii() and part.isdecimal() and 1 <= int(part[:6]) <= most for part in parts):
        raise UsageError(
            f"{option} {text}",
            expected=f"whole numbers from 1 to {most} with commas, e.g. 1,4",
            way_out="Correct the value, or leave the option out for 1.",
        )
    return tuple(dict.fromkeys(int(part) for part in parts))


def _seconds(option: str, given: float | None, default: float) -> float:
    if given is None:
        return default
    if not 0 < given <= 86_400 or not math.isfinite(given):
        raise UsageError(
            f"{option} {given:g}",
            expected="seconds above 0, and a day at most",
            way_out="Correct the value, or leave the option out for its default.",
        )
    return given


def _can_write(html: Path | None, png: Path | None, out: Path | None) -> None:
    """Refuse now what would be refused after minutes of measuring."""
    for path in (html, png, out):
        if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
            what = "is a directory" if path.is_dir() else "its folder does not exist"
            raise UsageError(f"{path}: {what}", expected="the name of a file", way_out="Name another.")
    if png is not None:
        from edgekit.bench.picture import must_draw

        must_draw()


def _write(outcome: Outcome, *, html: Path | None, png: Path | None, out: Path | None) -> None:
    contents: list[tuple[Path, bytes]] = []
    if out is not None:
        contents.append((out, (json.dumps(outcome.to_dict(), indent=1, ensure_ascii=False) + "\n").encode()))
    if html is not None:
        from edgekit.bench.page import render_page

        contents.append((html, render_page(outcome.results, outcome.comparisons, outcome.warnings).encode()))
    if png is not None:
        from edgekit.bench.picture import png as drawn

        contents.append((png, drawn(outcome.results)))
    for path, content in contents:
        try:
            path.write_bytes(content)
        except OSError as error:
            raise UsageError(
                f"{path}: {error.strerror or error}",
                expected="a file that can be written",
                way_out="Name another.",
            ) from error
