"""The three limits of a budget, read off an outcome."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Final

from edgekit.recipe import Budget
from edgekit.search.space import Outcome, Trial

__all__ = ["DROP", "LATENCY", "LIMITS", "SIZE", "limits", "measured", "missed", "reached", "too_heavy"]

DROP, LATENCY, SIZE = "max_drop", "max_latency_ms", "max_size_mb"
LIMITS: Final[Mapping[str, Callable[[Outcome], float | None]]] = MappingProxyType(
    {
        DROP: lambda outcome: outcome.drop,
        LATENCY: lambda outcome: outcome.latency_ms,
        SIZE: lambda outcome: outcome.size_bytes / 1e6,
    }
)


def limits(budget: Budget) -> dict[str, float]:
    """The limits that a budget sets."""
    return {name: limit for name in LIMITS if (limit := getattr(budget, name)) is not None}


def reached(outcome: Outcome, name: str) -> float | None:
    """What a limit is compared with; None where it was not measured, which misses nothing, as in the report."""
    return LIMITS[name](outcome)


def missed(outcome: Outcome, budget: Budget) -> dict[str, float]:
    """The limits that an outcome misses, with what it reached."""
    found = {name: (reached(outcome, name), limit) for name, limit in limits(budget).items()}
    return {name: value for name, (value, limit) in found.items() if value is not None and value > limit}


def too_heavy(outcome: Outcome, budget: Budget) -> bool:
    """Is it too slow or too large?"""
    return not missed(outcome, budget).keys() <= {DROP}


def measured(trials: Sequence[Trial]) -> list[tuple[Trial, Outcome]]:
    """The trials that came to something."""
    return [(trial, trial.outcome) for trial in trials if trial.outcome is not None]
