"""An A/B comparison: what tells two arms of devices apart. Pure.

Nothing runs beside the release, so there is no agreement: each arm tells how it does, device by device, and the means
are compared (`statistics.differences`). For each measure there is an effect, the smallest difference that matters:

- **worse**: the interval lies where the candidate is worse, zero excluded, at a level that is part of a false stop's.
- **better**: it lies on the other side.
- **no difference**: it lies within ± the effect; **no worse**: below + the effect, how good it may be is open.
- **inconclusive**: none of these. More devices make the interval narrower.

The chance that a candidate which is as good as the control is ever called worse on anything, or that arms which got
the devices that they were drawn are ever called uneven, is at most the level of the stop.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np

from edgekit.fleet.rules.evidence import Arms, Shares
from edgekit.fleet.statistics import differences, drift, sample_ratio
from edgekit.fleet.statistics.corrections import bonferroni
from edgekit.fleet.statistics.parts import lower_bound
from edgekit_runtime.sketches import Sketch

WORSE, BETTER, SAME, NO_WORSE, UNKNOWN = "worse", "better", "no difference", "no worse", "inconclusive"
UNEVEN: Final = "arms are uneven"
# A device's difference is cut off at so many effects: a test of no difference is exact wherever that is, and the fewer
# the sooner it is decided.
SPAN: Final = 6
# Effects that are smaller than this take more devices than there are.
LEAST: Final = 1e-3
# Milliseconds between which the interval of one arm's latency is looked for.
FASTEST_MS, SLOWEST_MS = 1e-3, 1e6


@dataclass(frozen=True, slots=True)
class Measure:
    """Something that both arms tell.

    Attributes:
        name: of it; also of the column of an arm.
        says: what it is, in words.
        sign: 1 where more is worse, −1 where more is better.
        decides: whether being worse stops a rollout, and being undecided holds it.
        effect: from the limits of a rollout to the smallest difference that matters.
        onto: from the column to where differences are taken, such as logarithms.
        back: from a difference there to what people read.
        unit: from the column to [0, 1], where the interval of one arm's mean is looked for.
        from_unit: from there to what people read.
    """

    name: str
    says: str
    sign: int
    decides: bool
    effect: Callable[[Mapping[str, float]], float]
    onto: Callable[[Shares], Shares]
    back: Callable[[float], float]
    unit: Callable[[Shares], Shares]
    from_unit: Callable[[float], float]


@dataclass(frozen=True, slots=True)
class Estimate:
    """The mean of one arm.

    Attributes:
        devices: that have shown enough.
        mean: None where there are none; of latencies the geometric one.
        lower: bound, at every look.
        upper: bound.
    """

    devices: int
    mean: float | None
    lower: float | None
    upper: float | None


@dataclass(frozen=True, slots=True)
class Difference:
    """A measure of both arms.

    Attributes:
        name: of the measure.
        says: what it is, in words.
        candidate: its mean.
        control: its mean.
        difference: candidate less control; of latencies the ratio less 1. None where there is no pair.
        lower: bound on the mean of what is cut off at ± `SPAN` effects, at every look; None where it is open.
        upper: bound.
        effect: smallest difference that matters.
        pairs: of devices that it is based on.
        verdict: one of the words above.
        decides: whether it stops or holds a rollout.
    """

    name: str
    says: str
    candidate: Estimate
    control: Estimate
    difference: float | None
    lower: float | None
    upper: float | None
    effect: float
    pairs: int
    verdict: str
    decides: bool


@dataclass(frozen=True, slots=True)
class Compared:
    """An A/B comparison at one look.

    Attributes:
        verdict: of all measures that decide together; `UNEVEN` where the arms did not get the devices they were drawn.
        measures: each of them.
        candidate: devices of the arm that were heard of lately.
        control: of the other one.
        ratio_p: p-value, at every look, of both arms being as large as one another.
        ratio_alpha: level below which they are not.
        psi: population stability index of the confidences of both arms, None where there are none. How much of it is
            chance is not known, since answers of one device resemble one another; it decides nothing.
        jensen_shannon: divergence of the same, in bits.
        decides: whether this is the last stage with a control.
    """

    verdict: str
    measures: tuple[Difference, ...]
    candidate: int
    control: int
    ratio_p: float
    ratio_alpha: float
    psi: float | None
    jensen_shannon: float | None
    decides: bool

    def to_tree(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)


def compare(
    arms: Arms, limits: Mapping[str, float], *, stop_alpha: float, alpha: float, bounds: bool = True
) -> Compared:
    """Compare both arms.

    Args:
        arms: what they tell.
        limits: of the rollout; those on errors, NaN and latency are the effects that matter.
        stop_alpha: chance that arms which do not differ are ever told apart to the candidate's disadvantage.
        alpha: chance that a measure is ever called no worse, or better, which is worse by the effect, or no better.
        bounds: whether to say between what the means and their differences lie; verdicts are the same without.
    """
    # One part for each measure that may stop it, one for the shares.
    part = bonferroni(stop_alpha, sum(each.decides for each in MEASURES) + 1)
    levels = _Levels(part, alpha, bounds)
    found = tuple(_difference(each, arms, each.effect(limits), levels) for each in MEASURES)
    a, b = arms.candidate.meant, arms.control.meant
    p = sample_ratio.p_value((a, b), (1.0, 1.0)) if a + b else 1.0
    psi, divergence = _apart(arms.control.spoken, arms.candidate.spoken)
    verdict = UNEVEN if p < part else _together([each.verdict for each in found if each.decides])
    return Compared(verdict, found, a, b, p, part, psi, divergence, arms.decides)


def told(compared: Compared) -> str:
    """A comparison in words."""
    if compared.verdict == UNEVEN:
        counted = f"{compared.candidate} devices against {compared.control}"
        return f"{counted}, drawn to be as many (p {compared.ratio_p:.2g})"
    parts = []
    for each in compared.measures:
        if each.difference is not None:
            times = 100 if each.name != "confidence" else 1
            unit = "%" if each.name == "latency_ms" else " points" if times == 100 else ""
            parts.append(f"{each.says} {times * each.difference:+.3g}{unit}, {each.verdict}")
    pairs = max((each.pairs for each in compared.measures), default=0)
    return f"{'; '.join(parts) or 'nothing is known of both arms yet'} ({pairs} pairs)"


@dataclass(frozen=True, slots=True)
class _Levels:
    """Levels of one measure: of what is called worse, and of what is called no worse; and whether bounds are wanted."""

    worse: float
    no_worse: float
    bounds: bool


def _difference(measure: Measure, arms: Arms, effect: float, levels: _Levels) -> Difference:
    raw = [np.asarray(getattr(arm, measure.name), float) for arm in (arms.candidate, arms.control)]
    candidate, control = (values[~np.isnan(values)] for values in raw)
    means = _estimate(measure, candidate, levels), _estimate(measure, control, levels)
    # Upwards is worse, and what stops a rollout is a bound on that side.
    x, y = (measure.sign * measure.onto(values) for values in (candidate, control))
    size = math.log1p(effect) if measure.name == "latency_ms" else effect
    span = SPAN * size
    pairs = differences.pairs(x, y, span)
    mean = measure.back(measure.sign * float(x.mean() - y.mean())) if len(pairs) else None
    low, high = _ends(measure, pairs, span, levels) if len(pairs) and levels.bounds else (None, None)
    verdict = _verdict(pairs, size, span, levels)
    return Difference(
        measure.name, measure.says, *means, mean, low, high, effect, len(pairs), verdict, measure.decides
    )


def _ends(measure: Measure, pairs: Shares, span: float, levels: _Levels) -> tuple[float | None, float | None]:
    """Bounds for people; what is at the end of the span is open."""
    found = differences.interval(pairs, below=levels.worse, above=levels.no_worse, span=span)
    ends = [
        None if abs(each) >= span else measure.back(measure.sign * each)
        for each in (found.lower, found.upper)
    ]
    return (ends[0], ends[1]) if measure.sign > 0 else (ends[1], ends[0])


def _verdict(pairs: Shares, effect: float, span: float, levels: _Levels) -> str:
    def above(value: float) -> bool:
        return differences.shows_above(pairs, value, span=span, alpha=levels.worse)

    def below(value: float) -> bool:
        return differences.shows_above(1 - pairs, -value, span=span, alpha=levels.no_worse)

    no_worse = below(effect)
    if no_worse and above(-effect):
        return SAME
    if above(0.0):
        return WORSE
    if below(0.0):
        return BETTER
    return NO_WORSE if no_worse else UNKNOWN


def _together(verdicts: list[str]) -> str:
    """The worst of them counts; better is what is better on something and worse on nothing."""
    for word in (WORSE, UNKNOWN, BETTER, NO_WORSE):
        if word in verdicts:
            return word
    return SAME


def _estimate(measure: Measure, values: Shares, levels: _Levels) -> Estimate:
    if not len(values):
        return Estimate(0, None, None, None)
    x = np.clip(measure.unit(values), 0.0, 1.0)
    mean = measure.from_unit(float(x.mean()))
    if not levels.bounds:
        return Estimate(len(values), mean, None, None)
    low, high = lower_bound(x, levels.no_worse / 2), 1 - lower_bound(1 - x, levels.no_worse / 2)
    return Estimate(len(values), mean, measure.from_unit(low), measure.from_unit(high))


def _apart(control: Sketch, candidate: Sketch) -> tuple[float | None, float | None]:
    if not control.n or not candidate.n:
        return None, None
    bins = drift.rebin(control, candidate, drift.bins_for(control.n, candidate.n))
    return drift.psi(*bins), drift.jensen_shannon(*bins)


def _same(x: Any) -> Any:
    return x


_DECADES: Final = math.log(SLOWEST_MS / FASTEST_MS)


def _logs(values: Shares) -> Shares:
    return np.asarray(np.log(np.clip(values, FASTEST_MS, SLOWEST_MS)))


def _log_units(values: Shares) -> Shares:
    return np.asarray((_logs(values) - math.log(FASTEST_MS)) / _DECADES)


def _from_log_unit(value: float) -> float:
    return FASTEST_MS * math.exp(value * _DECADES)


MEASURES: Final = (
    Measure("errors", "errors", 1, True, lambda limits: max(limits["errors"], LEAST), _same, _same, _same, _same),
    Measure("nans", "NaN", 1, True, lambda limits: max(limits["nans"], LEAST), _same, _same, _same, _same),
    Measure(
        "latency_ms", "latency", 1, True, lambda limits: max(limits["latency_ratio"] - 1, 10 * LEAST), _logs,
        math.expm1, _log_units, _from_log_unit,
    ),
    Measure("confidence", "confidence", -1, False, lambda _: 0.05, _same, _same, _same, _same),
)  # fmt: skip
