"""Chooses which units go: the least important per saved cost first, until the cost is low enough."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgekit.stages.prune.costs import Cost
from edgekit.stages.prune.groups import Group
from edgekit.stages.prune.trace import Structure


@dataclass(frozen=True)
class Plan:
    """What goes, decided before anything is changed.

    Attributes:
        keep: bool per unit, then per branch, and True at the end.
        before: cost of everything.
        after: cost of what is left.
        wanted: cost that was asked for.
        widths: name of the groups, positions before and after.
    """

    keep: np.ndarray
    before: float
    after: float
    wanted: float
    widths: tuple[tuple[str, int, int], ...]

    @property
    def reached(self) -> bool:
        """Is the cost as low as wanted?"""
        return self.after <= self.wanted


def plan(
    structure: Structure,
    among: Sequence[Group],
    importance: np.ndarray,
    cost: Cost,
    *,
    wanted: float,
    multiple: int,
    branches: int = 0,
) -> Plan:
    """Remove blocks of units, the least importance per saved cost first.

    A block takes a group to the next lower multiple of positions, or to one below where that alone saves nothing:
    integer kernels compute whole vectors, so latency falls in steps. At least one block of every group stays.

    Args:
        structure: of `trace`.
        among: groups that may be narrowed.
        importance: of every unit, then of every branch; at least 0, additive.
        cost: of a mask.
        wanted: cost to reach.
        multiple: of positions that a group keeps; wide units count as many positions each.
        branches: how many residual branches may go whole; they follow the units in `importance` and in masks.

    Returns:
        The plan; where even the last blocks do not reach what is wanted, the cheapest one.
    """
    keep = np.ones(structure.n_units + branches + 1, bool)
    ranked = [group.units[np.argsort(importance[group.units], kind="stable")] for group in among]
    blocks = [max(1, multiple // group.width) for group in among]
    least = [*blocks, *(0 for _ in range(branches))]
    ranked += [np.array([structure.n_units + i]) for i in range(branches)]
    blocks += [1] * branches
    left = [len(units) for units in ranked]
    before = now = cost(keep)
    while now > wanted:
        best: tuple[float, int, int, float] | None = None
        for i, units in enumerate(ranked):
            for target in _targets(left[i], blocks[i], least[i]):
                gone = units[len(units) - left[i] : len(units) - target]
                keep[gone] = False
                saved = now - cost(keep)
                keep[gone] = True
                if saved <= 0:
                    continue
                score = float(importance[gone].sum()) / saved
                if best is None or score < best[0]:
                    best = score, i, target, now - saved
        if best is None:
            break
        _, i, target, now = best
        keep[ranked[i][len(ranked[i]) - left[i] : len(ranked[i]) - target]] = False
        left[i] = target
    return Plan(keep, before, now, wanted, _widths(among, left[: len(among)]))


def _widths(among: Sequence[Group], left: Sequence[int]) -> tuple[tuple[str, int, int], ...]:
    """Positions before and after; parts of one layer that go separately count together."""
    found: dict[str, tuple[int, int]] = {}
    for group, n in zip(among, left, strict=True):
        before, after = found.get(group.name, (0, 0))
        found[group.name] = before + len(group.units) * group.width, after + n * group.width
    return tuple((name, *counts) for name, counts in found.items())


def _targets(left: int, block: int, least: int) -> list[int]:
    """Counts to go to from here: the next two lower multiples of a block."""
    lower = (left - 1) // block * block
    return [n for n in (lower, lower - block) if n >= least]
