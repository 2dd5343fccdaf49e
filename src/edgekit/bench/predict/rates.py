"""How fast a kernel works on a shape that nobody timed, from shapes that a calibration did time.

The rate (work a millisecond) of each kind is a Gaussian process over the logarithms of its shape. Shapes beyond all
that was timed get the rate of the edge. With several threads it is the rate of one thread and another process for how
much more they do: that is smoother, and its times are noisier, since a neighbour may keep one processor of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from edgekit.bench.predict.ops import Op
from edgekit.bench.predict.process import Process, Vector
from edgekit_devices import Calibration, Point

# Kinds that were not timed are taken for others that do about as much for each element.
LIKE: Final = {
    "recurrent": "linear",
    "einsum": "matmul",
    "matmul": "linear",
    "depthwise": "conv",
    "transposed": "conv",
    "grouped": "conv",
    "volume": "conv",
    "linear": "conv",
    "mul": "add",
    "clip": "add",
    "prelu": "clip",
    "choose": "clip",
    "reduce": "add",
    "convert": "add",
    "move": "add",
    "copy": "move",
    "blocks": "move",
    "slice": "move",
    "pad": "move",
    "mirror": "transpose",
    "shuffle": "transpose",
    "nearest": "move",
    "repeat": "nearest",
    "transpose": "move",
    "pool": "reduce",
    "average": "pool",
    "strip": "pool",
    "window": "pool",
    "resize": "transpose",
    "activation": "add",
    "gelu": "activation",
    "elu": "activation",
    "softplus": "gelu",
    "collapse": "reduce",
    "norm": "activation",
    "softmax": "activation",
}
# Points that say how fast weights come in, by how many bytes there are altogether.
STREAM: Final = "stream"
# Points that say what the least operator costs among so many: what a runtime keeps of each leaves the caches, too.
CROWD: Final = "crowd"
# Counts of channels that kernels make or take at once.
BLOCK, QUARTER = 16, 4
# A timed operator is at least this share more than the cheapest of all.
LEAST: Final = 0.1
# Variances of what several threads bring, a logarithm: times are off by a tenth at least.
GAIN_NOISES: Final = (0.01, 0.2)


@dataclass(frozen=True)
class _Kind:
    """Timed shapes of one kind with what follows for others: the sum of processes."""

    processes: tuple[Process, ...]
    low: Vector
    high: Vector

    @classmethod
    def of(cls, points: Sequence[Point], op_ms: float) -> _Kind:
        shapes = _shapes(points)
        return cls((Process.fitted(shapes, _log_rates(points, op_ms)),), shapes.min(0), shapes.max(0))

    def with_threads(
        self, threads: int, timed: Sequence[tuple[Point, Point]], op_ms: float, alone_ms: float
    ) -> _Kind:
        """As many threads instead of one.

        Args:
            threads: how many.
            timed: the same operator with them, and with one.
            op_ms: least time of any operator with them.
            alone_ms: and with one.
        """
        together, alone = zip(*timed, strict=True)
        gains = _log_rates(together, op_ms) - _log_rates(alone, alone_ms)
        shapes = _shapes(together)
        more = Process.fitted(shapes, np.minimum(gains, math.log(threads)), GAIN_NOISES)
        return _Kind((*self.processes, more), self.low, self.high)

    def log_rate(self, shape: tuple[int, int, int, int]) -> float:
        point = np.clip(np.array(_coordinates(shape)), self.low, self.high)
        return sum(process.at(point) for process in self.processes)


def _shapes(points: Sequence[Point]) -> Vector:
    return np.array([_coordinates(point.shape) for point in points])


def _log_rates(points: Sequence[Point], op_ms: float) -> Vector:
    net = np.array([max(point.ms - op_ms, LEAST * point.ms) for point in points])
    rates: Vector = np.log(np.array([point.work for point in points]) / net)
    return rates


def _coordinates(shape: tuple[int, int, int, int]) -> list[float]:
    """Logarithms of a shape, and of how much more its channels are in whole blocks."""
    depth, outs = shape[:2]
    waste = (_rounded_up(outs, BLOCK), _rounded_up(depth, BLOCK), _rounded_up(depth, QUARTER))
    return [*(math.log2(n) for n in shape), *waste]


def _rounded_up(n: int, block: int) -> float:
    return math.log2(-(-n // block) * block / n) if n > 1 else 0.0


@dataclass(frozen=True)
class Rates:
    """A calibration that answers for any shape.

    Attributes:
        calibration: what was timed.
        single: the same with one thread, where that was timed, too.
    """

    calibration: Calibration
    single: Calibration | None = None
    _points: dict[str, list[Point]] = field(init=False, repr=False, compare=False)
    _kinds: dict[str, _Kind] = field(init=False, repr=False, compare=False)
    _streams: list[tuple[float, float]] = field(init=False, repr=False, compare=False)
    _crowds: list[tuple[float, float]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        by_kind: dict[str, list[Point]] = {}
        for point in self.calibration.points:
            by_kind.setdefault(point.kind, []).append(point)
        streams = by_kind.pop(STREAM, [])
        object.__setattr__(self, "_points", by_kind)
        # Fitted when they are asked for.
        object.__setattr__(self, "_kinds", {})
        # Total bytes and bytes a millisecond, ascending.
        found = sorted((1024.0 * point.shape[3], point.work / point.ms) for point in streams)
        object.__setattr__(self, "_streams", found)
        # Operators and milliseconds of one, ascending.
        least = self.calibration.op_ms
        crowds = sorted((float(point.shape[3]), max(point.ms, least)) for point in by_kind.pop(CROWD, []))
        object.__setattr__(self, "_crowds", [(1.0, least), *crowds])

    def ms(self, op: Op, total_bytes: int = 0, count: int = 1) -> float:
        """Milliseconds of an operator inside a network: what it computes or what it reads, whichever takes longer.

        Args:
            op: the operator.
            total_bytes: of all weights of the file, which pass through the caches between two uses of one.
            count: of all operators of the file.

        Raises:
            ValueError: nothing like it was timed.
        """
        counts, least = np.array(self._crowds).T
        starts = float(np.interp(math.log(max(1, count)), np.log(counts), least))
        return starts + max(self._computes(op), self._reads(op, total_bytes))

    def _reads(self, op: Op, total_bytes: int) -> float:
        """Of its weights, by the bytes a millisecond that came in from as many bytes altogether."""
        if not self._streams or not op.weight_bytes:
            return 0.0
        sizes, rates = np.log(np.array(self._streams)).T
        rate = float(np.exp(np.interp(math.log(max(1, total_bytes)), sizes, rates)))
        return op.weight_bytes / rate

    def _computes(self, op: Op) -> float:
        kind: Any = op.kind
        while kind not in self._points:
            if kind not in LIKE:
                raise ValueError(f"{op.kind}: nothing like it in a calibration of {sorted(self._points)}")
            kind = LIKE[kind]
        if kind not in self._kinds:
            self._kinds[kind] = self._fitted(self._points[kind])
        rate = float(np.exp(self._kinds[kind].log_rate(op.shape)))
        return op.work / rate

    def _fitted(self, points: Sequence[Point]) -> _Kind:
        known, single = self.calibration, self.single
        if single is not None:
            alone = {(point.kind, point.shape): point for point in single.points}
            timed = [(each, alone.get((each.kind, each.shape))) for each in points]
            pairs = [(each, other) for each, other in timed if other is not None]
            if len(pairs) == len(points):
                one = _Kind.of([other for _, other in pairs], single.op_ms)
                return one.with_threads(known.threads, pairs, known.op_ms, single.op_ms)
        return _Kind.of(points, known.op_ms)
