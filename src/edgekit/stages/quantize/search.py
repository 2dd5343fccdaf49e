"""Which observer, with or without equalization, smoothing, rounding, bias correction: tried, not believed."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from edgekit.evaluate import Agreement, SignalToNoise
from edgekit.inputs import CORRECTION_SAMPLES, Batch
from edgekit.recipe import Quantize
from edgekit.stages.quantize.apply import Observed, calibrate, compensate, convert, observe
from edgekit.stages.quantize.bias import round_biases
from edgekit.stages.quantize.correct import correct_biases, float_means
from edgekit.stages.quantize.equalize import equalize
from edgekit.stages.quantize.smooth import ALPHAS, input_ranges, smooth
from edgekit_converters.program import Program, QuantizedProgram

Batches = Sequence[Batch]
Means = Mapping[str, torch.Tensor]
# Whether it is equalized, and by how much it is smoothed.
Spelling = tuple[bool, float]

# Samples that show which sums occur.
TIE_SAMPLES = 4
# Values of a batch that passes through every layer in turn.
CHUNK_VALUES = 1 << 19
EXTRAS = {"equalized": "equalized", "compensated": "compensated rounding", "corrected": "bias corrected"}


@dataclass(frozen=True)
class Setting:
    """One way to choose the grid.

    Attributes:
        observer: "minmax", "percentile", "mse" or "entropy".
        equalized: cross-layer equalization is applied.
        compensated: rounding errors of the weights make good for one another.
        corrected: biases are corrected.
        smoothed: share of the outliers that is moved from activations to weights; 0 moves nothing.
    """

    observer: str
    equalized: bool
    compensated: bool
    corrected: bool
    smoothed: float = 0.0


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
        if self.setting.smoothed:
            extras.append(f"smoothed {self.setting.smoothed:g}")
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
    """

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

    The observers are compared first, then how much to smooth, which may change what the best observer is, then
    everything else that is "try" is turned over, one after the other, with the best so far.

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

    def attempt(wanted: Setting) -> None:
        setting = bench.effective(wanted)
        if setting in (trial.setting for trial in trials):
            return
        quantized = bench.build(setting)
        trials.append(Trial(setting, *_score(run_all(quantized.program.graph, scoring), reference)))
        bench.keep(_best(trials).setting)

    usual = {name: on if isinstance(on, bool) else first for name, on, first in _switches(settings)}
    smoothed = ALPHAS[0] if settings.smooth is True else 0.0
    for observer in settings.observers:
        attempt(Setting(observer, **usual, smoothed=smoothed))
    for alpha in ALPHAS if settings.smooth else ():
        attempt(replace(_best(trials).setting, smoothed=alpha))
    for observer in settings.observers if _best(trials).setting.smoothed else ():
        attempt(replace(_best(trials).setting, observer=observer))
    for name, on, _ in _switches(settings):
        if on == "try":
            turned: dict[str, Any] = {name: not usual[name]}
            attempt(replace(_best(trials).setting, **turned))
    trial = _best(trials)
    return Choice(trial, bench.finish(trial.setting), bench.observed(trial.setting), tuple(trials))


def rebuild(
    program: Program,
    settings: Quantize,
    setting: Setting,
    calibration: Callable[[], Iterator[Batch]],
    *,
    keep_float: Sequence[str] = (),
    step: Callable[[str], None] = lambda _: None,
) -> QuantizedProgram:
    """The program of one setting, as `search` would give it.

    Args:
        program: cleaned float program.
        settings: as for `search`.
        setting: that `search` chose.
        calibration: gives the calibration batches anew at each call.
        keep_float: patterns in addition to those of the settings.
        step: told what is being done.
    """
    samples = first_samples(program, calibration())
    bench = _Bench(program, settings, calibration, samples, (*settings.keep_float, *keep_float), step)
    return bench.finish(bench.effective(setting))


def _best(trials: Sequence[Trial]) -> Trial:
    """The first of those that are closest to float."""
    return max(trials, key=lambda trial: trial.snr_db)


def first_samples(program: Program, batches: Iterator[Batch]) -> Batches:
    """The first `CORRECTION_SAMPLES` samples in batches that fit the caches; one by one where the batch is fixed."""
    one_by_one = list(itertools.islice(_samples(batches), CORRECTION_SAMPLES))
    values = sum(x.numel() for x in one_by_one[0])
    size = max(1, CHUNK_VALUES // values) if program.dynamic_batch else 1
    chunks = (one_by_one[i : i + size] for i in range(0, len(one_by_one), size))
    return [tuple(torch.cat(column) for column in zip(*chunk, strict=True)) for chunk in chunks]


def weights_only(
    program: Program, settings: Quantize, setting: Setting, calibration: Callable[[], Iterator[Batch]]
) -> QuantizedProgram:
    """The weights of a setting and nothing else on the grid.

    Args:
        program: cleaned float program.
        settings: as for `search`.
        setting: that `search` chose.
        calibration: gives the calibration batches anew at each call.
    """
    source = _Spellings(program, calibration).of(setting)
    samples = first_samples(source, calibration())
    observed = observe(
        source, keep_float=settings.keep_float, weight_bits=settings.weight_bits, weights_only=True
    )
    # Weights are observed when they are first used; any input will do.
    calibrate(observed, [source.example])
    if setting.compensated:
        observed = compensate(observed, samples, centered=settings.bias_correction is not False)
    quantized = convert(observed)
    return _corrected(quantized, _means(observed, samples), samples) if setting.corrected else quantized


def _means(observed: Observed, samples: Batches) -> Means:
    return float_means(observed.program.graph, observed.plan.weights, samples)


def _corrected(quantized: QuantizedProgram, wanted: Means, samples: Batches) -> QuantizedProgram:
    graph = quantized.program.graph
    correct_biases(graph, wanted, samples)
    round_biases(graph)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return replace(quantized, program=replace(quantized.program, graph=graph))


def _switches(settings: Quantize) -> tuple[tuple[str, bool | str, bool], ...]:
    """Field of `Setting`, what the recipe says, and how "try" begins: as it is best most often."""
    return (
        ("equalized", settings.equalize, False),
        ("compensated", settings.compensation, True),
        ("corrected", settings.bias_correction, True),
    )


class _Spellings:
    """Programs of one function: as it is, equalized, smoothed; each is made once."""

    def __init__(self, program: Program, calibration: Callable[[], Iterator[Batch]]) -> None:
        self.calibration = calibration
        self._made: dict[Spelling, Program] = {(False, 0.0): program}
        self._ranges: dict[bool, Mapping[str, torch.Tensor]] = {}

    def of(self, setting: Setting) -> Program:
        """The program that a setting quantizes; the one without where there is nothing to equalize or to smooth."""
        key = _spelling(setting)
        if key not in self._made:
            without = (
                replace(setting, smoothed=0.0) if setting.smoothed else replace(setting, equalized=False)
            )
            before = self.of(without)
            self._made[key] = self._smooth(before, setting) if setting.smoothed else equalize(before)[0]
        return self._made[key]

    def keep(self, setting: Setting) -> None:
        """Let go of everything smoothed but this one."""
        self._made = {k: p for k, p in self._made.items() if not k[1] or k == _spelling(setting)}

    def _smooth(self, program: Program, setting: Setting) -> Program:
        if setting.equalized not in self._ranges:
            self._ranges[setting.equalized] = input_ranges(program, self.calibration())
        return smooth(program, self._ranges[setting.equalized], setting.smoothed)[0]


def _spelling(setting: Setting) -> Spelling:
    return setting.equalized, setting.smoothed


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
        self.spellings = _Spellings(program, calibration)
        self.settings, self.calibration = settings, calibration
        self.samples, self.keep_float, self.step = samples, keep_float, step
        self._observed: dict[tuple[Spelling, bool], Observed] = {}
        self._means: dict[Spelling, Means] = {}

    def effective(self, setting: Setting) -> Setting:
        """The same without what has nothing to work on."""
        for without in (replace(setting, smoothed=0.0), replace(setting, equalized=False)):
            if without != setting and self.spellings.of(without) is self.spellings.of(setting):
                return self.effective(without)
        return setting

    def build(self, setting: Setting, ties: Batches = ()) -> QuantizedProgram:
        """The program of a setting."""
        observed = self.observed(setting)
        self.step(f"trying {setting.observer}")
        quantized = convert(observed, method=setting.observer, percentile=self.settings.percentile, ties=ties)
        if not setting.corrected:
            return quantized
        key = _spelling(setting)
        if key not in self._means:
            self._means[key] = _means(observed, self.samples)
        return _corrected(quantized, self._means[key], self.samples)

    def finish(self, setting: Setting) -> QuantizedProgram:
        """The program of the setting that was chosen, with sums moved off rounding ties."""
        self.step("moving sums off rounding ties")
        return self.build(setting, ties=list(itertools.islice(_samples(iter(self.samples)), TIE_SAMPLES)))

    def observed(self, setting: Setting) -> Observed:
        """Calibrated, and with compensated weights if the setting says so."""
        spelling = _spelling(setting)
        if (spelling, False) not in self._observed:
            self._observed[spelling, False] = self._calibrated(setting)
        if setting.compensated and (spelling, True) not in self._observed:
            self.step("rounding weights")
            centered = self.settings.bias_correction is not False
            plain = self._observed[spelling, False]
            self._observed[spelling, True] = compensate(plain, self.samples, centered=centered)
        return self._observed[spelling, setting.compensated]

    def keep(self, setting: Setting) -> None:
        """Let go of what was made for other spellings of the program: observers hold a copy of it each."""
        spelling = _spelling(setting)
        self.spellings.keep(setting)
        self._observed = {key: made for key, made in self._observed.items() if key[0] == spelling}
        self._means = {key: made for key, made in self._means.items() if key == spelling}

    def _calibrated(self, setting: Setting) -> Observed:
        words = ["equalized"] if setting.equalized else []
        words += [f"smoothed {setting.smoothed:g}"] if setting.smoothed else []
        self.step(f"calibrating ({', '.join(words)})" if words else "calibrating")
        bits = self.settings.weight_bits
        observed = observe(self.spellings.of(setting), keep_float=self.keep_float, weight_bits=bits)
        calibrate(observed, self.calibration())
        return observed


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
