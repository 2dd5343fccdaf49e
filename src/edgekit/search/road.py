"""How heavy a network of every prune ratio should be: the predicted cost first, then what was measured.

Nothing here rules a setting out; it says which ratio to look at next.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from edgekit.recipe import Budget
from edgekit.search.capabilities import Capabilities
from edgekit.search.limits import LATENCY, SIZE, Seen, limits, reached

__all__ = ["Road", "road"]

Points = tuple[tuple[float, float], ...]

# After two pruned networks that still were too heavy, steps double.
GALLOP: Final = 2
# The next ratio lies in the middle half of what is in question, so that every trial settles a quarter of it.
MARGIN: Final = 0.25


@dataclass(frozen=True, slots=True)
class _Line:
    """One limited quantity over the share of it that pruning is predicted to leave."""

    name: str
    limit: float
    points: Points
    islands: float


@dataclass(frozen=True)
class Road:
    """The ratios with one set of layers in float. Made by `road`.

    Attributes:
        can: predicts what a ratio leaves.
        slow: ratios that were too heavy with no more layers in float, ascending.
        fast: the smallest ratio that was light enough with no fewer, None when there is none.
        lines: of every limited quantity.
    """

    can: Capabilities
    slow: tuple[float, ...]
    fast: float | None
    lines: tuple[_Line, ...]

    def light(self, ratio: float, *, trained: bool) -> bool:
        """Is this ratio predicted to be light enough, and is it a step that is wide enough to get on by?

        Args:
            ratio: to prune.
            trained: there is a network of this ratio, so that no step has to be chosen.
        """
        if trained or (self.fast is not None and ratio >= self.fast):
            return self._predicted(ratio)
        if self.fast is None:
            return ratio >= self._least() and self._predicted(ratio)
        width = self.fast - (self.slow[-1] if self.slow else self.can.ratios[0])
        if ratio < self.fast - (1 - MARGIN) * width:
            return False
        return ratio >= self.fast - MARGIN * width or self._predicted(ratio)

    def away(self, ratio: float) -> float:
        """Among ratios that should be too heavy, which to try first: smaller is earlier.

        The heaviest while none was light enough, as it settles whether any is; else the one next to what was.
        """
        return -ratio if self.fast is None or ratio >= self.fast else self.fast - ratio

    def _least(self) -> float:
        """Where the next step has to go at least; never past the last ratio."""
        if len(self.slow) <= GALLOP:
            return 0.0
        return min(self.slow[-1] + 2 * (self.slow[-1] - self.slow[-2]), self.can.ratios[-1])

    def _predicted(self, ratio: float) -> bool:
        return all(
            _at(line.points, _share(self.can, line.name, ratio)) + line.islands <= line.limit
            for line in self.lines
        )


def road(found: Sequence[Seen], kept: Sequence[str], budget: Budget, can: Capabilities) -> Road:
    """Draw the road for some layers in float from everything that was measured.

    Args:
        found: measured settings, with any layers in float; their costs are taken off.
        kept: names of the layers.
        budget: what is limited.
        can: costs of the layers, and predictions.
    """
    names = frozenset(kept)
    wanted = limits(budget)
    return Road(
        can=can,
        slow=tuple(sorted({each.setting.prune for each in found if each.heavy and each.kept <= names})),
        fast=min((s.setting.prune for s in found if not s.heavy and s.kept >= names), default=None),
        lines=tuple(
            _Line(name, wanted[name], _points(found, name, can), _of_islands(name, kept, can))
            for name in (LATENCY, SIZE)
            if name in wanted
        ),
    )


def _points(found: Sequence[Seen], name: str, can: Capabilities) -> Points:
    """Mean of what was measured over the predicted share, without the layers in float; ascending."""
    values: dict[float, list[float]] = {}
    for each in found:
        value = reached(each.outcome, name)
        if value is not None:
            bare = value - _of_islands(name, each.setting.keep_float, can)
            values.setdefault(_share(can, name, each.setting.prune), []).append(bare)
    return tuple(sorted((x, sum(ys) / len(ys)) for x, ys in values.items()))


def _share(can: Capabilities, name: str, ratio: float) -> float:
    left = can.left(ratio)
    return left.latency if name == LATENCY else left.size


def _of_islands(name: str, kept: Sequence[str], can: Capabilities) -> float:
    costs = {i.name: i.cost_ms if name == LATENCY else i.cost_bytes / 1e6 for i in can.islands}
    return sum(costs.get(each, 0.0) for each in kept)


def _at(points: Points, x: float) -> float:
    """On the line through the two points around `x`, or the nearest two; through the origin where there is one."""
    if not points:
        return 0.0
    if len(points) == 1:
        ((x0, y0),) = points
        return y0 * x / x0 if x0 > 0 else y0
    above = next((i for i, (px, _) in enumerate(points) if px >= x), len(points) - 1)
    (x0, y0), (x1, y1) = points[max(above - 1, 0)], points[max(above, 1)]
    return y0 + (y1 - y0) * (x - x0) / (x1 - x0)
