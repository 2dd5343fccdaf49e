"""What two versions made of the same inputs: sums of minutes → agreement, flips, latency, noise, drift. Pure.

Figures add up, so any stretch of time is the sum of its minutes, and a series is the same sums in steps.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Final

from edgekit.fleet.statistics import drift
from edgekit.fleet.statistics.intervals import Floats
from edgekit_runtime.sketches import Sketch
from edgekit_runtime.windows import Figures

MAX_PAIRS: Final = 100
MAX_POINTS: Final = 500
QUANTILES: Final = (("p50", 0.5), ("p90", 0.9), ("p99", 0.99))
MINUTE_S: Final = 60


@dataclass(frozen=True, slots=True)
class Minute:
    """Figures of a minute.

    Attributes:
        minute: seconds since 1970, divided by 60.
        windows: that they come from.
        figures: of all devices together.
    """

    minute: int
    windows: int
    figures: Figures


@dataclass(frozen=True, slots=True)
class Flip:
    """What became of one class.

    Attributes:
        label: of the live version.
        left: compared answers in which the candidate said something else.
        came: in which the candidate said this, and the live version something else.
    """

    label: str
    left: int
    came: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two versions beside one another.

    Attributes:
        windows: that it comes from.
        compared: answers.
        agreement: share that are the same, None where nothing was compared.
        noise: share in which the live version differs from itself on the same input, None where it was not tried.
        errors: inputs that the candidate raised an error on.
        nans: answers of the candidate with NaN, and of the live version.
        confusion: (label of live, label of candidate, count), the most frequent first.
        other_pairs: differing answers whose pair is not among these.
        flips: by class, the most frequent first.
        live_ms: quantiles of milliseconds; empty where there are none.
        candidate_ms: likewise.
        latency_ratio: of the medians, None where one is not known.
        distance: quantiles of the distance between answers.
        confidence_psi: population stability index of the candidate's confidence against the live version's.
        confidence_js: Jensen-Shannon divergence of the same, in bits: 0 for none, 1 where they share nothing.
    """

    windows: int
    compared: int
    agreement: float | None
    noise: float | None
    errors: int
    nans: tuple[int, int]
    confusion: tuple[tuple[str, str, int], ...]
    other_pairs: int
    flips: tuple[Flip, ...]
    live_ms: dict[str, float]
    candidate_ms: dict[str, float]
    latency_ratio: float | None
    distance: dict[str, float]
    confidence_psi: float | None
    confidence_js: float | None

    def to_tree(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Point:
    """A step of time.

    Attributes:
        at_s: its begin, seconds since 1970.
        compared: answers.
        agreement: share that are the same.
        noise: share in which the live version differs from itself.
        live_p50_ms: median.
        candidate_p50_ms: median.
        confidence_psi: of the candidate's confidence against the live version's.
        confidence_js: Jensen-Shannon divergence of the same, in bits.
        input_psi: input to the index of its values against those of the first step that has some.
    """

    at_s: int
    compared: int
    agreement: float | None
    noise: float | None
    live_p50_ms: float | None
    candidate_p50_ms: float | None
    confidence_psi: float | None
    confidence_js: float | None
    input_psi: dict[str, float]

    def to_tree(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)


def compare(minutes: Iterable[Minute]) -> Comparison:
    """All minutes together.

    Args:
        minutes: of one pair of versions, in any order.
    """
    figures, windows = Figures(), 0
    for each in minutes:
        figures, windows = figures.merged(each.figures), windows + each.windows
    counts = figures.counts
    pairs = sorted(figures.confusion.items(), key=lambda item: (-item[1], item[0]))
    return Comparison(
        windows=windows,
        compared=counts.compared,
        agreement=_share(counts.agreed, counts.compared),
        noise=_apart(figures),
        errors=counts.errors,
        nans=(counts.nans, counts.live_nans),
        confusion=tuple((*pair, count) for pair, count in pairs[:MAX_PAIRS]),
        other_pairs=figures.other_pairs + sum(count for _, count in pairs[MAX_PAIRS:]),
        flips=_flips(figures),
        live_ms=_quantiles(figures.live.latency_ms),
        candidate_ms=_quantiles(figures.candidate.latency_ms),
        latency_ratio=_ratio(figures),
        distance=_quantiles(figures.distance),
        confidence_psi=index(figures.live.confidence, figures.candidate.confidence),
        confidence_js=divergence(figures.live.confidence, figures.candidate.confidence),
    )


def series(minutes: Iterable[Minute], step: int) -> list[Point]:
    """The same over time, oldest first; where the steps were too many they are longer.

    Args:
        minutes: of one pair of versions, in any order.
        step: minutes of a point.
    """
    ordered = sorted(minutes, key=lambda each: each.minute)
    if not ordered:
        return []
    spanned = ordered[-1].minute - ordered[0].minute + 1
    step = max(step, math.ceil(spanned / (MAX_POINTS - 1)))
    sums: dict[int, Figures] = defaultdict(Figures)
    for each in ordered:
        at = each.minute // step * step
        sums[at] = sums[at].merged(each.figures)
    first: dict[str, Sketch] = {}
    return [_point(at, figures, first) for at, figures in sorted(sums.items())]


def index(reference: Sketch, current: Sketch) -> float | None:
    """Population stability index of two sketches; None where one of them has no numbers.

    Args:
        reference: what the bins come from.
        current: what is held against it.
    """
    bins = _binned(reference, current)
    return None if bins is None else drift.psi(*bins)


def divergence(reference: Sketch, current: Sketch) -> float | None:
    """Jensen-Shannon divergence of two sketches in bits, over the same bins; None where one of them has no numbers.

    Args:
        reference: as in `index`.
        current: likewise.
    """
    bins = _binned(reference, current)
    return None if bins is None else drift.jensen_shannon(*bins)


def _binned(reference: Sketch, current: Sketch) -> tuple[Floats, Floats] | None:
    if not reference.n or not current.n:
        return None
    return drift.rebin(reference, current, drift.bins_for(reference.n, current.n))


def _point(at: int, figures: Figures, first: dict[str, Sketch]) -> Point:
    inputs = {}
    for name, values in figures.inputs.items():
        found = index(first.setdefault(name, values.values), values.values) if values.values.n else None
        if found is not None:
            inputs[name] = found
    counts = figures.counts
    return Point(
        at_s=at * MINUTE_S,
        compared=counts.compared,
        agreement=_share(counts.agreed, counts.compared),
        noise=_apart(figures),
        live_p50_ms=_quantiles(figures.live.latency_ms).get("p50"),
        candidate_p50_ms=_quantiles(figures.candidate.latency_ms).get("p50"),
        confidence_psi=index(figures.live.confidence, figures.candidate.confidence),
        confidence_js=divergence(figures.live.confidence, figures.candidate.confidence),
        input_psi=inputs,
    )


def _flips(figures: Figures) -> tuple[Flip, ...]:
    left: Counter[str] = Counter()
    came: Counter[str] = Counter()
    for (live, candidate), count in figures.confusion.items():
        left[live] += count
        came[candidate] += count
    found = (Flip(label, left[label], came[label]) for label in {*left, *came})
    return tuple(sorted(found, key=lambda each: (-each.left - each.came, each.label))[:MAX_PAIRS])


def _apart(figures: Figures) -> float | None:
    agreed = _share(figures.noise.agreed, figures.noise.compared)
    return None if agreed is None else 1 - agreed


def _ratio(figures: Figures) -> float | None:
    live, candidate = (each.latency_ms.quantile(0.5) for each in (figures.live, figures.candidate))
    return candidate / live if live > 0 and not math.isnan(candidate) else None


def _quantiles(sketch: Sketch) -> dict[str, float]:
    return {name: sketch.quantile(share) for name, share in QUANTILES} if sketch.n else {}


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
