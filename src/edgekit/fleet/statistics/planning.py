"""Before it starts: how many devices a bet takes to show something, and what a given number of them can show.

The plan is for the test that decides (`means.betting`, `parts.log_capital`). After n devices the log of one gambler's
capital is a sum of n numbers, log(1 − f + f x / m), of mean g and standard deviation s, so it is about normal; it has
reached a target t with the wanted power where n g − z s √n ≥ t. The mixture has the capital of its best gambler, less
what he was given at the start; the best n of all gamblers is the plan. That is on the safe side: a look that came
earlier may have shown it already.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final

import numpy as np

from edgekit.fleet.statistics import rare
from edgekit.fleet.statistics.intervals import Floats, check_alpha, check_count, check_positive, refused
from edgekit.fleet.statistics.means import FRACTIONS, WEIGHTS

_GRID: Final = 2000
_HALVINGS: Final = 40
_MOST: Final = 10**9
_NORMAL: Final = NormalDist()


@dataclass(frozen=True, slots=True, eq=False)
class Outcomes:
    """How one device's number is distributed.

    Attributes:
        values: [k], from 0 to 1.
        chances: [k], together 1.
    """

    values: Floats
    chances: Floats

    def mirrored(self) -> Outcomes:
        """Of one less the number."""
        return Outcomes(1 - self.values, self.chances)


def always(value: float) -> Outcomes:
    """The same of every device."""
    return Outcomes(np.array([_share("value", value)]), np.ones(1))


def spread(mean: float, sd: float) -> Outcomes:
    """Beta distribution of a share.

    Args:
        mean: over devices, from 0 to 1.
        sd: standard deviation between devices, below √(mean (1 − mean)).

    Raises:
        InvalidError: there is no such distribution.
    """
    if sd == 0 or _share("mean", mean) in {0.0, 1.0}:
        return always(mean)
    check_positive("sd", sd)
    weight = mean * (1 - mean) / sd**2 - 1
    if weight <= 0:
        raise refused(
            f"a standard deviation of {sd:g} around {mean:g}",
            f"below {math.sqrt(mean * (1 - mean)):.3g}",
            "shares of devices lie between 0 and 1",
        )
    a, b = mean * weight, (1 - mean) * weight
    x = (np.arange(_GRID) + 0.5) / _GRID
    logs = (a - 1) * np.log(x) + (b - 1) * np.log1p(-x)
    chances = np.exp(logs - logs.max())
    return Outcomes(x, chances / chances.sum())


def paired(difference: float, sd: float, span: float) -> Outcomes:
    """Of `differences.pairs`, for normal numbers in both arms.

    Args:
        difference: of the means of both arms.
        sd: standard deviation between devices of one arm, same units.
        span: that differences are cut off at, same units.
    """
    check_positive("span", span)
    if sd == 0:
        return always((1 + min(max(difference / span, -1.0), 1.0)) / 2)
    check_positive("sd", sd)
    quantiles = np.array([_NORMAL.inv_cdf((k + 0.5) / _GRID) for k in range(_GRID)])
    apart = np.clip(difference + math.sqrt(2) * sd * quantiles, -span, span)
    return Outcomes((1 + apart / span) / 2, np.full(_GRID, 1 / _GRID))


def devices_needed(outcomes: Outcomes, limit: float, alpha: float, power: float) -> int | None:
    """Devices after which it is shown that the mean is above a limit; None where no number of them shows it.

    Args:
        outcomes: of one device.
        limit: between 0 and 1, both excluded.
        alpha: level of the bet.
        power: probability that so many devices show it.

    Raises:
        InvalidError: a number makes no sense.
    """
    check_alpha(alpha)
    check_alpha(power, "power")
    if not 0 < limit < 1:
        raise refused(f"limit = {limit}", "a number between 0 and 1, both excluded")
    wins = np.log(1 - FRACTIONS[:, None] + FRACTIONS[:, None] * outcomes.values / limit)
    gains = wins @ outcomes.chances
    spreads = np.sqrt(np.maximum(wins**2 @ outcomes.chances - gains**2, 0.0))
    targets, z = -math.log(alpha) - np.log(WEIGHTS), _NORMAL.inv_cdf(power)
    can = gains > 1e-12
    if not can.any():
        return None
    gains, spreads, targets = gains[can], spreads[can], targets[can]
    # n g − z s √n = t is a square equation in √n.
    roots = (z * spreads + np.sqrt((z * spreads) ** 2 + 4 * gains * targets)) / (2 * gains)
    found = math.ceil(float(roots.min()) ** 2)
    return found if found <= _MOST else None


def devices_without_failure(limit: float, alpha: float) -> int:
    """Devices without a failure after which failures are shown to be less frequent than a limit.

    Args:
        limit: between 0 and 1, both excluded.
        alpha: level.
    """
    check_alpha(alpha)
    low, high = 0, 1
    while rare.log_evidence_below(0, high, limit) < -math.log(alpha):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        shown = rare.log_evidence_below(0, middle, limit) >= -math.log(alpha)
        low, high = (low, middle) if shown else (middle, high)
    return high


def smallest(devices: int, most: float, needed: Callable[[float], int | None]) -> float | None:
    """The smallest effect that so many devices show; None where they do not show the largest.

    Args:
        devices: at hand.
        most: largest effect there is.
        needed: effect to the devices that it takes, fewer for a larger one.
    """
    check_count("devices", devices)

    def shown(effect: float) -> bool:
        takes = needed(effect)
        return takes is not None and takes <= devices

    if not shown(most):
        return None
    low, high = 0.0, most
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if shown(middle) else (middle, high)
    return high


def _share(name: str, value: float) -> float:
    if not 0 <= value <= 1:
        raise refused(f"{name} = {value}", "a number from 0 to 1")
    return value
