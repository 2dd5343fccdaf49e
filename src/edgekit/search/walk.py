"""Which setting to try next: a pure decision from what was measured so far, cheapest first.

Calibration alone, then more observers and equalization, then layers kept float by damage per millisecond, then
training on the grid where accuracy binds; pruning where latency or size binds, by the predicted cost first and then
between what was too slow and what was too inaccurate; and training on the grid of a pruned network last.

What a measurement says about settings that were not tried rests on these assumptions:

1. A network gets no slower and no larger by more pruning, nor by fewer layers in float; neither calibration nor
   training changes either.
2. It gets no more accurate by more pruning, nor by fewer layers in float with the same calibration.
3. Training on the grid loses no more than calibration does.

Under them the walk finds a setting that holds the limits whenever its grid has one that holds them by more than what
two measurements of the same thing differ by. Predictions choose the order only; they never rule a setting out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from edgekit.recipe import Budget
from edgekit.search.capabilities import Capabilities
from edgekit.search.limits import DROP, LATENCY, SIZE, limits, measured, missed, reached, too_heavy
from edgekit.search.space import Calibration, Outcome, Setting, Trial

__all__ = ["holds", "next_setting", "out_of_reach"]

Measurements = Sequence[tuple[Setting, Outcome]]

# Two networks that were pruned and still are too slow: from then on, steps double.
GALLOP: Final = 2
# The next ratio lies in the middle half of what is in question, so that every trial rules out a quarter of it.
MIDDLE: Final = 0.25


def holds(outcome: Outcome, budget: Budget) -> bool:
    """Do all limits hold?"""
    return not missed(outcome, budget)


def out_of_reach(budget: Budget, can: Capabilities) -> dict[str, float]:
    """The limits that are below what any setting reaches, with that."""
    floors = {
        LATENCY: can.floor_ms,
        SIZE: None if can.floor_bytes is None else can.floor_bytes / 1e6,
    }
    wanted = limits(budget)
    return {
        name: floor
        for name, floor in floors.items()
        if floor is not None and name in wanted and floor > wanted[name]
    }


def next_setting(trials: Sequence[Trial], budget: Budget, can: Capabilities) -> Setting | None:
    """Choose the next trial.

    Args:
        trials: all so far, in any order: measured, failed, and those that others are running.
        budget: what must hold.
        can: what there is to choose from.

    Returns:
        A setting that no trial has; None when the limits hold, cannot hold, or nothing is left to try. A result that
        is refused for another reason than a limit ends the search as well: no setting mends a proof.
    """
    if not trials:
        return can.first()
    found = [(trial.setting, outcome) for trial, outcome in measured(trials)]
    if any(holds(outcome, budget) for _, outcome in found):
        return None
    if len(trials) >= can.trials or out_of_reach(budget, can):
        return None
    taken = {trial.setting for trial in trials}
    left = [s for s in can.grid() if s not in taken and not _ruled_out(s, found, budget)]
    open_now = [s for s in left if _called_for(s, found, budget, can)]
    busy = _in_training(trials, found, can)
    ready = [s for s in open_now if s.prune not in busy]
    return min(ready, key=_order(trials, found, budget, can), default=None)


def _ruled_out(setting: Setting, found: Measurements, budget: Budget) -> bool:
    """Would it miss a limit by the assumptions?"""
    return any(
        (DROP in missed(outcome, budget) and _as_accurate(tried, setting))
        or (too_heavy(outcome, budget) and _as_light(tried, setting))
        for tried, outcome in found
    )


def _as_accurate(one: Setting, other: Setting) -> bool:
    """Is the first at least as accurate as the second, by the assumptions?"""
    if one.prune > other.prune or not set(one.keep_float) >= set(other.keep_float):
        return False
    return (one.qat and not other.qat) or (one.qat == other.qat and one.calibration == other.calibration)


def _as_light(one: Setting, other: Setting) -> bool:
    """Is the first at least as fast and as small as the second, by the assumptions?"""
    return one.prune >= other.prune and set(one.keep_float) <= set(other.keep_float)


def _called_for(setting: Setting, found: Measurements, budget: Budget, can: Capabilities) -> bool:
    """Training is dear: prune only if less was too heavy, train on the grid only if calibration lost too much."""
    if setting.prune > can.ratios[0] and not any(
        too_heavy(outcome, budget)
        and tried.prune < setting.prune
        and set(tried.keep_float) <= set(setting.keep_float)
        for tried, outcome in found
    ):
        return False
    return not (setting.qat and len(can.qat) > 1) or any(
        DROP in missed(outcome, budget) and not tried.qat and tried.prune <= setting.prune
        for tried, outcome in found
    )


def _in_training(trials: Sequence[Trial], found: Measurements, can: Capabilities) -> set[float]:
    """Ratios whose network somebody is training just now; to take them too would train it twice."""
    trained = {can.ratios[0], *(setting.prune for setting, _ in found)}
    return {trial.setting.prune for trial in trials if trial.running} - trained


Key = tuple[bool, bool, int, int, int, float]


def _order(
    trials: Sequence[Trial], found: Measurements, budget: Budget, can: Capabilities
) -> Callable[[Setting], Key]:
    """What to sort by: worse calibrations last, then what is predicted to be too heavy, then by what it costs."""
    best = _best_calibration(found, can)
    tried = {trial.setting.calibration for trial in trials if not trial.setting.qat}
    trained = {can.ratios[0], *(setting.prune for setting, _ in found)}
    levels = {calibration: i for i, calibration in enumerate(can.calibrations)}
    roads = {kept: _Road(found, kept, budget, can) for kept in _names(can)}

    def key(setting: Setting) -> Key:
        worse = not setting.qat and setting.calibration != best and setting.calibration in tried
        training = 2 * (setting.prune not in trained) + (setting.qat and len(can.qat) > 1)
        road = roads[setting.keep_float]
        light = road.light(setting.prune, setting.prune in trained)
        n, level = len(setting.keep_float), levels[setting.calibration]
        return worse, not light, training, n, level, setting.prune if light else road.away(setting.prune)

    return key


def _names(can: Capabilities) -> Iterable[tuple[str, ...]]:
    return [tuple(sorted(island.name for island in kept)) for kept in can.kept()]


def _best_calibration(found: Measurements, can: Capabilities) -> Calibration:
    """The calibration that lost least where two were measured on the same network; the cheaper of equals."""
    best = can.calibrations[0]
    for other in can.calibrations[1:]:
        pairs = (
            (a.drop or 0.0, b.drop or 0.0)
            for one, a in found
            for two, b in found
            if (one.calibration, two.calibration) == (best, other) and _rest(one) == _rest(two)
        )
        if any(b < a for a, b in pairs):
            best = other
    return best


def _rest(setting: Setting) -> tuple[float, tuple[str, ...], bool]:
    return setting.prune, setting.keep_float, setting.qat


@dataclass(frozen=True)
class _Road:
    """How heavy networks of every ratio are predicted to be with some layers in float.

    Between two measurements a straight line over the predicted share, beyond them the line through the nearest two.
    """

    found: Measurements
    kept: tuple[str, ...]
    budget: Budget
    can: Capabilities

    def light(self, ratio: float, trained: bool) -> bool:
        """Should it be light enough, and a step that is wide enough to get on by?"""
        if trained:
            return self._predicted_light(ratio)
        slow, fast = self._slow(), self._fast()
        if fast is not None and ratio < fast:
            width = fast - slow[-1] if slow else fast - self.can.ratios[0]
            if ratio < fast - (1 - MIDDLE) * width:
                return False
            return ratio >= fast - MIDDLE * width or self._predicted_light(ratio)
        if fast is None and len(slow) > GALLOP and ratio < min(self._gallop(slow), self.can.ratios[-1]):
            return False
        return self._predicted_light(ratio)

    def away(self, ratio: float) -> float:
        """How far a ratio that should be too heavy is from the one to try first among such."""
        fast = self._fast()
        return -ratio if fast is None or ratio >= fast else fast - ratio

    def _gallop(self, slow: Sequence[float]) -> float:
        return slow[-1] + 2 * (slow[-1] - slow[-2])

    def _slow(self) -> list[float]:
        """Ratios that were too heavy with no more layers in float, ascending."""
        return sorted(
            {
                setting.prune
                for setting, outcome in self.found
                if too_heavy(outcome, self.budget) and set(setting.keep_float) <= set(self.kept)
            }
        )

    def _fast(self) -> float | None:
        """The smallest ratio that was light enough with no fewer layers in float."""
        return min(
            (
                setting.prune
                for setting, outcome in self.found
                if not too_heavy(outcome, self.budget) and set(setting.keep_float) >= set(self.kept)
            ),
            default=None,
        )

    def _predicted_light(self, ratio: float) -> bool:
        wanted = limits(self.budget)
        return all(self._predicted(name, ratio) <= wanted[name] for name in (LATENCY, SIZE) if name in wanted)

    def _predicted(self, name: str, ratio: float) -> float:
        """In the unit of the limit; nothing where nothing was measured."""
        points: dict[float, list[float]] = {}
        for setting, outcome in self.found:
            value = reached(outcome, name)
            if value is not None:
                share = self._share(name, setting.prune)
                points.setdefault(share, []).append(value - self._of_islands(name, setting.keep_float))
        means = sorted((x, sum(values) / len(values)) for x, values in points.items())
        return _line(means, self._share(name, ratio)) + self._of_islands(name, self.kept)

    def _share(self, name: str, ratio: float) -> float:
        left = self.can.left(ratio)
        return left.latency if name == LATENCY else left.size

    def _of_islands(self, name: str, kept: Sequence[str]) -> float:
        costs = {i.name: i.cost_ms if name == LATENCY else i.cost_bytes / 1e6 for i in self.can.islands}
        return sum(costs.get(each, 0.0) for each in kept)


def _line(points: Sequence[tuple[float, float]], x: float) -> float:
    """Through the two points around `x`, or the nearest two; through the origin where there is one."""
    if not points:
        return 0.0
    if len(points) == 1:
        (x0, y0) = points[0]
        return y0 * x / x0 if x0 > 0 else y0
    at = next((i for i, (px, _) in enumerate(points) if px >= x), len(points) - 1)
    (x0, y0), (x1, y1) = points[max(at - 1, 0)], points[max(at, 1)]
    y = y0 + (y1 - y0) * (x - x0) / (x1 - x0)
    return y if math.isfinite(y) else y1
