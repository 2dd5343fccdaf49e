"""What the search may do with a network: the settings it can choose from, and what is known before they are tried."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from edgekit.errors import UsageError
from edgekit.recipe import PRESETS, Recipe
from edgekit.search.space import Calibration, Setting

__all__ = ["Capabilities", "Island", "Left", "capabilities", "damage_of", "proportional"]

# Ratios between 0 and this are tried; beyond it networks keep nothing of what they knew.
HEAVIEST: Final = 0.9
STEP: Final = 0.05
# Channel counts are rounded, so that ratios closer than STEP often give the same network.
ISLAND_COUNTS: Final = (1, 2, 4, 8)


@dataclass(frozen=True, slots=True)
class Island:
    """A layer that could stay float: what that gives back, and what it takes.

    Attributes:
        name: of the layer.
        damage: that quantizing it alone does to the output, e.g. from `damage_of`; any unit, above 0 is worse.
        cost_ms: that the model gets slower by with it in float, its conversions included.
        cost_bytes: that the file grows by.
    """

    name: str
    damage: float
    cost_ms: float = 0.0
    cost_bytes: int = 0

    @property
    def worth(self) -> float:
        """Damage per millisecond lost; infinite where nothing is lost."""
        return self.damage / self.cost_ms if self.cost_ms > 0 else math.inf


@dataclass(frozen=True, slots=True)
class Left:
    """What pruning leaves of the unpruned network, as shares of one."""

    latency: float
    size: float


def damage_of(damage_db: float) -> float:
    """Share of the output's power that is noise, from a signal-to-noise ratio in dB.

    Unlike decibels, shares of independent layers add up, so that they can be divided by a cost.
    """
    return math.pow(10.0, -damage_db / 10.0)


def proportional(ratio: float) -> Left:
    """What a ratio means by its definition where nothing better is known."""
    return Left(1.0 - ratio, 1.0 - ratio)


@dataclass(frozen=True)
class Capabilities:
    """What there is to choose from; the settings are all combinations, see `grid`.

    Attributes:
        calibrations: cheapest first; the first is the recipe's own.
        ratios: ascending; the search starts at the first.
        qat: (False,), (True,), or both where training on the grid may be tried.
        islands: layers that may stay float; kept in the order of damage per millisecond.
        trials: most trials to run.
        left: what a ratio is predicted to leave; only an order of trying, never a reason to give up.
        floor_ms: no setting is faster than this, None where that is unknown. A measurement, e.g. of the heaviest
            pruning before it is trained.
        floor_bytes: no setting gives a smaller file.
    """

    calibrations: tuple[Calibration, ...]
    ratios: tuple[float, ...] = (0.0,)
    qat: tuple[bool, ...] = (False,)
    islands: tuple[Island, ...] = ()
    trials: int = 12
    left: Callable[[float], Left] = proportional
    floor_ms: float | None = None
    floor_bytes: int | None = None

    def __post_init__(self) -> None:
        _check(len(set(self.calibrations)) == len(self.calibrations) > 0, "calibrations", self.calibrations)
        _check(len(self.ratios) > 0 and list(self.ratios) == sorted(set(self.ratios)), "ratios", self.ratios)
        _check(self.qat in {(False,), (True,), (False, True)}, "qat", self.qat)
        _check(len({island.name for island in self.islands}) == len(self.islands), "islands", self.islands)
        _check(self.trials >= 1, "trials", self.trials)
        ordered = sorted(self.islands, key=lambda island: (-island.worth, -island.damage, island.name))
        object.__setattr__(self, "islands", tuple(ordered))

    def kept(self) -> tuple[tuple[Island, ...], ...]:
        """The sets of islands to try, each within the next, none first."""
        counts = [n for n in ISLAND_COUNTS if n <= len(self.islands)]
        return ((), *(self.islands[:n] for n in counts))

    def grid(self) -> Iterator[Setting]:
        """Every setting that the search can choose.

        Training on the grid chooses its ranges itself, so it is combined with the recipe's own calibration alone.
        """
        for ratio in self.ratios:
            for kept in self.kept():
                names = tuple(island.name for island in kept)
                for qat in self.qat:
                    for calibration in self.calibrations[: 1 if qat else None]:
                        yield Setting(calibration, ratio, names, qat)

    def first(self) -> Setting:
        """Where the search starts."""
        return next(self.grid())


def capabilities(
    recipe: Recipe,
    *,
    training: bool,
    islands: Sequence[Island] = (),
    prunable: bool = True,
    left: Callable[[float], Left] = proportional,
    floor_ms: float | None = None,
    floor_bytes: int | None = None,
) -> Capabilities:
    """What a recipe lets the search do.

    A ratio that the recipe names is kept, and so is `qat.enabled` unless it is "auto".

    Args:
        recipe: as the user gave it.
        training: there are inputs to train on; without them nothing is pruned and nothing trained.
        islands: layers that may stay float.
        prunable: something in the network can be pruned.
        left: what a ratio is predicted to leave.
        floor_ms: see `Capabilities`.
        floor_bytes: see `Capabilities`.
    """
    row = PRESETS["max"]
    thorough = Calibration(row["observers"], row["equalize"], row["compensation"], row["bias_correction"])
    own = Calibration.of(recipe.quantize)
    ratios: tuple[float, ...] = (recipe.prune.ratio,)
    if training and prunable and recipe.prune.ratio == 0:
        ratios = tuple(round(STEP * i, 4) for i in range(round(HEAVIEST / STEP) + 1))
    enabled: Any = recipe.qat.enabled
    return Capabilities(
        calibrations=tuple(dict.fromkeys((own, thorough))),
        ratios=ratios,
        qat=((False, True) if training else (False,)) if enabled == "auto" else (bool(enabled),),
        islands=tuple(islands),
        trials=recipe.search.trials,
        left=left,
        floor_ms=floor_ms,
        floor_bytes=floor_bytes,
    )


def _check(holds: bool, key: str, value: object) -> None:
    if not holds:
        raise UsageError(
            f"search: {key} = {value!r}",
            expected="something to choose from, each choice once and ratios ascending",
            way_out="Correct the capabilities that the search is given.",
        )
