"""Chooses which units go: the least damage per saved cost first, until the cost is low enough."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from edgekit.stages.prune.costs import Cost
from edgekit.stages.prune.damage import Curve, block_of
from edgekit.stages.prune.groups import Group
from edgekit.stages.prune.trace import Structure

# Blocks beyond the next one that a single step may take, so that steps which save nothing are jumped over.
STEPS: Final = (0, 1, 2, 3, 5, 7, 11, 15, 23, 31, 47, 63)


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
    curves: Sequence[Curve],
    cost: Cost,
    *,
    wanted: float,
    multiple: int,
) -> Plan:
    """Remove blocks of units, the least damage per saved cost first, and last the one that is just enough.

    What was taken before it and is not needed any more is given back.

    A block takes a group to a lower multiple of positions, next or further down: integer kernels compute whole
    vectors, so latency falls in steps. At least one block of every group stays.

    Args:
        structure: of `trace`.
        among: groups that may be narrowed.
        curves: the damage of narrowing each, then of leaving out each residual branch that may go whole; branches
            follow the units in masks.
        cost: of a mask.
        wanted: cost to reach.
        multiple: of positions that a group keeps; wide units count as many positions each.

    Returns:
        The plan; where even the last blocks do not reach what is wanted, the cheapest one.
    """
    state = _State(structure, among, curves, cost, multiple)
    before = state.cost
    while state.cost > wanted:
        options = [m for m in state.moves(narrower=True) if m.saved > 0]
        if not options:
            break
        best = min(options, key=lambda m: (m.damage / m.saved, -m.saved))
        if state.cost - best.saved <= wanted:
            enough = (m for m in options if state.cost - m.saved <= wanted)
            best = min(enough, key=lambda m: (m.damage, -m.saved))
        state.take(best)
    while state.cost <= wanted:
        options = [m for m in state.moves(narrower=False) if state.cost - m.saved <= wanted and m.damage < 0]
        if not options:
            break
        state.take(min(options, key=lambda m: (m.damage, -m.saved)))
    return Plan(state.keep, before, state.cost, wanted, _widths(among, state.left[: len(among)]))


@dataclass(frozen=True, slots=True)
class _Move:
    """A curve taken to another count: what that damages and saves, both negative on the way back."""

    curve: int
    target: int
    damage: float
    saved: float


class _State:
    """How much of every curve is left."""

    def __init__(
        self,
        structure: Structure,
        among: Sequence[Group],
        curves: Sequence[Curve],
        cost: Cost,
        multiple: int,
    ) -> None:
        branches = len(curves) - len(among)
        self.keep = np.ones(structure.n_units + branches + 1, bool)
        self.left = [len(curve.order) for curve in curves]
        self.cost = cost(self.keep)
        self._curves, self._cost = curves, cost
        self._blocks = [*(block_of(group, multiple) for group in among), *[1] * branches]

    def moves(self, *, narrower: bool) -> Iterator[_Move]:
        """All steps from here, one way."""
        for i, (curve, left, block) in enumerate(zip(self._curves, self.left, self._blocks, strict=True)):
            targets = (
                _lower(left, block, curve.left[0]) if narrower else _higher(left, block, len(curve.order))
            )
            for target in targets:
                self._set(i, target)
                cost = self._cost(self.keep)
                self._set(i, left)
                yield _Move(i, target, curve.at(target) - curve.at(left), self.cost - cost)

    def take(self, move: _Move) -> None:
        """Go there."""
        self._set(move.curve, move.target)
        self.left[move.curve] = move.target
        self.cost = self._cost(self.keep)

    def _set(self, curve: int, left: int) -> None:
        order = self._curves[curve].order
        self.keep[order[: len(order) - left]] = False
        self.keep[order[len(order) - left :]] = True


def _widths(among: Sequence[Group], left: Sequence[int]) -> tuple[tuple[str, int, int], ...]:
    """Positions before and after; parts of one layer that go separately count together."""
    found: dict[str, tuple[int, int]] = {}
    for group, n in zip(among, left, strict=True):
        before, after = found.get(group.name, (0, 0))
        found[group.name] = before + len(group.units) * group.width, after + n * group.width
    return tuple((name, *counts) for name, counts in found.items())


def _lower(left: int, block: int, least: int) -> list[int]:
    """Counts to go down to from here: multiples of a block."""
    top = (left - 1) // block * block
    return [n for n in (top - k * block for k in STEPS) if n >= least]


def _higher(left: int, block: int, full: int) -> list[int]:
    """Counts to go back to from here: multiples of a block, or all."""
    return sorted({min(full, (left // block + 1 + k) * block) for k in STEPS} - {left})
