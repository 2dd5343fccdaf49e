"""Which observer, with or without equalization, compensated rounding, bias correction: tried, not believed."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from edgekit.evaluate import Agreement, SignalToNoise
from edgekit.inputs import CORRECTION_SAMPLES, Batch
from edgekit.recipe import Quantize
from edgekit.stages.quantize.apply import Observed, calibrate, compensate, convert, observe
from edgekit.stages.quantize.bias import round_biases
from edgekit.stages.quantize.correct import correct_biases
from edgekit.stages.quantize.equalize import equalize
from edgekit_converters.program import Program, QuantizedProgram

Batches = Sequence[Batch]

# Samples that show which sums occur.
TIE_SAMPLES = 4
EXTRAS = {"equalized": "equalized", "compensated": "compensated rounding", "corrected": "bias corrected"}


@dataclass(frozen=True)
class Setting:
    """One way to choose the grid.

    Attributes:
        observer: "minmax", "percentile", "mse" or "entropy".
        equalized: cross-layer equalization is applied.
        compensated: rounding errors of the weights make good for one another.
        corrected: biases are corrected.
    """

    observer: str
    equalized: bool
    compensated: bool
    corrected: bool


@dataclass(frozen=True)
class Trial:
    """A setting, and how close its outputs come to the float model's.

    Attributes:
        setting: what was tried.
        snr_db: of the outputs against float, on the scoring inputs.
        agreement: share of equal answers, on the same.
    """

    setting: Setting
    snr_db: float
    agreement: float

    def __str__(self) -> str:
        extras = [words for name, words in EXTRAS.items() if getattr(self.setting, name)]
        return (
            f"{', '.join([self.setting.observer, *extras])}: {self.snr_db:.1f} dB, {self.agreement:.2%} agree"
        )


@dataclass(frozen=True)
class Choice:
    """The best trial with its program.

    Attributes:
        best: the trial.
        program: quantized that way.
        observed: what `program` was converted from.
        trials: all of them, for the report.
        samples: inputs to which biases are corrected.
    """

    best: Trial
    program: QuantizedProgram
    observed: Observed
    trials: tuple[Trial, ...]
    samples: Batches


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

    The observers are compared first, then everything that is "try" is turned over, one after the other, with the
    best so far.

    Args:
        program: cleaned float program.
        settings: observers to try, and "try", True or False for the rest.
        calibration: gives the calibration batches anew at each call.
        scoring: a few batches to judge on; not the first `CORRECTION_SAMPLES` of the calibration inputs.
        keep_float: patterns in addition to those of the settings.
        step: told what is being done.

    Returns:
        The choice; the first of equals wins.
    """
    samples = first_samples(program, calibration())
    bench = _Bench(program, settings, calibration, samples, (*settings.keep_float, *keep_float), step)
    reference = run_all(program.graph, scoring)
    trials: list[Trial] = []
    best: tuple[Trial, QuantizedProgram] | None = None

    def attempt(setting: Setting) -> None:
        nonlocal best
        candidate = bench.build(setting)
        if candidate is None:
            return
        trial = Trial(setting, *_score(run_all(candidate.program.graph, scoring), reference))
        trials.append(trial)
        if best is None or trial.snr_db > best[0].snr_db:
            best = trial, candidate

    usual = {name: on if isinstance(on, bool) else first for name, on, first in _switches(settings)}
    for observer in settings.observers:
        attempt(Setting(observer, **usual))
    for name, on, _ in _switches(settings):
        if on == "try":
            assert best is not None
            turned: dict[str, Any] = {name: not usual[name]}
            attempt(replace(best[0].setting, **turned))
    assert best is not None
    trial, _ = best
    step("moving sums off rounding ties")
    settled = bench.build(
        trial.setting, ties=[tuple(x[:TIE_SAMPLES] for x in b) for b in samples[:TIE_SAMPLES]]
    )
    assert settled is not None
    return Choice(trial, settled, bench.observed(trial.setting), tuple(trials), samples)


def first_samples(program: Program, batches: Iterator[Batch]) -> Batches:
    """The first `CORRECTION_SAMPLES` samples: in one batch, or one by one where the batch is fixed."""
    one_by_one = list(itertools.islice(_samples(batches), CORRECTION_SAMPLES))
    if not program.dynamic_batch:
        return one_by_one
    return [tuple(torch.cat(column) for column in zip(*one_by_one, strict=True))]


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


def _switches(settings: Quantize) -> tuple[tuple[str, bool | str, bool], ...]:
    """Field of `Setting`, what the recipe says, and how "try" begins: as it is best most often."""
    return (
        ("equalized", settings.equalize, False),
        ("compensated", settings.compensation, True),
        ("corrected", settings.bias_correction, True),
    )


class _Bench:
    """Builds settings; calibrates and rounds once for all those that share it."""

    def __init__(
        self,
        program: Program,
        settings: Quantize,
        calibration: Callable[[], Iterator[Batch]],
        samples: Batches,
        keep_float: Sequence[str],
        step: Callable[[str], None],
    ) -> None:
        self.program, self.settings, self.calibration = program, settings, calibration
        self.samples, self.keep_float, self.step = samples, keep_float, step
        self._observed: dict[tuple[bool, bool], Observed] = {}

    def build(self, setting: Setting, ties: Batches = ()) -> QuantizedProgram | None:
        """The program, or None where there is nothing to equalize."""
        if setting.equalized and not self._source(equalized=True)[1]:
            return None
        observed = self.observed(setting)
        self.step(f"trying {setting.observer}")
        samples = self.samples if setting.corrected else ()
        return build(observed, self.settings, setting.observer, samples, ties)

    def observed(self, setting: Setting) -> Observed:
        """Calibrated, and with compensated weights if the setting says so."""
        key = setting.equalized, setting.compensated
        if key not in self._observed:
            plain = self._observed.get((setting.equalized, False)) or self._calibrated(setting.equalized)
            self._observed[setting.equalized, False] = plain
            if setting.compensated:
                self.step("rounding weights")
                centered = self.settings.bias_correction is not False
                self._observed[key] = compensate(plain, self.samples, centered=centered)
        return self._observed[key]

    def _calibrated(self, equalized: bool) -> Observed:
        self.step(f"calibrating{' (equalized)' if equalized else ''}")
        bits = self.settings.weight_bits
        observed = observe(self._source(equalized=equalized)[0], keep_float=self.keep_float, weight_bits=bits)
        calibrate(observed, self.calibration())
        return observed

    def _source(self, *, equalized: bool) -> tuple[Program, int]:
        return equalize(self.program) if equalized else (self.program, 0)


def _samples(batches: Iterator[Batch]) -> Iterator[Batch]:
    for batch in batches:
        for i in range(len(batch[0])):
            yield tuple(x[i : i + 1] for x in batch)


def run_all(graph: torch.fx.GraphModule, batches: Batches) -> list[tuple[torch.Tensor, ...]]:
    """Outputs of every batch."""
    with torch.no_grad():
        return [tuple(graph(*batch)) for batch in batches]


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
