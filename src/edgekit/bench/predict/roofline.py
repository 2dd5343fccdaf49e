"""From the operators of a file and a profile to an estimate with its interval."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from edgekit.bench.predict import onnx_ops, tflite_ops
from edgekit.bench.predict.cores import class_call_ms, class_ms
from edgekit.bench.predict.intervals import known_spread
from edgekit.bench.predict.ops import MACS, Op, total
from edgekit.bench.predict.rates import Rates
from edgekit.errors import UsageError
from edgekit_devices import Calibration, Profile

READERS: Final[Mapping[str, Callable[[Path], tuple[Op, ...]]]] = {
    ".onnx": onnx_ops.read,
    ".tflite": tflite_ops.read,
}
FORMATS: Final = {".onnx": "onnx", ".tflite": "tflite"}


@dataclass(frozen=True, slots=True)
class Prediction:
    """An estimate of the median latency of a file at batch one. It is no measurement.

    Attributes:
        ms: the estimate.
        low_ms: lower end of the interval that 9 of 10 measurements were in.
        high_ms: upper end.
        by_op: kind of operator to its milliseconds, the dearest first.
        target: name of the profile.
        format: "onnx" or "tflite".
        threads: that it would run with.
        basis: "calibrated" from operators timed on the device, "class" from its data sheet.
        unknown: types of operators that nothing is known of: they are counted as additions.
    """

    ms: float
    low_ms: float
    high_ms: float
    by_op: Mapping[str, float]
    target: str
    format: str
    threads: int
    basis: str
    unknown: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; `estimated` is always true."""
        return {
            "estimated": True,
            "ms": self.ms,
            "low": self.low_ms,
            "high": self.high_ms,
            "target": self.target,
            "format": self.format,
            "threads": self.threads,
            "basis": self.basis,
            "by_op": dict(self.by_op),
            "unknown": list(self.unknown),
        }

    def doubt(self) -> str:
        """What is wrong with the interval, a sentence without its subject; empty where nothing is."""
        if not self.unknown:
            return ""
        return f"nothing is known of {', '.join(self.unknown)}: the estimate may be far off"

    def __str__(self) -> str:
        return (
            f"about {self.ms:.3g} ms ({self.low_ms:.3g} to {self.high_ms:.3g}), estimated for {self.target}"
        )


def predict(path: Path, profile: Profile, *, threads: int | None = None) -> Prediction:
    """Estimate the median latency of a file on a device.

    Args:
        path: a `.onnx` or `.tflite` file.
        profile: of the device.
        threads: None takes the profile's.

    Raises:
        UsageError: the file cannot be read, or the profile says nothing about latency.
    """
    check_predictable(profile)
    ops = read_ops(path)
    return estimate(ops, FORMATS[path.suffix], profile, threads=threads)


def estimate(ops: Sequence[Op], format: str, profile: Profile, *, threads: int | None = None) -> Prediction:
    """As `predict`, from operators that were read before.

    Args:
        ops: of the file.
        format: "onnx" or "tflite".
        profile: of the device.
        threads: None takes the profile's.
    """
    threads = threads or profile.threads
    by_op, call_ms, basis = raw(ops, format, profile, threads)
    found = known_spread(basis, format, main_precision(ops), threads)
    scale = math.exp(found.bias)
    ms = (sum(by_op.values()) + call_ms) * scale
    parts = {kind: part * scale for kind, part in sorted(by_op.items(), key=lambda item: -item[1])}
    width = math.exp(found.width)
    unknown = tuple(sorted({op.unknown for op in ops if op.unknown}))
    return Prediction(ms, ms / width, ms * width, parts, profile.name, format, threads, basis, unknown)


def can_predict(profile: Profile) -> bool:
    """Does a profile say enough to estimate latency?"""
    return bool(profile.processors or profile.calibration)


def check_predictable(profile: Profile) -> None:
    """Refuse a profile that says nothing about latency.

    Raises:
        UsageError: it is for size only, or for no device in particular.
    """
    if can_predict(profile):
        return
    why = "is for size only" if profile.size_only else "names no processors"
    raise UsageError(
        f"{profile.name}: no latency can be predicted, the profile {why}",
        expected="a profile with [[processors]] or a calibration",
        way_out="Name a board (`edgekit devices`), or calibrate on yours: edgekit bench calibrate -o profile.toml",
    )


def read_ops(path: Path) -> tuple[Op, ...]:
    """Operators of a file.

    Raises:
        UsageError: another ending, no such file, or one that cannot be read.
    """
    if path.suffix not in READERS:
        raise UsageError(
            f"{path}: its latency cannot be predicted",
            expected="a .onnx or .tflite file",
            way_out="Name such a file of the bundle.",
        )
    if not path.is_file():
        raise UsageError(f"{path}: no such file", expected="a model file", way_out="Check the path.")
    return READERS[path.suffix](path)


def raw(
    ops: Sequence[Op], format: str, profile: Profile, threads: int
) -> tuple[dict[str, float], float, str]:
    """Milliseconds by kind of operator and of the call, uncorrected, and what they are based on.

    Raises:
        UsageError: the device was not calibrated for this format or number of threads, and has no data sheet.
    """
    calibrated = {c.precision: c for c in profile.calibration if (c.format, c.threads) == (format, threads)}
    if not calibrated and not profile.processors:
        known = sorted({(c.format, c.threads) for c in profile.calibration})
        raise UsageError(
            f"{profile.name}: not calibrated for {format} with {threads} threads",
            expected=" or ".join(f"{name} with {n}" for name, n in known),
            way_out="Calibrate again, or name other threads.",
        )
    found: dict[str, float] = {}
    if calibrated:
        # Without one of both the other is the best that there is.
        single = {c.precision: c for c in profile.calibration if (c.format, c.threads) == (format, 1)}
        used = {p: calibrated.get(p) or next(iter(calibrated.values())) for p in ("int8", "float32")}
        rates = {p: _rates(c, single.get(c.precision) if threads > 1 else None) for p, c in used.items()}
        call_ms = max(c.call_ms for c in calibrated.values())
        everything = total(ops, lambda op: op.weight_bytes)
        for op in ops:
            try:
                ms = rates[op.precision].ms(op, everything, len(ops))
            except ValueError as error:
                raise UsageError(
                    f"{profile.name}: {error}", expected="a whole calibration", way_out="Calibrate again."
                ) from error
            found[op.kind] = found.get(op.kind, 0.0) + ms
        return found, call_ms, "calibrated"
    for op in ops:
        found[op.kind] = found.get(op.kind, 0.0) + class_ms(op, profile, threads)
    return found, class_call_ms(profile, threads), "class"


def main_precision(ops: Sequence[Op]) -> str:
    """Of most multiplications."""
    integers = total([op for op in ops if op.kind in MACS and op.precision == "int8"], lambda op: op.work)
    everything = total([op for op in ops if op.kind in MACS], lambda op: op.work)
    return "int8" if 2 * integers > everything else "float32"


@lru_cache(maxsize=64)
def _rates(calibration: Calibration, single: Calibration | None) -> Rates:
    return Rates(calibration, single)
