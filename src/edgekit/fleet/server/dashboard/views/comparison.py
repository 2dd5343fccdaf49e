"""The page that holds live against candidate: agreement, what was mistaken for what, latency, noise and drift."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from edgekit.fleet.server.dashboard import plots, words
from edgekit.fleet.server.dashboard.views.common import Bar, Fact, Names, Version, rollout_of, version_of
from edgekit.fleet.windows.comparison import Comparison, Minute, Point, compare, series
from edgekit_runtime.windows import Figures

MOST_PAIRS: Final = 10
POINTS: Final = 120
PERIODS: Final[Mapping[str, tuple[str, int]]] = {
    "6h": ("last 6 hours", 6 * 3600),
    "day": ("last day", 86400),
    "week": ("last week", 7 * 86400),
    "all": ("whole rollout", 0),
}


@dataclass(frozen=True, slots=True)
class Choice:
    """One entry of a selection.

    Attributes:
        value: for the address.
        label: for people.
        chosen: whether it is the one.
    """

    value: str
    label: str
    chosen: bool


@dataclass(frozen=True, slots=True)
class FlipRow:
    """What became of a class.

    Attributes:
        label: of the class.
        left: bar of the answers that left it.
        left_shown: how many.
        came: bar of those that came to it.
        came_shown: how many.
    """

    label: str
    left: Any
    left_shown: str
    came: Any
    came_shown: str


@dataclass(frozen=True, slots=True)
class ComparisonPage:
    """The page.

    Attributes:
        rollout: id.
        model: name.
        live: version before.
        candidate: version that is rolled out.
        stages: to choose from.
        slices: to choose from.
        periods: to choose from.
        facts: figures together.
        pairs: label of live → label of the candidate, the most frequent first.
        other_pairs: differing answers whose pair is not shown.
        flips: by class.
        latency: distributions of both, None where nothing was measured.
        quantiles: (name, live, candidate, ratio).
        is_empty: whether nothing was compared.
        query: of the address of the plots' data.
    """

    rollout: str
    model: str
    live: Version
    candidate: Version
    stages: tuple[Choice, ...]
    slices: tuple[Choice, ...]
    periods: tuple[Choice, ...]
    facts: tuple[Fact, ...]
    pairs: tuple[Bar, ...]
    other_pairs: int
    flips: tuple[FlipRow, ...]
    latency: plots.Distribution | None
    quantiles: tuple[tuple[str, str, str, str], ...]
    is_empty: bool
    query: str


@dataclass(frozen=True, slots=True)
class Filter:
    """What part of the figures is asked for.

    Attributes:
        stage: number, None for all.
        part: "label=value", "" for all devices.
        period: one of `PERIODS`.
    """

    stage: int | None
    part: str
    period: str

    @classmethod
    def of(cls, stage: str, part: str, period: str) -> Filter:
        """From an address; what makes no sense there is left out."""
        number = int(stage) if stage.isdecimal() and len(stage) < 4 else None
        return cls(number, part[:256], period if period in PERIODS else "day")

    def since_s(self, now_s: float) -> int:
        """Where the period begins, 0 for the whole rollout."""
        seconds = PERIODS[self.period][1]
        return int(now_s) - seconds if seconds else 0


def page_of(
    tree: Mapping[str, Any],
    minutes: Sequence[Minute],
    slices: Sequence[str],
    wanted: Filter,
    names: Names,
    query: str,
) -> ComparisonPage:
    """The page from its rows.

    Args:
        tree: the rollout.
        minutes: of its pair, in any order.
        slices: parts of the fleet that there are figures of.
        wanted: what was asked for.
        names: of releases.
        query: of the address.
    """
    rollout, total = rollout_of(tree), compare(minutes)
    figures = Figures()
    for each in minutes:
        figures = figures.merged(each.figures)
    latency = plots.distributions(figures.live.latency_ms, figures.candidate.latency_ms)
    stages = [Choice("", "all stages", wanted.stage is None)]
    stages += [
        Choice(str(number), f"{number + 1}: up to {percent:g}%", wanted.stage == number)
        for number, percent in enumerate(rollout.plan.stages)
    ]
    parts = [Choice("", "all devices", not wanted.part)]
    parts += [Choice(each, each.replace("=", " = ", 1), wanted.part == each) for each in slices]
    pairs = total.confusion[:MOST_PAIRS]
    rest = total.other_pairs + sum(count for *_, count in total.confusion[MOST_PAIRS:])
    return ComparisonPage(
        rollout.id, rollout.model, version_of(names, rollout.baseline, model=rollout.model),
        version_of(names, rollout.release, model=rollout.model), tuple(stages), tuple(parts),
        tuple(Choice(name, label, name == wanted.period) for name, (label, _) in PERIODS.items()),
        _facts(total), _pairs(pairs, total.compared), rest, _flips(total), latency, _quantiles(total),
        not total.compared, query,
    )  # fmt: skip


def series_of(minutes: Sequence[Minute]) -> dict[str, Any]:
    """Series for the plots, oldest first.

    Args:
        minutes: of one pair, in any order.
    """
    span = max((m.minute for m in minutes), default=0) - min((m.minute for m in minutes), default=0) + 1
    points = series(minutes, max(1, -(-span // POINTS)))
    inputs = sorted({name for each in points for name in each.input_psi})
    return {
        "at": [each.at_s for each in points],
        "agreement": [_times(each.agreement) for each in points],
        "floor": [None if each.noise is None else 100 * (1 - each.noise) for each in points],
        "live_ms": [each.live_p50_ms for each in points],
        "candidate_ms": [each.candidate_p50_ms for each in points],
        "confidence": [each.confidence_psi for each in points],
        "divergence": [each.confidence_js for each in points],
        "inputs": [{"name": name, "psi": [_input(each, name) for each in points]} for name in inputs[:4]],
    }


def _input(point: Point, name: str) -> float | None:
    return point.input_psi.get(name)


def _times(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _facts(total: Comparison) -> tuple[Fact, ...]:
    ratio = words.NONE if total.latency_ratio is None else f"{total.latency_ratio:.2f}×"
    psi = words.NONE if total.confidence_psi is None else f"{total.confidence_psi:.3f}"
    js = words.NONE if total.confidence_js is None else f"{total.confidence_js:.3f} bit"
    return (
        Fact("Agreement", words.share(total.agreement, 2), f"of {words.count(total.compared)} answers"),
        Fact("Noise floor", words.share(total.noise, 2), "live against itself"),
        Fact("Errors", words.count(total.errors), "of the candidate"),
        Fact("NaN", words.count(total.nans[0]), f"live: {words.count(total.nans[1])}"),
        Fact("Latency", ratio, "ratio of the medians"),
        Fact("Drift", psi, f"stability index of the confidence; Jensen-Shannon {js}"),
    )


def _pairs(pairs: Sequence[tuple[str, str, int]], compared: int) -> tuple[Bar, ...]:
    full = max((count for *_, count in pairs), default=0)
    return tuple(
        Bar(f"{live} → {candidate}", plots.track(count, full, "candidate"), words.count(count),
            words.share(count / compared, 2) if compared else "")
        for live, candidate, count in pairs
    )  # fmt: skip


def _flips(total: Comparison) -> tuple[FlipRow, ...]:
    rows = total.flips[:MOST_PAIRS]
    full = max((max(each.left, each.came) for each in rows), default=0)
    return tuple(
        FlipRow(
            each.label, plots.track(each.left, full, "live"), words.count(each.left),
            plots.track(each.came, full, "candidate"), words.count(each.came),
        )
        for each in rows
    )  # fmt: skip


def _quantiles(total: Comparison) -> tuple[tuple[str, str, str, str], ...]:
    found = []
    for name in ("p50", "p90", "p99"):
        live, candidate = total.live_ms.get(name), total.candidate_ms.get(name)
        ratio = f"{candidate / live:.2f}×" if live and candidate is not None else words.NONE
        found.append((name, _ms(live), _ms(candidate), ratio))
    return tuple(found)


def _ms(value: float | None) -> str:
    return words.NONE if value is None else f"{value:.3g} ms"
