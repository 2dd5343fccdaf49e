"""Judges saved files: proof against the reference, metric against float, time against the float twin."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from numpy.typing import NDArray

from edgekit.bench import (
    LatencyStats,
    OpCensus,
    kernel_ms,
    onnx_ops,
    runner,
    sample,
    slower_kernels,
    stats,
    tflite_ops,
)
from edgekit.bench.predict import Prediction, can_predict, predict
from edgekit.drawing import numbers
from edgekit.errors import UsageError
from edgekit.evaluate import Agreement, Metric, SignalToNoise
from edgekit.inputs import Inputs, tensors
from edgekit.recipe import SLOWER, Budget
from edgekit.stages.quantize.rungs import Variant
from edgekit_converters.parity import Bound, Proof, measure, output_steps, run_reference, tie_bound
from edgekit_converters.predict import Array, Predict, SavedModel, open_saved
from edgekit_converters.program import Program, QuantizedProgram
from edgekit_devices import find_profile

# The reference evaluator is exact and slow, so it sees fewer inputs.
COREML_PROVEN: Final = 32
COREML_JUDGED: Final = 64
TIMED: Final = frozenset({"onnx", "tflite"})


@dataclass(frozen=True, slots=True)
class Quality:
    """How good a file's outputs are.

    Attributes:
        metric: value of the chosen metric.
        drop: loss against the float model on the same inputs, in the metric's unit.
        agreement: share of answers that are the float model's.
        snr_db: of the outputs against float.
        n: inputs.
    """

    metric: float
    drop: float
    agreement: float
    snr_db: float
    n: int


@dataclass(frozen=True)
class Judged:
    """A saved file with everything that was measured on it.

    Attributes:
        saved: the file.
        variant: how it was lowered.
        proof: against the quantized reference.
        quality: against the float model.
        latency: of the file, None where it cannot be timed here.
        float_latency: of its float twin.
        baseline: metric of the float model and number of inputs.
        notes: what was tried before, for the report.
        predicted: target to the estimate for it.
    """

    saved: SavedModel
    variant: Variant
    proof: Proof
    quality: Quality
    latency: LatencyStats | None
    float_latency: LatencyStats | None
    baseline: tuple[float, int]
    notes: tuple[str, ...] = ()
    predicted: Mapping[str, Prediction] = field(default_factory=dict)

    @property
    def judged_ms(self) -> float | None:
        """What a limit is held against: the slowest estimate for a target, without targets the median here."""
        if self.predicted:
            return max(found.ms for found in self.predicted.values())
        return self.latency.p50_ms if self.latency is not None else None

    @property
    def slower(self) -> bool:
        """More than 5% slower than its float twin."""
        return self.latency_ratio > SLOWER and math.isfinite(self.latency_ratio)

    @property
    def latency_ratio(self) -> float:
        """Median latency over that of the float twin in the same rounds; infinite where it was not timed."""
        if self.latency is None or self.float_latency is None:
            return math.inf
        return self.latency.p50_ms / self.float_latency.p50_ms

    def faster_than(self, other: Judged) -> bool:
        """Relative to the float twin of the same rounds; the machine may have changed between two timings."""
        return self.latency_ratio < other.latency_ratio

    def lossy(self, budget: Budget) -> bool:
        """It loses more of the metric than the budget allows; so does one that gives no numbers."""
        return budget.max_drop is not None and not self.quality.drop <= budget.max_drop

    def slow(self, budget: Budget) -> bool:
        """It takes longer than the budget allows, or than its float twin where that is not allowed."""
        limit, took = budget.max_latency_ms, self.judged_ms
        late = limit is not None and took is not None and took > limit
        return late or (self.slower and not budget.allow_slower)

    def better_than(self, other: Judged, budget: Budget) -> bool:
        """What holds the budget is; of two equal in this, the more accurate if both are only lossy, else the faster."""
        mine, others = ((j.lossy(budget), j.slow(budget)) for j in (self, other))
        if any(mine) != any(others):
            return not any(mine)
        if mine == others == (True, False):
            return self.quality.drop < other.quality.drop
        return self.faster_than(other)


def prove(
    program: QuantizedProgram, saved: Mapping[str, SavedModel], proof_inputs: Sequence[Array]
) -> dict[str, Proof]:
    """Run every saved file in its own runtime against the quantized reference.

    A file outside the ordinary bound is held against what rounding ties do to this very network, once. What is
    quantized at run time is held against the reference of the kernels that do it.
    """
    of_kernels: dict[str | None, tuple[tuple[Array, ...], tuple[float, ...]]] = {}
    ties: dict[str | None, Bound] = {}
    proofs: dict[str, Proof] = {}
    for name, model in saved.items():
        kernels = name if program.dynamic else None
        if kernels not in of_kernels:
            outputs = run_reference(program, proof_inputs, kernels)
            of_kernels[kernels] = outputs, output_steps(program, outputs)
        reference, steps = of_kernels[kernels]
        n = COREML_PROVEN if name == "coreml" else len(proof_inputs[0])
        inputs, expected = [x[:n] for x in proof_inputs], [_of_first(n, y, proof_inputs) for y in reference]
        predict = open_saved(model)
        proof = measure(name, predict, inputs, expected, steps, Bound())
        if not proof.holds:
            if kernels not in ties:
                ties[kernels] = tie_bound(program, proof_inputs, reference, kernels)
            proof = measure(name, predict, inputs, expected, steps, ties[kernels])
        proofs[name] = proof
    return proofs


def _of_first(n: int, output: Array, inputs: Sequence[Array]) -> Array:
    """What belongs to the first `n` inputs; an output `[time, 1, classes]` has many rows for each."""
    return output[: n * (len(output) // len(inputs[0]))]


def assess(
    program: Program, saved: Mapping[str, SavedModel], inputs: Inputs, metric: Metric, *, step: Any = None
) -> tuple[float, int, dict[str, Quality]]:
    """One pass over the evaluation data through the float model and every file.

    Returns:
        Metric of the float model, number of inputs, quality of each file.
    """
    judges = {name: _Judge(open_saved(model), metric) for name, model in saved.items()}
    baseline, n = metric.make(), 0
    for arrays, labels in inputs.evaluation():
        with torch.no_grad():
            floats = tuple(y.numpy() for y in program.graph(*tensors(arrays)))
        baseline.add(floats, labels, floats)
        for name, judge in judges.items():
            limit = COREML_JUDGED - judge.n if name == "coreml" else len(arrays[0])
            if limit > 0:
                judge.add(
                    [x[:limit] for x in arrays],
                    labels[:limit] if labels is not None else None,
                    [_of_first(limit, f, arrays) for f in floats],
                )
        n += len(arrays[0])
        if step is not None:
            step(f"{n} inputs")
    return baseline.value(), n, {name: judge.quality() for name, judge in judges.items()}


class _Judge:
    """Tallies of one file."""

    def __init__(self, predict: Predict, metric: Metric) -> None:
        self.predict, self.kind = predict, metric
        self.metric, self.baseline = metric.make(), metric.make()
        self.agreement, self.snr, self.n = Agreement(), SignalToNoise(), 0

    def add(self, arrays: Sequence[Array], labels: NDArray[Any] | None, floats: Sequence[Array]) -> None:
        outputs = self.predict(arrays)
        self.metric.add(outputs, labels, floats)
        self.baseline.add(floats, labels, floats)
        self.agreement.add(outputs, None, floats)
        self.snr.add(outputs, floats)
        self.n += len(arrays[0])

    def quality(self) -> Quality:
        value = self.metric.value()
        drop = self.kind.drop(self.baseline.value(), value)
        return Quality(value, drop, self.agreement.value(), self.snr.value(), self.n)


def time_files(files: Mapping[str, Path], *, max_seconds: float) -> dict[str, LatencyStats]:
    """Interleaved single-thread latency of files and their float twins, batch one."""
    runners = {name: runner(path, threads=1) for name, path in files.items()}
    return {name: stats(rounds) for name, rounds in sample(runners, max_seconds=max_seconds).items()}


def estimates(saved: SavedModel, targets: Sequence[str]) -> tuple[dict[str, Prediction], tuple[str, ...]]:
    """What a file would take on the targets, and notes on those that nothing can be said for.

    Args:
        saved: the file.
        targets: names of profiles, or paths of their files.
    """
    found: dict[str, Prediction] = {}
    notes: list[str] = []
    for profile in map(find_profile, targets) if saved.format in TIMED else ():
        if not can_predict(profile):
            continue
        try:
            prediction = found[profile.name] = predict(saved.path, profile)
            if prediction.doubt():
                notes.append(f"estimate for {profile.name}: {prediction.doubt()}")
        except UsageError as error:
            notes.append(f"no estimate for {profile.name}: {error.what}")
    return found, tuple(notes)


def why_not(judged: Judged, twin: Path, metric: str, budget: Budget) -> list[str]:
    """Sentences on a lowering that was passed over, or was taken although it misses the budget.

    Args:
        judged: the file.
        twin: its float twin.
        metric: name of the metric that the budget is in.
        budget: what has to hold.
    """
    said: list[str] = []
    if judged.lossy(budget):
        assert budget.max_drop is not None
        lost, allowed = (numbers.points(d, metric) for d in (judged.quality.drop, budget.max_drop))
        said.append(f"{judged.variant.name} loses {lost}, allowed is {allowed}")
    if judged.slower or not said:
        said.append(why_slower(judged, twin))
    return said


def why_slower(judged: Judged, twin: Path) -> str:
    """One sentence on a file that is slower than float: by how much, and which kernels cost it.

    Args:
        judged: the file.
        twin: its float twin.
    """
    kernels: list[str] = []
    if judged.saved.format == "onnx":
        kernels = slower_kernels(kernel_ms(judged.saved.path), kernel_ms(twin))
    elif (counted := census(judged.saved.format, judged.saved.path)) is not None:
        kernels = [f"{n}× {op} outside the delegate" for op, n in sorted(counted.outside.items())]
    said = f"{judged.variant.name} took {judged.latency_ratio:.2f} times as long as float"
    return f"{said}: {', '.join(kernels)}" if kernels else f"{said}, by the overhead of its calls"


def census(name: str, path: Path) -> OpCensus | None:
    """What kernels run in a file here; None for formats without a runtime on every system."""
    return {"onnx": onnx_ops, "tflite": tflite_ops}[name](path) if name in TIMED else None


__all__ = [
    "Judged",
    "Quality",
    "assess",
    "census",
    "estimates",
    "prove",
    "time_files",
    "why_not",
    "why_slower",
]
