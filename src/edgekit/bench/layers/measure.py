"""Times layers one by one in the runtimes that will run them.

A layer stands in its file several times, so that the call is a small part, and what an empty call takes is taken off.
All layers of a batch take turns, beside a layer that tells quiet moments from busy ones; see `edgekit.bench.turns`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from edgekit.bench.layers.onnx_file import onnx_file
from edgekit.bench.layers.shape import LayerShape
from edgekit.bench.layers.store import Kept, keep, load, machine_key, name_of
from edgekit.bench.layers.tflite_file import tflite_file
from edgekit.bench.runners import open_onnx, tflite_runner
from edgekit.bench.turns import QUIET, Run, undisturbed
from edgekit.errors import UsageError

Step = Callable[[str], None]

# So much work stands in a file that the cost of the call is a few percent; int8 kernels do about this much in 60 µs.
FILE_MACS: Final = 9_000_000
MOST_COPIES: Final = 12
# Layers that take turns; all their files are open at once.
BATCH: Final = 48
# Less than the clock can tell: a layer costs something.
LEAST_MS: Final = 1e-5

# A layer that suffers most from company.
YARDSTICK: Final = LayerShape("conv2d", 16, 16, (3, 3), (1, 1), (1, 1), (1, 1), 1, (32, 32))
# Small and large number of copies of the yardstick, between which the cost of the call shows.
FEW, MANY = 1, 5


@dataclass(frozen=True, slots=True)
class _Batch:
    """What came of a batch.

    Attributes:
        times: milliseconds of its layers.
        yardstick_ms: what the yardstick took in the best moments meanwhile.
    """

    times: tuple[float, ...]
    yardstick_ms: float


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
    if missing:
        known = _extended(known, {name: unique[name] for name in missing}, runtime, store, step)
    return {shape: known.points[name_of(shape)] for shape in dict.fromkeys(shapes)}


def _extended(
    known: Kept, missing: Mapping[str, LayerShape], runtime: str, store: Path | None, step: Step | None
) -> Kept:
    """Measure in batches, those from busy moments once more, and keep what was measured."""

    def measured(batch: list[str], said: str) -> _Batch:
        if step is not None:
            step(f"layer latencies in {_NAMES[runtime]} · {said}")
        return _measure([missing[name] for name in batch], runtime, min(bests, default=None))

    names = list(missing)
    bests = [] if known.yardstick_ms is None else [known.yardstick_ms]
    found: list[tuple[list[str], _Batch]] = []
    for start in range(0, len(names), BATCH):
        batch = names[start : start + BATCH]
        found.append((batch, measured(batch, f"{start} of {len(names)}")))
        bests.append(found[-1][1].yardstick_ms)
    points = {name: ms for batch, of in found for name, ms in zip(batch, of.times, strict=True)}
    # How quiet the machine can be is known only now.
    busy = [batch for batch, of in found if of.yardstick_ms > QUIET * min(bests)]
    for index, batch in enumerate(busy):
        again = measured(batch, f"{index * BATCH} of {len(busy) * BATCH} once more")
        bests.append(again.yardstick_ms)
        points |= {name: min(points[name], ms) for name, ms in zip(batch, again.times, strict=True)}
    return keep(store, machine_key(runtime), Kept(min(bests), {**known.points, **points}))


def _measure(shapes: Sequence[LayerShape], runtime: str, best_ms: float | None) -> _Batch:
    """Time a batch.

    Args:
        shapes: its layers.
        runtime: "onnx" or "tflite".
        best_ms: what the yardstick took in the best moment so far, None where that is not known.
    """
    copies = [copies_of(shape) for shape in shapes]
    files = [(YARDSTICK, MANY), (YARDSTICK, FEW), *zip(shapes, copies, strict=True)]
    with tempfile.TemporaryDirectory(prefix="edgekit-layers-") as folder:
        runs = [_RUNNERS[runtime](Path(folder), shape, n) for shape, n in files]
        timed = undisturbed(runs, None if best_ms is None else best_ms * MANY)
    many, few, *times = timed.ms
    call_ms = max(few - max(many - few, 0.0) / (MANY - FEW) * FEW, 0.0)
    alone = ((ms - call_ms) / n for n, ms in zip(copies, times, strict=True))
    return _Batch(tuple(max(ms, LEAST_MS) for ms in alone), timed.yardstick_ms / MANY)


def copies_of(shape: LayerShape) -> int:
    """How often a layer stands in its file."""
    return int(np.clip(-(-FILE_MACS // shape.macs), 1, MOST_COPIES))


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
