"""Before an A/B comparison starts: how many devices it takes, how long, and what a given number can show.

Sample sizes of two means and two proportions: Fleiss, Levin and Paik, "Statistical methods for rates and proportions",
3rd edition 2003, chapter 4 (equal arms, two-sided, without continuity correction). A comparison that is looked at all
the time needs a larger quantile than the normal one: that of the normal mixture, Robbins 1970 as in Howard, Ramdas,
McAuliffe and Sekhon 2021 (equation 14), tuned to its planned end. At alpha 0.05 and power 0.8 that costs 1.9 times
the devices, and in return it may end earlier.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final

from edgekit.fleet.statistics.intervals import check_alpha, check_count, check_positive, refused

_HALVINGS: Final = 80
_NORMAL: Final = NormalDist()


@dataclass(frozen=True, slots=True)
class AbPlan:
    """What a comparison of two arms takes.

    Attributes:
        difference: smallest true difference that it has to show.
        devices_per_arm: that it takes.
        available: devices that there are, of both arms; None where not known.
        hours: until so many have reported; None where not known, or there are too few.
        alpha: probability that it shows a difference where there is none.
        power: probability that it shows `difference`.
        anytime: it may be looked at all the time.
    """

    difference: float
    devices_per_arm: int
    available: int | None
    hours: float | None
    alpha: float
    power: float
    anytime: bool

    @property
    def feasible(self) -> bool:
        """There are enough devices, as far as is known."""
        return self.available is None or 2 * self.devices_per_arm <= self.available


def plan_means(
    difference: float,
    sd: float,
    *,
    alpha: float = 0.05,
    power: float = 0.8,
    anytime: bool = True,
    available: int | None = None,
    devices_per_day: float | None = None,
) -> AbPlan:
    """Compare two means over devices.

    Args:
        difference: smallest difference worth showing, in units of the metric.
        sd: standard deviation between devices of one arm, same units.
        alpha: two-sided.
        power: to show `difference`.
        anytime: looked at all the time, instead of once at the end.
        available: devices of both arms together.
        devices_per_day: devices of both arms that report for the first time in a day.

    Raises:
        InvalidError: a number makes no sense.
    """
    check_positive("difference", difference)
    check_positive("sd", sd)
    per_arm = math.ceil(2 * (_reach(alpha, power, anytime) * sd / difference) ** 2)
    return _plan(difference, per_arm, alpha, power, anytime, available, devices_per_day)


def plan_proportions(
    base: float,
    difference: float,
    *,
    alpha: float = 0.05,
    power: float = 0.8,
    anytime: bool = True,
    available: int | None = None,
    devices_per_day: float | None = None,
) -> AbPlan:
    """Compare two proportions of devices.

    Args:
        base: proportion of the live arm, between 0 and 1.
        difference: smallest difference worth showing, with its sign: the other arm has `base + difference`.
        alpha: two-sided.
        power: to show `difference`.
        anytime: looked at all the time, instead of once at the end.
        available: devices of both arms together.
        devices_per_day: devices of both arms that report for the first time in a day.

    Raises:
        InvalidError: a number makes no sense.
    """
    per_arm = _proportion_devices(base, difference, alpha, power, anytime)
    return _plan(difference, per_arm, alpha, power, anytime, available, devices_per_day)


def smallest_difference_of_means(
    devices_per_arm: int, sd: float, *, alpha: float = 0.05, power: float = 0.8, anytime: bool = True
) -> float:
    """What so many devices show with this power, in units of `sd`'s metric."""
    check_count("devices_per_arm", devices_per_arm, 1)
    check_positive("sd", sd)
    return _reach(alpha, power, anytime) * sd * math.sqrt(2 / devices_per_arm)


def smallest_difference_of_proportions(
    devices_per_arm: int, base: float, *, alpha: float = 0.05, power: float = 0.8, anytime: bool = True
) -> float | None:
    """The smallest rise above `base` that so many devices show with this power; None where they show none."""
    check_count("devices_per_arm", devices_per_arm, 1)
    _check_proportion("base", base)
    low, high = 0.0, 1 - base
    if _proportion_devices(base, high * (1 - 1e-9), alpha, power, anytime) > devices_per_arm:
        return None
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if middle <= 1e-9 or _proportion_devices(base, middle, alpha, power, anytime) > devices_per_arm:
            low = middle
        else:
            high = middle
    return high


def hours_needed(devices: int, devices_per_day: float) -> float:
    """Hours until so many devices have reported, at a steady number of new ones a day."""
    check_count("devices", devices)
    check_positive("devices_per_day", devices_per_day)
    return 24 * devices / devices_per_day


def quantile(alpha: float, *, anytime: bool) -> float:
    """How many standard errors from zero show a difference, two-sided.

    Anytime: min over t of √((1 + 1/t) log((1 + t) / alpha²)), the boundary of the normal mixture where it is lowest.
    """
    check_alpha(alpha)
    if not anytime:
        return _NORMAL.inv_cdf(1 - alpha / 2)

    def squared(log_t: float) -> float:
        t = math.exp(log_t)
        return (1 + 1 / t) * (math.log1p(t) - 2 * math.log(alpha))

    low, high = math.log(1e-3), math.log(1e6)
    for _ in range(_HALVINGS):
        third = (high - low) / 3
        if squared(low + third) < squared(high - third):
            high -= third
        else:
            low += third
    return math.sqrt(squared((low + high) / 2))


def _reach(alpha: float, power: float, anytime: bool) -> float:
    """Standard errors between no difference and one that is shown with this power."""
    check_alpha(power, "power")
    return max(0.0, quantile(alpha, anytime=anytime) + _NORMAL.inv_cdf(power))


def _proportion_devices(base: float, difference: float, alpha: float, power: float, anytime: bool) -> int:
    _check_proportion("base", base)
    other = base + difference
    _check_proportion("base + difference", other)
    if not difference:
        raise refused("difference = 0", "another number", "no number of devices shows a difference of 0")
    check_alpha(power, "power")
    middle = (base + other) / 2
    at_zero = quantile(alpha, anytime=anytime) * math.sqrt(2 * middle * (1 - middle))
    at_difference = _NORMAL.inv_cdf(power) * math.sqrt(base * (1 - base) + other * (1 - other))
    return max(1, math.ceil((max(0.0, at_zero + at_difference) / difference) ** 2))


def _check_proportion(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise refused(f"{name} = {value}", "a proportion between 0 and 1, both excluded")


def _plan(
    difference: float,
    per_arm: int,
    alpha: float,
    power: float,
    anytime: bool,
    available: int | None,
    devices_per_day: float | None,
) -> AbPlan:
    per_arm = max(1, per_arm)
    if available is not None:
        check_count("available", available)
    enough = available is None or 2 * per_arm <= available
    hours = hours_needed(2 * per_arm, devices_per_day) if devices_per_day is not None and enough else None
    return AbPlan(difference, per_arm, available, hours, alpha, power, anytime)
