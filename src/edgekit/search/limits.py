"""The limits of a budget, read off an outcome."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from edgekit.recipe import SLOWER, Budget
from edgekit.search.space import Outcome, Setting, Trial

__all__ = ["DROP", "FLOAT", "LATENCY", "SIZE", "Seen", "limits", "measured", "missed", "reached", "seen"]

DROP, LATENCY, SIZE = "max_drop", "max_latency_ms", "max_size_mb"
# What the float model takes is a limit that nobody has to name.
FLOAT = "allow_slower"
LIMITS: Final[Mapping[str, Callable[[Outcome], float | None]]] = MappingProxyType(
    {
        DROP: lambda outcome: outcome.drop,
        LATENCY: lambda outcome: outcome.latency_ms,
        SIZE: lambda outcome: outcome.size_bytes / 1e6,
        FLOAT: lambda outcome: outcome.float_ratio,
    }
)


def limits(budget: Budget) -> dict[str, float]:
    """The limits that a budget sets, in the units of `reached`."""
    named = {name: getattr(budget, name) for name in (DROP, LATENCY, SIZE)}
    named[FLOAT] = None if budget.allow_slower else SLOWER
    return {name: limit for name, limit in named.items() if limit is not None}


def reached(outcome: Outcome, name: str) -> float | None:
    """What a limit is compared with; None where it was not measured, which misses nothing, as in the report."""
    return LIMITS[name](outcome)


def missed(outcome: Outcome, budget: Budget) -> dict[str, float]:
    """The limits that an outcome misses, with what it reached."""
    found = {name: (reached(outcome, name), limit) for name, limit in limits(budget).items()}
    return {name: value for name, (value, limit) in found.items() if value is not None and value > limit}


def measured(trials: Sequence[Trial]) -> list[tuple[Trial, Outcome]]:
    """The trials that came to something."""
    return [(trial, trial.outcome) for trial in trials if trial.outcome is not None]


@dataclass(frozen=True, slots=True)
class Seen:
    """A measured setting in the light of a budget.

    Attributes:
        setting: that was tried.
        outcome: that was measured.
        kept: its layers in float.
        heavy: it is too slow or too large.
        lossy: it loses too much.
        lossy_float: its network lost too much before it was quantized.
    """

    setting: Setting
    outcome: Outcome
    kept: frozenset[str]
    heavy: bool
    lossy: bool
    lossy_float: bool


def seen(trials: Sequence[Trial], budget: Budget) -> list[Seen]:
    """What the trials say about a budget."""
    rows = []
    for trial, outcome in measured(trials):
        misses = missed(outcome, budget).keys()
        kept = frozenset(trial.setting.keep_float)
        allowed = math.inf if budget.max_drop is None else budget.max_drop
        lossy_float = outcome.float_drop is not None and outcome.float_drop > allowed
        rows.append(Seen(trial.setting, outcome, kept, bool(misses - {DROP}), DROP in misses, lossy_float))
    return rows
