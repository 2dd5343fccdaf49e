"""The proof: a saved file against the quantized reference, counted in output steps."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from edgekit_converters.predict import Array, Predict
from edgekit_converters.program import QuantizedProgram
from edgekit_converters.reference import Disturb, Reference

# A file is the same grid when no output is further than this from the reference.
MAX_STEPS: Final = 2.0
P999_STEPS: Final = 1.0
# Integer kernels hold their scales in fixed point and accumulate in other orders; a value this close to a
# rounding tie, in steps, may go either way (LiteRT's int8 ADD: 2^-20 of its range of 256 steps, and some
# margin).
TIE_SHARE: Final = 1.0 / 1024.0


@dataclass(frozen=True, slots=True)
class Proof:
    """Distance of a saved file from the quantized torch reference, in steps of the output grid.

    Attributes:
        reference: what read the file back, e.g. "LiteRT".
        n: inputs compared; none of them was used to calibrate.
        max_steps: largest difference of any output value.
        p999_steps: 99.9th percentile of the differences.
        equal: share of values that are the same integer, 0 to 1.
        max_allowed: bound on `max_steps`.
        p999_allowed: bound on `p999_steps`.
    """

    reference: str
    n: int
    max_steps: float
    p999_steps: float
    equal: float
    max_allowed: float = MAX_STEPS
    p999_allowed: float = P999_STEPS

    @property
    def holds(self) -> bool:
        """Both bounds hold; NaN holds nothing."""
        return self.max_steps <= self.max_allowed and self.p999_steps <= self.p999_allowed


@dataclass(frozen=True, slots=True)
class Bound:
    """What a proof allows: `MAX_STEPS` and `P999_STEPS`, or more where the network itself amplifies ties."""

    max_steps: float = MAX_STEPS
    p999_steps: float = P999_STEPS


# Values of a batch over all inputs that the caches hold.
BATCH_VALUES: Final = 1 << 18
RUNTIMES: Final = {"onnx": "ONNX Runtime", "tflite": "LiteRT", "coreml": "Core ML reference evaluator"}


def output_steps(program: QuantizedProgram, reference: Sequence[Array]) -> tuple[float, ...]:
    """Real size of one step of each output; 1/255 of its range on the proof inputs where it stays float."""
    return tuple(
        grid.scale if grid is not None else _virtual_step(y)
        for grid, y in zip(program.output_grids, reference, strict=True)
    )


def run_reference(
    program: QuantizedProgram, inputs: Sequence[Array], format: str | None = None
) -> tuple[Array, ...]:
    """The quantized reference in torch, `[n, ...]` per output; in batches where the program allows them.

    `format` matters only to a program that quantizes at run time, see `Reference`.
    """
    return _run(program, inputs, Reference(program, format))


def measure(
    format: str,
    predict: Predict,
    inputs: Sequence[Array],
    reference: Sequence[Array],
    steps: Sequence[float],
    bound: Bound,
) -> Proof:
    """Run the saved file on the proof inputs and count."""
    outputs = predict(inputs)
    distance = np.concatenate([d.reshape(-1) for d in distances(outputs, reference, steps)])
    return Proof(
        reference=RUNTIMES[format],
        n=len(inputs[0]),
        max_steps=round(float(distance.max()), 3),
        p999_steps=round(p999(distance), 3),
        equal=round(float((distance < 0.5).mean()), 5),
        max_allowed=bound.max_steps,
        p999_allowed=bound.p999_steps,
    )


def p999(distance: Array) -> float:
    """The smallest distance that at least 99.9% of the values keep to."""
    return float(np.quantile(distance, 0.999, method="inverted_cdf"))


def distances(
    outputs: Sequence[Array], reference: Sequence[Array], steps: Sequence[float]
) -> Iterable[Array]:
    """|file − reference| in steps per output, float64; a shape that differs or a NaN is infinitely far."""
    for y, r, step in zip(outputs, reference, steps, strict=True):
        if y.shape != r.shape:
            yield np.full(max(r.size, 1), np.inf)
            continue
        with np.errstate(invalid="ignore"):
            both = np.abs(y.astype(np.float64) - r.astype(np.float64)) / step
        yield np.where(np.isnan(both), np.inf, both)


def tie_bound(
    program: QuantizedProgram,
    inputs: Sequence[Array],
    reference: Sequence[Array],
    format: str | None = None,
    *,
    seed: int = 0,
) -> Bound:
    """What rounding ties alone may do to the outputs of this network.

    The reference is run again with a dither of ±`TIE_SHARE` of a step before every rounding. Most networks
    stay within the ordinary bound; one that amplifies single steps (an average of few values, a recurrence)
    is allowed what its own ties do, and no more.
    """
    steps = output_steps(program, reference)
    worst, tail = 0.0, 0.0
    for repeat in range(2):
        dithered = _run(program, inputs, Reference(program, format, disturb=_dither(seed + repeat)))
        d = np.concatenate([x.reshape(-1) for x in distances(dithered, reference, steps)])
        worst, tail = max(worst, float(d.max())), max(tail, p999(d))
    return Bound(max(MAX_STEPS, math.ceil(1.5 * worst)), max(P999_STEPS, math.ceil(1.5 * tail)))


def _dither(seed: int) -> Disturb:
    """Noise of a fraction of a step."""
    generator = torch.Generator().manual_seed(seed)

    def disturb(x: torch.Tensor) -> torch.Tensor:
        return x + (torch.rand(x.shape, generator=generator) * 2 - 1) * TIE_SHARE

    return disturb


def _run(program: QuantizedProgram, inputs: Sequence[Array], call: Any) -> tuple[Array, ...]:
    tensors = [torch.from_numpy(np.ascontiguousarray(x)) for x in inputs]
    n = len(inputs[0])
    values = max(1, sum(x[:1].size for x in inputs))
    size = max(1, min(64, BATCH_VALUES // values)) if program.program.dynamic_batch else 1
    parts: list[list[NDArray[Any]]] = []
    with torch.no_grad():
        for i in range(0, n, size):
            outputs = call(*(x[i : i + size] for x in tensors))
            parts.append([y.numpy() for y in outputs])
    return tuple(np.concatenate(p) for p in zip(*parts, strict=True))


def _virtual_step(y: Array) -> float:
    spread = float(y.max() - y.min()) if y.size else 0.0
    return spread / 255 if spread > 0 else 1.0


__all__ = ["Bound", "Proof", "distances", "measure", "output_steps", "run_reference", "tie_bound"]
