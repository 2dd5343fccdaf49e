"""What every estimate gives back, and the checks of what every estimate takes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from edgekit.fleet.errors import InvalidError

Floats = npt.NDArray[np.float64]
# "lower" and "upper" spend all of alpha on that bound; "both" half of it on each.
Side = Literal["both", "lower", "upper"]
SIDES: Final = ("both", "lower", "upper")


@dataclass(frozen=True, slots=True)
class Interval:
    """Where a parameter lies.

    Attributes:
        lower: bound; the smallest possible value where none was asked for.
        upper: bound; the largest possible value where none was asked for.
        estimate: of the parameter, None where nothing was seen.
        n: numbers that were seen (devices, or trials).
        alpha: probability that the bounds are wrong at any look, at most.
    """

    lower: float
    upper: float
    estimate: float | None
    n: int
    alpha: float

    def __post_init__(self) -> None:
        if not self.lower <= self.upper:
            raise refused(f"an interval from {self.lower} to {self.upper}", "lower ≤ upper")

    @property
    def width(self) -> float:
        """From bound to bound."""
        return self.upper - self.lower


def refused(what: str, expected: str, way_out: str = "check what was counted") -> InvalidError:
    """The error for numbers that have no statistics."""
    return InvalidError(what, expected=expected, way_out=way_out, code="statistics-input")


def per_side(alpha: float, side: Side) -> float:
    """The share of alpha that one bound gets (Bonferroni).

    Raises:
        InvalidError: alpha is not between 0 and 1, or there is no such side.
    """
    check_alpha(alpha)
    if side not in SIDES:
        raise refused(f"side {side!r}", f"one of {', '.join(SIDES)}")
    return alpha / 2 if side == "both" else alpha


def check_alpha(alpha: float, name: str = "alpha") -> None:
    """Refuse what is no probability of an error.

    Raises:
        InvalidError: it is not strictly between 0 and 1.
    """
    if not 0 < alpha < 1:
        raise refused(f"{name} = {alpha}", "a number between 0 and 1, both excluded", "0.05 is usual")


def check_count(name: str, count: int, least: int = 0) -> None:
    """Refuse what is no count.

    Raises:
        InvalidError: it is not whole, or smaller than `least`.
    """
    if isinstance(count, bool) or not isinstance(count, (int, np.integer)) or count < least:
        raise refused(f"{name} = {count!r}", f"a whole number of at least {least}")


def check_population(n: int, population: int | None) -> None:
    """Refuse more numbers than the population has members.

    Raises:
        InvalidError: so it is.
    """
    if population is not None:
        check_count("population", population, 1)
        if n > population:
            raise refused(
                f"{n} numbers of a population of {population}",
                "each member at most once",
                "count each device once, and the devices of the cohort anew",
            )


def check_positive(name: str, value: float) -> None:
    """Refuse what is not a finite number above zero.

    Raises:
        InvalidError: so it is.
    """
    if not (math.isfinite(value) and value > 0):
        raise refused(f"{name} = {value}", "a finite number above 0")


def unit_values(values: Sequence[float] | Floats) -> Floats:
    """As an array of shape [n].

    Raises:
        InvalidError: one is NaN or outside [0, 1], or they are not one-dimensional.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1:
        raise refused(f"values of shape {array.shape}", "one number per device: [n]")
    # NaN compares false with everything, so it is caught as well.
    inside = (array >= 0) & (array <= 1)
    if not inside.all():
        at = int(np.argmin(inside))
        raise refused(
            f"value {array[at]} at position {at}",
            "numbers in [0, 1]",
            "count NaN apart as a failure; map ratios with `ratios.to_unit`",
        )
    return array
