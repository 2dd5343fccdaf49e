"""Times layers one by one in the runtimes that will run them.

A layer stands in its file several times, so that the call is a small part, and what an empty call takes is taken off.
All layers of a batch run in turns, and each counts with its fastest turns: what disturbs a shared machine only ever
adds time. Where the fastest turns do not agree, more follow. A machine also changes its pace over minutes; every batch
measures one known layer, the yardstick, and is held against what that took when the table was begun.
"""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from edgekit.bench.layers.onnx_file import onnx_file
from edgekit.bench.layers.shape import LayerShape
from edgekit.bench.layers.store import Kept, keep, load, machine_key, name_of
from edgekit.bench.layers.tflite_file import tflite_file
from edgekit.bench.runners import open_onnx, tflite_runner
from edgekit.errors import UsageError

Step = Callable[[str], None]
Run = Callable[[], None]

# A time is settled when the fastest turns agree this well; until then there are more turns, so many at most.
FASTEST: Final = 3
AGREEMENT: Final = 0.02
ROUNDS: Final = 7
MOST_ROUNDS: Final = 42
WARM_UP: Final = 2
# A turn is long against the first call in it, which finds the caches full of the others' data.
TURN_NS: Final = 250_000
MOST_CALLS: Final = 64
# So much work stands in a file that the cost of the call is a few percent; int8 kernels do about this much in 60 µs.
FILE_MACS: Final = 9_000_000
MOST_COPIES: Final = 12
# Layers that take turns; all their files are open at once.
BATCH: Final = 48
# So much work is lost at most when somebody interrupts.
KEEP_S: Final = 10.0
# Less than the clock can tell: a layer costs something.
LEAST_MS: Final = 1e-5

YARDSTICK: Final = LayerShape("conv2d", 32, 32, (3, 3), (1, 1), (1, 1), (1, 1), 1, (16, 16))
# Small and large number of copies of the yardstick, between which the cost of the call shows.
FEW, MANY = 1, 9


def measure_layers(
    shapes: Sequence[LayerShape], runtime: str, *, store: Path | None = None, step: Step | None = None
) -> dict[LayerShape, float]:
    """Milliseconds of each layer in INT8 on one thread, as part of a network.

    Args:
        shapes: layers, in any order; doubles are measured once.
        runtime: "onnx" for ONNX Runtime or "tflite" for LiteRT.
        store: JSON file that keeps the times; None keeps nothing. See `default_store`.
        step: called with a line on the progress.

    Returns:
        Each shape to its milliseconds; those that `store` knows for this machine are not measured again.

    Raises:
        UsageError: an unknown runtime, one that is not installed, or one that refuses a layer.
    """
    if runtime not in _RUNNERS:
        raise UsageError(
            f"runtime {runtime!r}: no table of layers",
            expected=" or ".join(_RUNNERS),
            way_out="Name one of them.",
        )
    key = machine_key(runtime)
    known = load(store, key)
    unique = {name_of(shape): shape for shape in shapes}
    missing = [name for name in unique if name not in known.points]
    kept_at = time.monotonic()
    for start in range(0, len(missing), BATCH):
        if step is not None:
            step(f"layer latencies in {_NAMES[runtime]} · {start} of {len(missing)}")
        names = missing[start : start + BATCH]
        yardstick_ms, times = _measure([unique[name] for name in names], runtime, known.yardstick_ms)
        known = Kept(yardstick_ms, {**known.points, **dict(zip(names, times, strict=True))})
        if start + BATCH >= len(missing) or time.monotonic() - kept_at > KEEP_S:
            known, kept_at = keep(store, key, known), time.monotonic()
    return {shape: known.points[name_of(shape)] for shape in dict.fromkeys(shapes)}


def _measure(
    shapes: Sequence[LayerShape], runtime: str, yardstick_ms: float | None
) -> tuple[float | None, list[float]]:
    """Time a batch and hold it against the yardstick; returns what that took at first, and the layers' times."""
    copies = [copies_of(shape) for shape in shapes]
    files = [(YARDSTICK, FEW), (YARDSTICK, MANY), *zip(shapes, copies, strict=True)]
    with tempfile.TemporaryDirectory(prefix="edgekit-layers-") as folder:
        runs = [_RUNNERS[runtime](Path(folder), shape, n) for shape, n in files]
        few, many, *times = _settled(runs)
    one = (many - few) / (MANY - FEW)
    call_ms = max(few - one * FEW, 0.0)
    first = one if yardstick_ms is None or one <= 0 else yardstick_ms
    pace = first / one if one > 0 else 1.0
    alone = [(ms - call_ms) / n * pace for n, ms in zip(copies, times, strict=True)]
    return first if first > 0 else None, [max(ms, LEAST_MS) for ms in alone]


def copies_of(shape: LayerShape) -> int:
    """How often a layer stands in its file."""
    return int(np.clip(-(-FILE_MACS // shape.macs), 1, MOST_COPIES))


def _settled(runs: Sequence[Run]) -> list[float]:
    """Milliseconds of one call of each, in turns: the mean of the fastest turns."""
    calls = [_calls(run) for run in runs]
    turns: list[list[float]] = [[] for _ in runs]
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        for index in range(MOST_ROUNDS):
            open_ones = [i for i, times in enumerate(turns) if not _agree(times)]
            if not open_ones:
                break
            for i in open_ones[:: -1 if index % 2 else 1]:
                turns[i].append(_turn(runs[i], calls[i]))
    finally:
        if was_enabled:
            gc.enable()
    return [sum(sorted(times)[:FASTEST]) / FASTEST for times in turns]


def _agree(times: Sequence[float]) -> bool:
    if len(times) < ROUNDS:
        return False
    fastest = sorted(times)[:FASTEST]
    return fastest[-1] <= fastest[0] * (1 + AGREEMENT)


def _turn(run: Run, calls: int) -> float:
    """Milliseconds of one call, after one that brings the data near."""
    run()
    started = time.perf_counter_ns()
    for _ in range(calls):
        run()
    return (time.perf_counter_ns() - started) / calls / 1e6


def _calls(run: Run) -> int:
    """Calls in a turn, after a few to warm up."""
    fastest = float("inf")
    for _ in range(WARM_UP + 1):
        started = time.perf_counter_ns()
        run()
        fastest = min(fastest, time.perf_counter_ns() - started)
    return int(np.clip(TURN_NS / max(fastest, 1), 1, MOST_CALLS))


def _onnx(folder: Path, shape: LayerShape, copies: int) -> Run:
    """A call with its tensors bound: copying the results out is not the layer's cost."""
    import onnxruntime

    path = folder / "layer.onnx"
    path.write_bytes(onnx_file(shape, copies))
    session = open_onnx(path)
    binding = session.io_binding()
    generator = np.random.default_rng(0)
    for node in session.get_inputs():
        x = generator.integers(0, 256, node.shape, dtype=np.uint8)
        binding.bind_ortvalue_input(node.name, onnxruntime.OrtValue.ortvalue_from_numpy(x))
    for node in session.get_outputs():
        y = onnxruntime.OrtValue.ortvalue_from_shape_and_type(node.shape, np.uint8)
        binding.bind_ortvalue_output(node.name, y)

    def run() -> None:
        session.run_with_iobinding(binding)

    return run


def _tflite(folder: Path, shape: LayerShape, copies: int) -> Run:
    path = folder / "layer.tflite"
    path.write_bytes(tflite_file(shape, copies))
    return tflite_runner(path)


_RUNNERS: Final[Mapping[str, Callable[[Path, LayerShape, int], Run]]] = {"onnx": _onnx, "tflite": _tflite}
_NAMES: Final = {"onnx": "ONNX Runtime", "tflite": "LiteRT"}
