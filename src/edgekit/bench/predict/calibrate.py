"""Times single operators on a device and writes a profile with what they took.

A file holds its operator several times, so that the call is a small part of it; what an empty call takes is taken off.
Here all files take turns and the fastest turn counts, as in `edgekit.bench.layers`; over SSH the harness does that.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from edgekit.bench.layers import LayerShape
from edgekit.bench.layers.float_onnx import float_onnx_file
from edgekit.bench.layers.measure import BATCH, YARDSTICK, copies_of
from edgekit.bench.layers.onnx_file import onnx_file
from edgekit.bench.layers.tflite_file import tflite_file
from edgekit.bench.predict.light import stands_alone
from edgekit.bench.predict.onnx_chains import onnx_chain
from edgekit.bench.predict.ops import BYTES, MACS, PRECISIONS, elementwise
from edgekit.bench.predict.probe import LINKS, Probe
from edgekit.bench.predict.probes import ahead_of, blocks_op, is_turned, op_of, probes
from edgekit.bench.predict.rates import CROWD, STREAM
from edgekit.bench.predict.tflite_chains import tflite_chain
from edgekit.bench.results import ModelFile, Spec
from edgekit.bench.runners import open_onnx, runner, tflite_runner
from edgekit.bench.targets import Told, silent
from edgekit.bench.turns import TURNS, WARM_UP, undisturbed
from edgekit.errors import UsageError
from edgekit_devices import Calibration, Point, Profile

FORMATS: Final = ("onnx", "tflite")
# A short chain tells a call from its operators, long ones what an operator costs among so many.
FEW_LINKS: Final = 1
MANY_LINKS: Final = (250, 1000, 4000)
TINY: Final = 64
# What the caches next to a core hold, of a small one, too.
NEAR_BYTES: Final = 2**18
# The system wakes threads on one core now and then, where they win nothing over one thread, for whole turns.
TURNS_TOGETHER: Final = 12
# A batch waits so long for a quiet machine; there are some 130.
WAIT_S: Final = 10.0
LEAST_MS: Final = 1e-6

CHAINS: Final = {"onnx": onnx_chain, "tflite": tflite_chain}

Times = Callable[[Mapping[str, Path], int], Mapping[str, float]]
"""Milliseconds of one call of each file with so many threads."""


def calibrate(
    base: Profile,
    *,
    device: str = "local",
    threads: Sequence[int] = (1,),
    formats: Sequence[str] = FORMATS,
    passes: int = 1,
    told: Told = silent,
) -> Profile:
    """Time operators on a device.

    Args:
        base: what else is known of it; its own calibration is replaced.
        device: "local", or `ssh://[user@]host[:port]`.
        threads: numbers of threads to calibrate with.
        formats: of "onnx" and "tflite".
        passes: over everything, minutes apart; the quickest of each counts, where a machine is now and then busy.
        told: how far it is.

    Raises:
        UsageError: the device cannot be reached, or a runtime is not there.
    """
    times = local_times() if device == "local" else _remote_times(device)
    calls = local_times(runner) if device == "local" else times
    tables = [(f, p, n) for f in formats for p in PRECISIONS for n in threads] * passes
    found: dict[tuple[str, str, int], Calibration] = {}
    for index, (format, precision, n) in enumerate(tables):

        def part(share: float, at: int = index, what: str = f"{format} {precision} with {n} threads") -> None:
            told((at + share) / len(tables), what)

        table = _table(format, precision, n, times, calls, part)
        known = found.get((format, precision, n))
        found[format, precision, n] = quicker(known, table) if known else table
    sources = {**base.sources, "calibration": "measured"}
    return replace(base, threads=max(threads), calibration=tuple(found.values()), sources=sources)


def quicker(one: Calibration, other: Calibration) -> Calibration:
    """The quicker of both for each operator; they timed the same."""
    points = zip(one.points, other.points, strict=True)
    return replace(
        one,
        call_ms=min(one.call_ms, other.call_ms),
        op_ms=min(one.op_ms, other.op_ms),
        points=tuple(min(pair, key=lambda point: point.ms) for pair in points),
    )


def _table(
    format: str, precision: str, threads: int, times: Times, calls: Times, part: Callable[[float], None]
) -> Calibration:
    """Everything of one runtime, precision and number of threads; `calls` are as a user makes them."""
    empty = Probe(elementwise("add", precision, TINY, wide=2), dims=(1, 1, 1, TINY))
    wanted = probes(format, precision)
    ahead = list(dict.fromkeys(shape for probe in wanted if (shape := ahead_of(probe, format)) is not None))
    contents = [
        *(partial(content_of, probe, format) for probe in wanted),
        *(partial(float_onnx_file, shape, 1) for shape in ahead),
    ]
    ms: list[float] = []
    with tempfile.TemporaryDirectory(prefix="edgekit-calibrate-") as folder:
        chains: dict[str, Path] = {}
        for n in (FEW_LINKS, *MANY_LINKS):
            chains[f"chain{n}"] = Path(folder) / f"chain{n}.{format}"
            chains[f"chain{n}"].write_bytes(CHAINS[format](empty, n))
        crowds, short = dict(times(chains, threads)), f"chain{FEW_LINKS}"
        for start in range(0, len(contents), BATCH):
            part(start / len(contents))
            batch: dict[str, Path] = {}
            for i, content in enumerate(contents[start : start + BATCH], start):
                batch[f"{i}"] = Path(folder) / f"{i}.{format}"
                batch[f"{i}"].write_bytes(content())
            took = times({short: chains[short], **batch}, threads)
            crowds[short] = min(crowds[short], took[short])
            ms += [took[name] for name in batch]
            for path in batch.values():
                path.unlink()
        whole = calls({short: chains[short]}, threads)[short]
    op_ms = max((crowds[f"chain{MANY_LINKS[0]}"] - crowds[short]) / (MANY_LINKS[0] - FEW_LINKS), LEAST_MS)
    bound_ms, call_ms = (max(t - FEW_LINKS * op_ms, 0.0) for t in (crowds[short], whole))
    # Turning and the layer of one pixel are two operators.
    turning = {
        shape: max(t - bound_ms - 2 * op_ms, LEAST_MS)
        for shape, t in zip(ahead, ms[len(wanted) :], strict=True)
    }
    points = [
        _point(p, t, bound_ms, op_ms, turning[shape] if (shape := ahead_of(p, format)) else 0.0)
        for p, t in zip(wanted, ms[: len(wanted)], strict=True)
    ]
    points += [_turning_point(shape, t) for shape, t in turning.items() if is_turned(shape)]
    for n in MANY_LINKS:
        alone = max((crowds[f"chain{n}"] - bound_ms) / n, LEAST_MS)
        points.append(Point(CROWD, (1, 1, 1, n), n, alone))
    return Calibration(format, precision, threads, call_ms, op_ms, tuple(points))


def _point(probe: Probe, ms: float, call_ms: float, op_ms: float, turning_ms: float) -> Point:
    """Of one operator, of what its file took.

    Args:
        probe: the operator.
        ms: of the file.
        call_ms: of a call.
        op_ms: least of an operator.
        turning_ms: of what the file reads, once for layers side by side and for each of other operators.
    """
    times = 1 if probe.layer is not None else count_of(probe)
    alone = max((ms - call_ms - times * turning_ms) / count_of(probe), LEAST_MS)
    if probe.copies is not None:
        kilobytes = probe.copies * probe.op.weight_bytes // 1024
        reading_ms = max(alone - op_ms, LEAST_MS)
        return Point(STREAM, (1, 1, 1, kilobytes), probe.op.weight_bytes, reading_ms)
    return Point(probe.op.kind, probe.op.shape, probe.op.work, alone)


def _turning_point(ahead: LayerShape, ms: float) -> Point:
    op = blocks_op(ahead)
    return Point(op.kind, op.shape, op.work, ms)


def count_of(probe: Probe) -> int:
    """How often an operator stands in its file: not so often that what it reads leaves the caches, unless it is to.

    In a network it reads what the operator before it wrote, and its weights come in as fast as `STREAM` points say.
    """
    if probe.copies is not None:
        return probe.copies
    if probe.layer is not None:
        return min(copies_of(probe.layer), _near(probe.op.weight_bytes))
    if probe.op.kind in MACS:
        _, outs, _, positions = probe.op.shape
        return min(LINKS, _near(outs * positions * BYTES[probe.op.precision]))
    return min(LINKS, _near(probe.op.moved_bytes)) if stands_alone(probe.op) else LINKS


def _near(size: int) -> int:
    """How many of so many bytes the caches next to a core hold; one at least."""
    return max(1, NEAR_BYTES // max(1, size))


def content_of(probe: Probe, format: str) -> bytes:
    """The bytes of the file that times a probe."""
    if probe.layer is None:
        return CHAINS[format](probe, count_of(probe))
    copies, floating = count_of(probe), probe.op.precision == "float32"
    if format == "tflite":
        return tflite_file(probe.layer, copies, floating=floating)
    return (float_onnx_file if floating else onnx_file)(probe.layer, copies)


def _written(path: Path, probe: Probe) -> Path:
    path.write_bytes(content_of(probe, path.suffix[1:]))
    return path


def local_times(run: Callable[..., Callable[[], None]] | None = None) -> Times:
    """Times files here, beside a yardstick that tells quiet moments from busy ones; how quick it is at best is kept.

    Args:
        run: makes the call of a file as a user does, with `threads`; None is for operators, and binds results, so
            that nothing is copied out.
    """
    best: dict[tuple[str, int], float] = {}

    def times(files: Mapping[str, Path], threads: int) -> Mapping[str, float]:
        format = next(iter(files.values())).suffix[1:]
        with tempfile.TemporaryDirectory(prefix="edgekit-yardstick-") as folder:
            yardstick = _written(
                Path(folder) / f"yardstick.{format}", Probe(op_of(YARDSTICK, "int8"), YARDSTICK)
            )
            make = run or RUNNERS[format]
            runs = [make(path, threads=threads) for path in (yardstick, *files.values())]
            turns = TURNS if threads == 1 else TURNS_TOGETHER
            warm = WARM_UP if run else 1
            known = best.get((format, threads))
            timed = undisturbed(runs, known, turns=turns, warm=warm, wait_s=WAIT_S)
        best[format, threads] = min(timed.yardstick_ms, known or timed.yardstick_ms)
        return dict(zip(files, timed.ms[1:], strict=True))

    return times


def _remote_times(device: str) -> Times:
    """Times files on another machine by its harness; the fastest round counts."""
    from edgekit.bench.targets import ssh

    def times(files: Mapping[str, Path], threads: int) -> Mapping[str, float]:
        named = tuple(ModelFile(name, str(path)) for name, path in files.items())
        # These files are our own, and a fresh process for each would take a small board an hour.
        spec = Spec(
            named, threads=(threads,), seconds=0.05, min_rounds=5, warmup=3, cold_starts=0, alone=False
        )
        result = ssh.measure(spec, device)
        if result.errors:
            raise UsageError(
                f"{device}: {result.errors[0].what}",
                expected="a runtime for every file",
                way_out=f"Install onnxruntime and ai-edge-litert there, or name one: --format {'|'.join(FORMATS)}",
            )
        return {run.name: min(run.rounds_ms) for run in result.runs}

    return times


def _bound(path: Path, *, threads: int) -> Callable[[], None]:
    """A call with its tensors bound: copying results out is not the operator's cost."""
    import onnxruntime

    session = open_onnx(path, threads=threads)
    binding, generator = session.io_binding(), np.random.default_rng(0)
    types: Mapping[str, Any] = {"tensor(uint8)": np.uint8, "tensor(float)": np.float32}
    for node in session.get_inputs():
        # Of both signs: some kernels ask for it element by element.
        drawn = (
            generator.standard_normal if node.type == "tensor(float)" else partial(generator.integers, 0, 256)
        )
        x = drawn(size=node.shape).astype(types[node.type])
        binding.bind_ortvalue_input(node.name, onnxruntime.OrtValue.ortvalue_from_numpy(x))
    for node in session.get_outputs():
        y = onnxruntime.OrtValue.ortvalue_from_shape_and_type(node.shape, types[node.type])
        binding.bind_ortvalue_output(node.name, y)
    return lambda: session.run_with_iobinding(binding)


RUNNERS: Final[Mapping[str, Callable[..., Callable[[], None]]]] = {"onnx": _bound, "tflite": tflite_runner}


def to_toml(profile: Profile) -> str:
    """A profile as a file that `read_profile` reads."""
    return "\n".join(_lines(profile)) + "\n"


def _lines(profile: Profile) -> Iterator[str]:
    plain = ("title", "isa", "features", "cores", "preferred_format", "backend", "delegate", "threads")
    more = (
        "int8_saturates",
        "wheels",
        "l3_kb",
        "memory_mb",
        "bandwidth_gb_s",
        "flash_kb",
        "ram_kb",
        "thermal",
        "notes",
    )
    for key in (*plain, *more):
        value = getattr(profile, key)
        if value is not None:
            yield f"{key} = {_toml(value)}"
    for cluster in profile.processors:
        yield "\n[[processors]]"
        for key in ("core", "count", "ghz", "l1_kb", "l2_kb"):
            if getattr(cluster, key) is not None:
                yield f"{key} = {_toml(getattr(cluster, key))}"
    for table in profile.calibration:
        yield "\n[[calibration]]"
        for key in ("format", "precision", "threads", "call_ms", "op_ms"):
            yield f"{key} = {_toml(getattr(table, key))}"
        yield "points = ["
        for point in table.points:
            yield f"    {_toml((point.kind, *point.shape, point.work, point.ms))},"
        yield "]"
    yield "\n[sources]"
    for key, source in profile.sources.items():
        yield f"{key} = {_toml(source)}"


def _toml(value: Any) -> str:
    """Strings of TOML are those of JSON but for DEL, which no profile has."""
    import json

    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, float):
        rounded = float(f"{value:.5g}")
        return repr(rounded)
    return json.dumps(value, ensure_ascii=False)


def default_threads() -> tuple[int, ...]:
    """1, 2, 4, … and all cores of this machine."""
    cores = os.cpu_count() or 1
    return tuple(sorted({cores, *(2**i for i in range(cores.bit_length()) if 2**i <= cores)}))
