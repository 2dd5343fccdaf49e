"""Which observer, with or without equalization and bias correction: tried and measured, not believed."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from edgekit.evaluate import Agreement, SignalToNoise
from edgekit.inputs import Batch
from edgekit.recipe import Quantize
from edgekit.stages.quantize.apply import Observed, calibrate, convert, observe
from edgekit.stages.quantize.bias import round_biases
from edgekit.stages.quantize.correct import correct_biases
from edgekit.stages.quantize.equalize import equalize
from edgekit_converters.program import Program, QuantizedProgram

Batches = Sequence[Batch]

# Samples whose means the biases are corrected to; more hardly change the mean and cost memory.
CORRECTION_SAMPLES = 32
# Samples that show which sums occur.
TIE_SAMPLES = 4


@dataclass(frozen=True)
class Trial:
    """One way to choose the grid, and how close its outputs come to the float model's.

    Attributes:
        observer: "minmax", "percentile", "mse" or "entropy".
        equalized: cross-layer equalization was applied.
        corrected: biases were corrected.
        snr_db: of the outputs against float, on the scoring inputs.
        agreement: share of equal answers, on the same.
    """

    observer: str
    equalized: bool
    corrected: bool
    snr_db: float
    agreement: float

    def __str__(self) -> str:
        extras = [w for w, on in (("equalized", self.equalized), ("bias corrected", self.corrected)) if on]
        return f"{', '.join([self.observer, *extras])}: {self.snr_db:.1f} dB, {self.agreement:.2%} agree"


@dataclass(frozen=True)
class Choice:
    """The best trial with its program, and every trial for the report."""

    best: Trial
    program: QuantizedProgram
    observed: Observed
    trials: tuple[Trial, ...]


def search(
    program: Program,
    settings: Quantize,
    calibration: Callable[[], Iterator[Batch]],
    scoring: Batches,
    *,
    keep_float: Sequence[str] = (),
    step: Callable[[str], None] = lambda _: None,
) -> Choice:
    """Try what the settings allow and keep the grid whose outputs are closest to float.

    Args:
        program: cleaned float program.
        settings: observers to try, and "try", True or False for equalization and bias correction.
        calibration: gives the calibration batches anew at each call.
        scoring: a few batches to judge on.
        keep_float: patterns in addition to those of the settings.
        step: told what is being done.

    Returns:
        The choice; the first of equals wins, so cheaper settings come first.
    """
    reference = run_all(program.graph, scoring)
    correction = list(itertools.islice(_samples(calibration()), CORRECTION_SAMPLES))
    correction = (
        [tuple(torch.cat(column) for column in zip(*correction, strict=True))]
        if program.dynamic_batch
        else correction
    )
    trials: list[Trial] = []
    best: tuple[Trial, QuantizedProgram, Observed] | None = None
    for equalized in _options(settings.equalize):
        source, pairs = equalize(program) if equalized else (program, 0)
        if equalized and not pairs:
            continue
        step(f"calibrating{' (equalized)' if equalized else ''}")
        observed = observe(
            source, keep_float=(*settings.keep_float, *keep_float), weight_bits=settings.weight_bits
        )
        calibrate(observed, calibration())
        for observer in settings.observers:
            for corrected in _options(settings.bias_correction):
                step(f"trying {observer}")
                candidate = build(observed, settings, observer, correction if corrected else ())
                outputs = run_all(candidate.program.graph, scoring)
                trial = Trial(observer, equalized, corrected, *_score(outputs, reference))
                trials.append(trial)
                if best is None or trial.snr_db > best[0].snr_db:
                    best = (trial, candidate, observed)
    assert best is not None
    trial, _, observed = best
    step("moving sums off rounding ties")
    ties = correction if program.dynamic_batch else correction[:TIE_SAMPLES]
    ties = [tuple(x[:TIE_SAMPLES] for x in batch) for batch in ties]
    settled = build(observed, settings, trial.observer, correction if trial.corrected else (), ties)
    return Choice(trial, settled, observed, tuple(trials))


def build(
    observed: Observed, settings: Quantize, observer: str, correction: Batches = (), ties: Batches = ()
) -> QuantizedProgram:
    """One quantized program; with `correction` its biases are corrected, with `ties` sums keep off them."""
    candidate = convert(observed, method=observer, percentile=settings.percentile, ties=ties)
    if correction:
        graph = candidate.program.graph
        correct_biases(graph, observed.program.graph, correction)
        round_biases(graph)
        graph.graph.eliminate_dead_code()
        graph.recompile()
        candidate = replace(candidate, program=replace(candidate.program, graph=graph))
    return candidate


def _samples(batches: Iterator[Batch]) -> Iterator[Batch]:
    for batch in batches:
        for i in range(len(batch[0])):
            yield tuple(x[i : i + 1] for x in batch)


def run_all(graph: torch.fx.GraphModule, batches: Batches) -> list[tuple[torch.Tensor, ...]]:
    """Outputs of every batch."""
    with torch.no_grad():
        return [tuple(graph(*batch)) for batch in batches]


def _options(setting: bool | str) -> tuple[bool, ...]:
    return (False, True) if setting == "try" else (bool(setting),)


def _score(
    outputs: Sequence[tuple[torch.Tensor, ...]], reference: Sequence[tuple[torch.Tensor, ...]]
) -> tuple[float, float]:
    noise, same = SignalToNoise(), Agreement()
    for ys, fs in zip(outputs, reference, strict=True):
        arrays, floats = [y.numpy() for y in ys], [f.numpy() for f in fs]
        noise.add(arrays, floats)
        same.add(arrays, None, floats)
    snr = noise.value()
    return (snr if not math.isnan(snr) else -math.inf), same.value()
