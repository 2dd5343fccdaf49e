"""Which file is faster, and how far the figures can be trusted; no I/O."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from edgekit.bench.results import EMULATED, Noise, Result, Run
from edgekit.bench.timing import Ratio, ratio
from edgekit.drawing.numbers import times

FASTER, SLOWER, SAME = "faster", "slower", "no difference"
# A difference below this is not worth a verdict: where a file lands in memory, and what the host of a virtual machine
# does to its clock and caches, make as much from one minute to the next.
LEAST_DIFFERENCE: Final = 0.05
# Fewer pairs than this give no interval that means anything.
LEAST_PAIRS: Final = 5
# From where on a reader is warned. A machine at rest stays below each of them.
SPREAD, DRIFT, CLOCK = 0.10, 0.05, 0.05
OTHERS, STOLEN, PREEMPTED_PER_S, HOT_C = 0.05, 0.01, 50.0, 80.0
# Governors that let the clock follow the load; on Intel `powersave` does, too, and is the only one there is.
LAGGING: Final = ("ondemand", "conservative", "schedutil")


@dataclass(frozen=True, slots=True)
class Comparison:
    """One run beside the run that it is held against.

    Attributes:
        name: title of the run.
        against: title of the other.
        threads: of both.
        batch: of both.
        ratio: time of the run ÷ time of the other, of the rounds that they shared.
        verdict: `FASTER`, `SLOWER` or `SAME`.
    """

    name: str
    against: str
    threads: int
    batch: int
    ratio: Ratio
    verdict: str

    def __str__(self) -> str:
        value, low, high, of = self.ratio.value, self.ratio.low, self.ratio.high, "takes {} the time of"
        if value < 1:
            value, low, high, of = 1 / value, 1 / high, 1 / low, "{} the speed of"
        span = f"{of.format(times(value))} {self.against} ({times(low)} to {times(high)})"
        return f"{self.name}: {span}: {self.verdict}"


def comparisons(result: Result, reference: str) -> tuple[Comparison, ...]:
    """Hold every run against the reference's with the same threads and batch.

    Where the reference has several formats, it is the one of the same format, else its first.

    Args:
        result: whose runs shared their rounds.
        reference: name of the file that the others are held against.
    """
    found: list[Comparison] = []
    if result.kind == EMULATED:
        return ()
    for run in result.runs:
        alike = [r for r in result.runs if r.name == reference and r.key[2:] == run.key[2:]]
        same = [r for r in alike if r.format == run.format and r.name != run.name]
        other = next(iter(same or alike), None)
        if other is None or other is run or min(len(run.rounds_ms), len(other.rounds_ms)) < LEAST_PAIRS:
            continue
        each = ratio(np.asarray(run.rounds_ms), np.asarray(other.rounds_ms))
        found.append(Comparison(run.title, other.title, run.threads, run.batch, each, verdict(each)))
    return tuple(found)


def verdict(ratio: Ratio) -> str:
    """Say which is faster: only where the whole interval lies beyond the least difference that counts."""
    if ratio.high < 1 - LEAST_DIFFERENCE:
        return FASTER
    return SLOWER if ratio.low > 1 + LEAST_DIFFERENCE else SAME


def spread(run: Run) -> float:
    """Width of the middle half of the rounds, as a share of their median."""
    low, middle, high = (float(v) for v in np.percentile(run.rounds_ms, (25, 50, 75)))
    return (high - low) / middle


def drift(run: Run) -> float:
    """Median of the last third of the rounds against that of the first, 0 for none."""
    third = len(run.rounds_ms) // 3
    if not third:
        return 0.0
    rounds = np.asarray(run.rounds_ms)
    return float(np.median(rounds[-third:]) / np.median(rounds[:third])) - 1


def noise_warnings(result: Result) -> tuple[str, ...]:
    """What disturbed the measurement, in plain sentences with the figures; empty for a quiet machine."""
    if result.kind == EMULATED or result.noise is None:
        return ()
    return (*_of_machine(result.noise), *_of_runs(result), *_of_governor(result))


def slowing(latency_ms: tuple[float, ...]) -> float:
    """How much slower the last tenth of a sustained run is than its first, 0 for not at all."""
    tenth = max(1, len(latency_ms) // 10)
    if len(latency_ms) < 2 * tenth:
        return 0.0
    return float(np.median(latency_ms[-tenth:]) / np.median(latency_ms[:tenth])) - 1


def _of_machine(noise: Noise) -> Iterator[str]:
    if noise.others_share is not None and noise.others_share > OTHERS:
        yield f"other programs used {noise.others_share:.0%} of the processors: stop them, and measure again"
    if noise.stolen_share is not None and noise.stolen_share > STOLEN:
        yield f"the host gave {noise.stolen_share:.1%} of the time to other virtual machines"
    if noise.preempted_per_s is not None and noise.preempted_per_s > PREEMPTED_PER_S:
        yield f"the measurement was pushed off its processor {noise.preempted_per_s:.0f} times a second"
    if noise.clock_mhz is not None and noise.clock_mhz[1] > (1 + CLOCK) * noise.clock_mhz[0]:
        low, high = noise.clock_mhz
        yield f"the clock went between {low:.0f} and {high:.0f} MHz"
    if noise.temperature_c is not None and max(noise.temperature_c) >= HOT_C:
        yield f"the processor was at {max(noise.temperature_c):.0f} °C, where boards slow down: cool it"


def _of_runs(result: Result) -> Iterator[str]:
    timed = [run for run in result.runs if run.rounds_ms]
    if not timed:
        return
    figures: Mapping[str, tuple[Run, float]] = {
        "spread": max(((run, spread(run)) for run in timed), key=lambda pair: pair[1]),
        "drift": max(((run, drift(run)) for run in timed), key=lambda pair: abs(pair[1])),
    }
    run, share = figures["spread"]
    if share > SPREAD:
        yield f"rounds differ: the middle half of {run.title} spreads over {share:.0%} of its median"
    run, share = figures["drift"]
    if abs(share) > DRIFT:
        than = "slower" if share > 0 else "faster"
        yield f"{run.title} was {abs(share):.0%} {than} in the last third than in the first"


def _of_governor(result: Result) -> Iterator[str]:
    if result.machine.governor in LAGGING:
        yield (
            f"the governor {result.machine.governor} lets the clock follow the load: "
            "`sudo cpupower frequency-set -g performance` for figures that can be repeated"
        )
