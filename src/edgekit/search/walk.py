"""Which setting to try next: a pure decision from what was measured so far, cheapest first.

Calibration alone, then more observers and equalization, then layers kept float by damage per millisecond, then
training on the grid where accuracy binds; pruning where latency or size binds, by the predicted cost first and then
between what was too slow and what was too inaccurate; and training on the grid of a pruned network last.

What a measurement says about settings that were not tried rests on these assumptions:

1. A network gets no slower and no larger by more pruning, nor by fewer layers in float; neither calibration nor
   training changes either.
2. It gets no more accurate by more pruning, nor by fewer layers in float with the same calibration.
3. Training on the grid loses no more than calibration does.
4. Calibration does not gain what the network lost in float.

Under them the walk finds a setting that holds the limits whenever its grid has one that holds them by more than what
two measurements of the same thing differ by. Predictions choose the order only; they never rule a setting out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from edgekit.recipe import Budget
from edgekit.search.capabilities import Capabilities
from edgekit.search.limits import LATENCY, SIZE, Seen, limits, seen
from edgekit.search.road import road
from edgekit.search.space import Calibration, Setting, Trial

__all__ = ["next_setting", "out_of_reach"]


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
    found = seen(trials, budget)
    if any(not (each.heavy or each.lossy) for each in found):
        return None
    if len(trials) >= can.trials or out_of_reach(budget, can):
        return None
    taken = {trial.setting for trial in trials}
    busy = _in_training(trials, found, can)
    ready = (
        setting
        for setting in can.grid()
        if setting not in taken
        and setting.prune not in busy
        and _called_for(setting, found, can)
        and not _ruled_out(setting, found)
    )
    return min(ready, key=_order(trials, found, budget, can), default=None)


def _ruled_out(setting: Setting, found: Sequence[Seen]) -> bool:
    """Would it miss a limit by the assumptions?"""
    return any(
        (each.lossy and _as_accurate(each.setting, setting))
        or (each.heavy and _as_light(each.setting, setting))
        or (each.lossy_float and each.setting.prune <= setting.prune and not setting.qat)
        for each in found
    )


def _as_accurate(one: Setting, other: Setting) -> bool:
    """Is the first at least as accurate as the second, by the assumptions?"""
    if one.prune > other.prune or not set(one.keep_float) >= set(other.keep_float):
        return False
    return (one.qat and not other.qat) or (one.qat == other.qat and one.calibration == other.calibration)


def _as_light(one: Setting, other: Setting) -> bool:
    """Is the first at least as fast and as small as the second, by the assumptions?"""
    return one.prune >= other.prune and set(one.keep_float) <= set(other.keep_float)


def _called_for(setting: Setting, found: Sequence[Seen], can: Capabilities) -> bool:
    """Training is dear: prune only if less was too heavy, train on the grid only if calibration lost too much."""
    if setting.prune > can.ratios[0]:
        kept = set(setting.keep_float)
        if not any(each.heavy and each.setting.prune < setting.prune and each.kept <= kept for each in found):
            return False
    return not _extra_qat(setting, can) or any(
        (each.lossy_float or (each.lossy and not each.setting.qat)) and each.setting.prune <= setting.prune
        for each in found
    )


def _extra_qat(setting: Setting, can: Capabilities) -> bool:
    """Is it trained on the grid without having to?"""
    return setting.qat and len(can.qat) > 1


def _trained(found: Sequence[Seen], can: Capabilities) -> set[float]:
    """Ratios whose network is there."""
    return {can.ratios[0], *(each.setting.prune for each in found)}


def _in_training(trials: Sequence[Trial], found: Sequence[Seen], can: Capabilities) -> set[float]:
    """Ratios whose network somebody is training just now; to take them too would train it twice."""
    return {trial.setting.prune for trial in trials if trial.running} - _trained(found, can)


Key = tuple[bool, bool, int, int, int, float]


def _order(
    trials: Sequence[Trial], found: Sequence[Seen], budget: Budget, can: Capabilities
) -> Callable[[Setting], Key]:
    """What to sort by: worse calibrations last, then what is predicted to be too heavy, then by what it costs."""
    best = _best_calibration(found, can)
    tried = {trial.setting.calibration for trial in trials if not trial.setting.qat}
    trained = _trained(found, can)
    levels = {calibration: i for i, calibration in enumerate(can.calibrations)}
    names = [tuple(sorted(island.name for island in kept)) for kept in can.kept()]
    roads = {kept: road(found, kept, budget, can) for kept in names}

    def key(setting: Setting) -> Key:
        worse = not setting.qat and setting.calibration != best and setting.calibration in tried
        qat = _extra_qat(setting, can)
        # Layers in float on top of training mend little; less pruning goes first.
        training = 2 * (setting.prune not in trained) + qat + (qat and len(setting.keep_float) > 0)
        way = roads[setting.keep_float]
        light = way.light(setting.prune, trained=setting.prune in trained)
        ratio = setting.prune if light else way.away(setting.prune)
        return worse, not light, training, len(setting.keep_float), levels[setting.calibration], ratio

    return key


def _best_calibration(found: Sequence[Seen], can: Capabilities) -> Calibration:
    """The calibration that lost least where two were measured on the same network; the cheaper of equals."""
    best = can.calibrations[0]
    for other in can.calibrations[1:]:
        drops = {_network(s.setting): s.outcome.drop for s in found if s.setting.calibration == best}
        pairs = (
            (drops.get(_network(s.setting)), s.outcome.drop) for s in found if s.setting.calibration == other
        )
        if any(a is not None and b is not None and b < a for a, b in pairs):
            best = other
    return best


def _network(setting: Setting) -> tuple[float, tuple[str, ...], bool]:
    """What a setting says beside its calibration."""
    return setting.prune, setting.keep_float, setting.qat
