"""What a search came to: the trial to ship, the nearest miss and what binds it, and the front of all trials."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal
from types import MappingProxyType
from typing import Any, Final

from edgekit.recipe import Budget
from edgekit.search.capabilities import Capabilities
from edgekit.search.limits import DROP, FLOAT, LATENCY, SIZE, limits, measured, missed, reached
from edgekit.search.space import Outcome, Trial
from edgekit.search.walk import out_of_reach

__all__ = ["Bind", "Miss", "chosen", "nearest_miss", "pareto", "trial_table"]

_BEST: Final = MappingProxyType(
    {DROP: "most accurate", LATENCY: "fastest", SIZE: "smallest", FLOAT: "fastest"}
)
_TAKES: Final = MappingProxyType(
    {
        DROP: "loses {}",
        LATENCY: "takes {} ms",
        SIZE: "has {} MB",
        FLOAT: "takes {} times as long as float",
    }
)
# What a miss of `max_drop = 0` is measured in: the default of most metrics.
_DROP_SCALE: Final = 0.01


@dataclass(frozen=True, slots=True)
class Bind:
    """A limit that no trial held together with the others.

    Attributes:
        limit: "max_drop", "max_latency_ms", "max_size_mb", or "allow_slower" where float is faster.
        allowed: by the budget.
        reached: the best of the trials that hold the other limits, or of all where none does.
        trial: the one that reached it.
        alone: it holds every other limit, so that relaxing this one to `reached` is enough.
        others: the other limits that the user named.
        floor: what no setting gets below, where that is above the limit.
    """

    limit: str
    allowed: float
    reached: float
    trial: Trial
    alone: bool
    others: tuple[str, ...] = ()
    floor: float | None = None

    def __str__(self) -> str:
        best = f"the {_BEST[self.limit]} trial"
        if self.others:
            best += f" that holds {' and '.join(self.others)}" if self.alone else " of all"
        takes = _TAKES[self.limit]
        said = f"{_named(self.limit, self.allowed)}: {best} {takes.format(_up(self.reached))} ({self.trial})"
        if self.floor is not None:
            return f"{said}; even the heaviest pruning {takes.format(_up(self.floor))}"
        way_out = "--allow-slower" if self.limit == FLOAT else f"{self.limit} {_up(self.reached)}"
        return f"{said}; with {way_out} it would hold" if self.alone else said


def _named(limit: str, allowed: float) -> str:
    """A limit as a heading."""
    return "slower than float" if limit == FLOAT else f"{limit} {allowed:g}"


def _others(limit: str, budget: Budget) -> tuple[str, ...]:
    """The limits beside one that the user named."""
    return tuple(each for each in limits(budget) if each not in {limit, FLOAT})


@dataclass(frozen=True, slots=True)
class Miss:
    """Why no trial is accepted.

    Attributes:
        trial: the nearest, None when none could be measured.
        binds: the limits that bind; empty when the limits hold and something else is wrong.
        reasons: what else is wrong: why the nearest is refused, or why trials failed.
    """

    trial: Trial | None
    binds: tuple[Bind, ...] = ()
    reasons: tuple[str, ...] = ()

    def sentences(self) -> tuple[str, ...]:
        """For the terminal and the report; the nearest trial first."""
        nearest = (f"nearest: {self.trial}",) if self.trial is not None else ("no trial could be measured",)
        return (*nearest, *map(str, self.binds), *self.reasons)


def chosen(trials: Sequence[Trial], budget: Budget) -> Trial | None:
    """The accepted trial that loses least; of equals the faster, then the smaller, then the first.

    The user named what latency and size are enough, so what is left over goes into accuracy.
    """
    accepted = [(t, o) for t, o in measured(trials) if not o.refused and not missed(o, budget)]
    best = min(accepted, key=lambda pair: (*_values(pair[1]), pair[0].number), default=None)
    return None if best is None else best[0]


def nearest_miss(trials: Sequence[Trial], budget: Budget, can: Capabilities | None = None) -> Miss:
    """Which trial came nearest, and what binds.

    The nearest is the one whose worst miss is smallest, relative to its limit.

    Args:
        trials: none of them accepted.
        budget: what they miss.
        can: tells what is out of reach.
    """
    found = measured(trials)
    if not found:
        return Miss(None, reasons=tuple(f"{t}: {t.failure}" for t in trials if t.failure))
    nearest, outcome = min(found, key=lambda pair: (_excess(pair[1], budget), pair[0].number))
    floors = out_of_reach(budget, can) if can is not None else {}
    if not missed(outcome, budget):
        return Miss(nearest, reasons=outcome.refused)
    binds = [bind for name in limits(budget) if (bind := _bind(name, found, budget, floors)) is not None]
    if not binds:
        # Each limit was held by some trial, and none by a trial that held all but one.
        binds = [
            Bind(name, limits(budget)[name], value, nearest, alone=False, others=_others(name, budget))
            for name, value in missed(outcome, budget).items()
        ]
    return Miss(nearest, tuple(binds), outcome.refused)


def _bind(
    name: str, found: Sequence[tuple[Trial, Outcome]], budget: Budget, floors: Mapping[str, float]
) -> Bind | None:
    allowed = limits(budget)[name]
    judged = [(t, o, v) for t, o in found if (v := reached(o, name)) is not None]
    holding = [row for row in judged if not missed(row[1], budget).keys() - {name}]
    best = min(holding or judged, key=lambda row: (row[2], row[0].number), default=None)
    if best is None or best[2] <= allowed:
        return None
    others = _others(name, budget)
    return Bind(name, allowed, best[2], best[0], bool(holding), others, floors.get(name))


def _excess(outcome: Outcome, budget: Budget) -> float:
    """The worst miss as a share of its limit; 0 when none."""
    allowed = limits(budget)
    shares = (
        (value - allowed[name]) / (allowed[name] or _DROP_SCALE)
        for name, value in missed(outcome, budget).items()
    )
    return max(shares, default=0.0)


def pareto(trials: Sequence[Trial]) -> tuple[Trial, ...]:
    """The trials that no other beats in accuracy, latency and size at once, most accurate first.

    What was not measured counts as the worst; refused trials are left out.
    """
    rows = sorted(
        ((_values(o), t) for t, o in measured(trials) if not o.refused),
        key=lambda row: (row[0], row[1].number),
    )
    front: list[tuple[tuple[float, ...], Trial]] = []
    for values, trial in rows:
        if not any(all(a <= b for a, b in zip(better, values, strict=True)) for better, _ in front):
            front.append((values, trial))
    return tuple(trial for _, trial in front)


def trial_table(trials: Sequence[Trial], budget: Budget) -> list[dict[str, Any]]:
    """Rows for the report: number, setting, outcome, whether it is feasible, and why or why not."""
    return [_row(trial, budget) for trial in sorted(trials, key=lambda trial: trial.number)]


def _row(trial: Trial, budget: Budget) -> dict[str, Any]:
    outcome = trial.outcome
    row: dict[str, Any] = {
        "number": trial.number,
        "setting": trial.setting.to_dict(),
        "outcome": None,
        "feasible": False,
        "why": trial.failure or "not finished",
    }
    if outcome is None:
        return row
    summary = {
        "drop": outcome.drop,
        "latency_ms": outcome.latency_ms,
        "float_latency_ms": outcome.float_latency_ms,
        "size_bytes": outcome.size_bytes,
    }
    misses = [
        f"{_named(name, limits(budget)[name])}: {_TAKES[name].format(_up(value))}"
        for name, value in missed(outcome, budget).items()
    ]
    why = [*misses, *outcome.refused]
    return row | {
        "outcome": outcome.to_dict() | summary,
        "feasible": not why,
        "why": "; ".join(why) or "holds the budget",
    }


def _values(outcome: Outcome) -> tuple[float, float, float]:
    drop, latency = outcome.drop, outcome.latency_ms
    return (
        math.inf if drop is None else drop,
        math.inf if latency is None else latency,
        float(outcome.size_bytes),
    )


def _up(value: float) -> str:
    """Three digits, rounded up: a limit that is set to what is written here holds."""
    if not math.isfinite(value) or value <= 0:
        return f"{value:g}"
    exact = Decimal(repr(value))
    rounded = exact.quantize(Decimal(1).scaleb(exact.adjusted() - 2), ROUND_CEILING)
    return f"{float(rounded):.6g}"
