"""Rows as the database gives them to the views of the dashboard."""

from __future__ import annotations

from typing import Any

from edgekit.fleet.rules.gates import Verdict
from edgekit.fleet.rules.rollouts import Plan, Rollout

NOW_S = 1_900_000_000.0
NAMES = {"a" * 64: ("door", "1.0"), "b" * 64: ("door", "1.1")}


def a_rollout(**more: Any) -> Rollout:
    """One that runs beside another version."""
    return Rollout("r1", "door", "stable", "b" * 64, "a" * 64, "salt", more.pop("plan", Plan()), **more)


def a_tree(found: Rollout, look: dict[str, Any] | None = None) -> dict[str, Any]:
    """As the database gives it."""
    return {
        **found.to_tree(), "version": "1.1", "revision": 0, "created_s": NOW_S - 900, "created_by": "olga", "look": look
    }  # fmt: skip


def a_look(*verdicts: Verdict, stage: int = 0, phase: str = "shadow", **counts: int) -> dict[str, Any]:
    """As the database gives it."""
    return {
        "at_s": NOW_S - 10, "stage": stage, "phase": phase, "bound": 10_000,
        "verdicts": [each.to_tree() for each in verdicts], "counts": counts,
    }  # fmt: skip


def a_verdict(gate: str = "agreement", outcome: str = "pass", **more: Any) -> Verdict:
    return Verdict(
        gate,
        outcome,
        "on 40 devices",
        **{"limit": 0.95, "estimate": 0.98, "lower": 0.96, "upper": 0.99, **more},
    )
