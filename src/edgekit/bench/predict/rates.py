"""How fast a kernel works on a shape that nobody timed, from shapes that a calibration did time.

The rate (work a millisecond) of each kind follows a trend over the logarithms of its shape, fitted by least squares;
what the trend misses at the nearest timed shapes is added. Shapes beyond all that was timed get the rate of the edge.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edgekit.bench.predict.ops import Op
from edgekit_devices import Calibration, Point

Vector = NDArray[np.float64]

# Kinds that were not timed are taken for others that do about as much for each element.
LIKE: Final = {
    "recurrent": "linear",
    "matmul": "linear",
    "depthwise": "conv",
    "transposed": "conv",
    "linear": "conv",
    "mul": "add",
    "clip": "add",
    "reduce": "add",
    "convert": "add",
    "move": "add",
    "transpose": "move",
    "pool": "reduce",
    "average": "pool",
    "resize": "transpose",
    "activation": "add",
    "gelu": "activation",
    "norm": "activation",
    "softmax": "activation",
}
# Points that say how fast weights come in, by how many bytes there are altogether.
STREAM: Final = "stream"
NEIGHBOURS: Final = 4
# Kernels of other sizes are further apart than other counts of channels.
WEIGHTS: Final = np.array([1.0, 1.0, 2.0, 0.7, 1.5])
# Counts of channels that kernels make at once, and those that some of them need.
BLOCK, QUARTER = 16, 4
# Squared distance, in doublings, within which neighbours count about alike.
NEAR: Final = 0.1
# A timed operator is at least this share more than the cheapest of all.
LEAST: Final = 0.1


@dataclass(frozen=True)
class _Kind:
    """Timed shapes of one kind with their trend."""

    shapes: Vector
    trend: Vector
    missed: Vector
    low: Vector
    high: Vector

    @classmethod
    def of(cls, points: Sequence[Point], op_ms: float) -> _Kind:
        shapes = np.array([_coordinates(point.shape) for point in points])
        net = np.array([max(point.ms - op_ms, LEAST * point.ms) for point in points])
        rates = np.log(np.array([point.work for point in points]) / net)
        rows = _features(shapes)
        # A little ridge keeps few or equal shapes from a wild trend.
        ridge = 0.05 * np.eye(rows.shape[1])
        ridge[0, 0] = 0.0
        trend = np.linalg.solve(rows.T @ rows + ridge + 1e-9 * np.eye(len(ridge)), rows.T @ rates)
        return cls(shapes, trend, rates - rows @ trend, shapes.min(0), shapes.max(0))

    def log_rate(self, shape: tuple[int, int, int, int]) -> float:
        asked = np.clip(np.array(_coordinates(shape)), self.low, self.high)
        apart = (((self.shapes - asked) * WEIGHTS) ** 2).sum(1)
        nearest = np.argsort(apart, kind="stable")[:NEIGHBOURS]
        closeness = 1 / (apart[nearest] + NEAR)
        missed = float((self.missed[nearest] * closeness).sum() / closeness.sum())
        return float((_features(asked[None]) @ self.trend)[0]) + missed


def _coordinates(shape: tuple[int, int, int, int]) -> list[float]:
    """Logarithms of a shape, and how badly its channels fit into blocks: 0, 1 or 2."""
    depth, outs = shape[:2]
    uneven = any(n > QUARTER and n % QUARTER for n in (depth, outs))
    ragged = (outs > 1 and outs % BLOCK > 0) + uneven
    return [*(math.log2(n) for n in shape), float(ragged)]


def _features(shapes: Vector) -> Vector:
    """A constant, the coordinates, and the squares of depth, outputs and positions: rates level off."""
    middle = shapes - np.array([5.0, 5.0, 0.0, 7.0, 0.0])
    bent = middle[:, [0, 1, 3]] ** 2 / 8
    return np.concatenate([np.ones((len(shapes), 1)), middle, bent], axis=1)


@dataclass(frozen=True)
class Rates:
    """A calibration that answers for any shape.

    Attributes:
        calibration: what was timed.
    """

    calibration: Calibration
    _kinds: dict[str, _Kind] = field(init=False, repr=False, compare=False)
    _streams: list[tuple[float, float]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        by_kind: dict[str, list[Point]] = {}
        for point in self.calibration.points:
            by_kind.setdefault(point.kind, []).append(point)
        streams = by_kind.pop(STREAM, [])
        kinds = {kind: _Kind.of(points, self.calibration.op_ms) for kind, points in by_kind.items()}
        object.__setattr__(self, "_kinds", kinds)
        # Total bytes and bytes a millisecond, ascending.
        found = sorted((1024.0 * point.shape[3], point.work / point.ms) for point in streams)
        object.__setattr__(self, "_streams", found)

    def ms(self, op: Op, total_bytes: int = 0) -> float:
        """Milliseconds of an operator inside a network: what it computes or what it reads, whichever takes longer.

        Args:
            op: the operator.
            total_bytes: of all weights of the file, which pass through the caches between two uses of one.

        Raises:
            ValueError: nothing like it was timed.
        """
        return self.calibration.op_ms + max(self._computes(op), self._reads(op, total_bytes))

    def _reads(self, op: Op, total_bytes: int) -> float:
        """Of its weights, by the bytes a millisecond that came in from as many bytes altogether."""
        if not self._streams or not op.weight_bytes:
            return 0.0
        sizes, rates = np.log(np.array(self._streams)).T
        rate = float(np.exp(np.interp(math.log(max(1, total_bytes)), sizes, rates)))
        return op.weight_bytes / rate

    def _computes(self, op: Op) -> float:
        kind: Any = op.kind
        while kind not in self._kinds:
            if kind not in LIKE:
                raise ValueError(f"{op.kind}: nothing like it in a calibration of {sorted(self._kinds)}")
            kind = LIKE[kind]
        rate = float(np.exp(self._kinds[kind].log_rate(op.shape)))
        return op.work / rate
