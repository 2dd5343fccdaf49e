"""Confidence sequences for the mean of numbers in [0, 1] that come one after the other, valid at every look.

Waudby-Smith and Ramdas, "Estimating means of bounded random variables by betting", JRSS-B 2023 (arXiv 2010.09686).

`betting` is the hedged capital process (their theorem 3): against each candidate mean m a gambler bets that the next
number is larger, another that it is smaller. If m is true, neither's capital reaches 1/alpha but with probability alpha
(Ville 1939), at whatever look; so the m against which nobody won that much are the interval. The bets are constant
fractions f/m of the capital, one gambler for each f of `FRACTIONS`, their capitals added (grid Kelly, appendix B): the
weights of a mixture are bets that follow who won so far, thus predictable. Unlike the plug-in bets of the paper they
know neither alpha nor the order of the numbers. From that follow, without a population:

- the interval holds the mean of the numbers seen, and for a smaller alpha it is never narrower;
- it does not depend on the order in which devices reported;
- capital falls in m, so the candidates left are an interval that bisection finds.

With `population` the numbers are drawn without replacement from that many (section 5; same authors, "Confidence
sequences for sampling without replacement", NeurIPS 2020): after t − 1 numbers with sum S the next one's mean is
(N m − S) / (N − t + 1), and that is what is bet against. The order counts then, and in rare cases (at most alpha) the
interval misses the mean so far. It is cut with what is certain, and is a point once everybody was seen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np

from edgekit.fleet.statistics.intervals import (
    Floats,
    Interval,
    Side,
    check_population,
    per_side,
    refused,
    unit_values,
)

# Halved from one to the next: the best fraction is never further away than √2, for 10 to a million devices.
FRACTIONS: Final[Floats] = np.array([0.95, *(2.0**-k for k in range(1, 11))])
WEIGHTS: Final[Floats] = (1 / np.arange(1, 12)) / (1 / np.arange(1, 12)).sum()
# A bound is at most 1/GRID outside the exact one, never inside it.
GRID: Final = 2**16
# Smaller conditional means are taken for this one. To bet against a larger mean than the true one is allowed: on
# average it only loses. With it the product of a block stays below the largest float.
_SMALLEST_MEAN: Final = 1e-9
_BLOCK: Final = 32
_COLUMNS: Final = 2**15
# Log of what the mixture pays for not knowing the best fraction, about; guesses need it, results do not.
_COST: Final = 2.0


def betting(
    values: Sequence[float] | Floats, alpha: float, *, population: int | None = None, side: Side = "both"
) -> Interval:
    """The interval after these numbers, by betting.

    Args:
        values: one number in [0, 1] per device, in the order in which they were drawn. Shape [n].
        alpha: probability that the interval is wrong at any look, at most.
        population: how many devices there are, if these are drawn from them without replacement.
        side: which bound gets alpha; the other one is then what is certain.

    Raises:
        InvalidError: a number is NaN or outside [0, 1], or alpha or the population make no sense.
    """
    state = Betting(alpha, population=population, side=side)
    state.update(values)
    return state.interval()


class Betting:
    """The same, for numbers that arrive bit by bit.

    Args:
        alpha: probability that any of the intervals is wrong, at most.
        population: how many devices there are, None for numbers without end.
        side: which bound gets alpha.
        running: give the intersection of the intervals of all looks so far. That is allowed (all hold at once) and
            never widens, but it trusts that the mean stands still. Where the intersection is empty the assumptions
            are wrong, or this is one of the rare cases that alpha stands for; it begins anew with this look.
    """

    __slots__ = ("_best", "_n", "_values", "alpha", "population", "running", "side")

    def __init__(
        self, alpha: float, *, population: int | None = None, side: Side = "both", running: bool = False
    ) -> None:
        per_side(alpha, side)
        check_population(0, population)
        self.alpha, self.population, self.side, self.running = alpha, population, side, running
        self._values: Floats = np.empty(64)
        self._n = 0
        self._best = (0.0, 1.0)

    @property
    def n(self) -> int:
        """Numbers so far."""
        return self._n

    def update(self, values: Sequence[float] | Floats) -> None:
        """Take further numbers, in order.

        Raises:
            InvalidError: one is NaN or outside [0, 1], or there are more than the population; none is taken then.
        """
        new = unit_values(values)
        after = self._n + len(new)
        check_population(after, self.population)
        if after > len(self._values):
            self._values = np.concatenate([self._values[: self._n], np.empty(after)])
        self._values[self._n : after] = new
        self._n = after

    def interval(self) -> Interval:
        """Of the numbers so far."""
        seen = self._values[: self._n]
        mean = float(seen.mean()) if self._n else None
        lower, upper = certain(seen, self.population)
        target = -math.log(per_side(self.alpha, self.side))
        if self._n and lower < upper:
            at_least, at_most = lower, upper
            if self.side != "upper":
                lower = _lower_bound(seen, target, (at_least, at_most), self.population)
            if self.side != "lower":
                upper = 1 - _lower_bound(1 - seen, target, (1 - at_most, 1 - at_least), self.population)
            # Both gamblers won against everything: one of the cases of alpha. Claim only what is certain.
            if lower > upper:
                lower, upper = at_least, at_most
        if self.running:
            both = max(lower, self._best[0]), min(upper, self._best[1])
            self._best = lower, upper = both if both[0] <= both[1] else (lower, upper)
        return Interval(lower, upper, mean, self._n, self.alpha)


def certain(values: Sequence[float] | Floats, population: int | None) -> tuple[float, float]:
    """Bounds of a population's mean that need no probability: who was not seen has at least 0 and at most 1.

    Σx / N ≤ mean ≤ (Σx + N − n) / N; without a population 0 and 1.
    """
    seen = unit_values(values)
    check_population(len(seen), population)
    if population is None:
        return 0.0, 1.0
    if len(seen) == population:
        return float(seen.mean()), float(seen.mean())
    total = float(seen.sum())
    return total / population, min(1.0, (total + population - len(seen)) / population)


def log_capital(
    values: Sequence[float] | Floats,
    mean: float,
    *,
    population: int | None = None,
    side: Side = "lower",
) -> Floats:
    """Log of the capital against one candidate after each number: a test of one limit, O(n) for all looks together.

    Reaching −log(alpha) at any look shows, at level alpha, that the mean is above `mean` (side "lower": the lower bound
    passes it) or below it ("upper"). exp(−maximum) is a p-value at every look.

    Args:
        values: shape [n], numbers in [0, 1].
        mean: the candidate, in [0, 1].
        population: as in `betting`.
        side: "lower" or "upper".

    Returns:
        Shape [n]; infinite where what was seen rules the candidate out.
    """
    seen = unit_values(values)
    check_population(len(seen), population)
    if not 0 <= mean <= 1 or side == "both":
        raise refused(f"mean = {mean}, side = {side}", 'a mean in [0, 1] and the side "lower" or "upper"')
    if side == "upper":
        seen, mean = 1 - seen, 1 - mean
    totals = np.cumsum(seen)
    means, impossible = np.full(len(seen), mean), totals > (population or math.inf) * mean + 1e-9
    if population is None:
        impossible = (totals > 0) & (mean == 0)
    else:
        means = (population * mean - (totals - seen)) / (population - np.arange(len(seen)))
    odds = seen / np.maximum(means, _SMALLEST_MEAN)
    paths = np.cumsum(np.log((1 - FRACTIONS[:, None]) + FRACTIONS[:, None] * odds), axis=1)
    capital = np.logaddexp.reduce(paths + np.log(WEIGHTS)[:, None], axis=0)
    return np.where(np.maximum.accumulate(impossible), math.inf, capital)


def _lower_bound(values: Floats, target: float, within: tuple[float, float], population: int | None) -> float:
    """The largest candidate on the grid against which the capital reached `target`; all below fell as well."""
    low, high = math.floor(within[0] * GRID), math.ceil(within[1] * GRID)
    centre, spread = float(values.mean()) * GRID, float(values.std()) * GRID
    away = math.sqrt(2 * (target + _COST) / len(values)) * spread + target / len(values) * GRID
    tries = 0
    while high - low > 1:
        tries += 1
        # Halving now and then bounds the work where the guesses do not close in from both ends.
        at = (low + high) // 2 if tries % 4 == 0 else min(max(round(centre - away), low + 1), high - 1)
        capital = _capital_now(values, at / GRID, population)
        if capital >= target:
            low = at
        else:
            high = at
        # Near the mean the log of the capital grows with the square of the distance.
        away = (centre - at) * math.sqrt((target + _COST) / max(capital + _COST, 0.1))
    return min(max(low / GRID, within[0]), within[1])


def _capital_now(values: Floats, candidate: float, population: int | None) -> float:
    """Log of the mixed capital after all numbers, against a mean above 0."""
    logs = np.log(WEIGHTS)
    before = 0.0
    for start in range(0, len(values), _COLUMNS):
        part = values[start : start + _COLUMNS]
        n = len(part)
        means: Floats | float = candidate
        if population is not None:
            totals = before + np.cumsum(part)
            left = population - np.arange(start, start + n)
            means = np.maximum((population * candidate - (totals - part)) / left, _SMALLEST_MEAN)
            before = float(totals[-1])
        # Factors of one, which change no capital, fill the last block.
        factors = np.ones((len(FRACTIONS), -(-n // _BLOCK) * _BLOCK))
        np.multiply(FRACTIONS[:, None], part / means, out=factors[:, :n])
        factors[:, :n] += (1 - FRACTIONS)[:, None]
        # One logarithm for a block of products costs a fraction of a logarithm each.
        blocks = factors.reshape(len(FRACTIONS), _BLOCK, -1).prod(axis=1)
        logs = logs + np.log(blocks).sum(axis=1)
    return float(np.logaddexp.reduce(logs))


def empirical_bernstein(
    values: Sequence[float] | Floats, alpha: float, *, side: Side = "both", largest_bet: float = 0.5
) -> Interval:
    """The closed form: predictable plug-in empirical Bernstein (their theorem 2, equations after it for λ).

    Wider than `betting`, and quicker; a check on it. The bets λ shrink with t, so early numbers weigh more, and the
    interval lies around a weighted mean: on odd sequences it can miss the plain mean, which is the estimate.

    Args:
        values: shape [n], numbers in [0, 1].
        alpha: probability that the interval is wrong at any look, at most.
        side: which bound gets alpha.
        largest_bet: between 0 and 1.

    Raises:
        InvalidError: a number is NaN or outside [0, 1], or alpha makes no sense.
    """
    seen, target = unit_values(values), -math.log(per_side(alpha, side))
    if not 0 < largest_bet < 1:
        raise refused(f"largest_bet = {largest_bet}", "a number between 0 and 1, both excluded")
    n = len(seen)
    if not n:
        return Interval(0.0, 1.0, None, 0, alpha)
    t = np.arange(1, n + 1)
    means = (0.5 + np.cumsum(seen)) / (t + 1)
    variances = (0.25 + np.cumsum((seen - means) ** 2)) / (t + 1)
    # What is known before a number is drawn.
    mean_before, variance_before = np.r_[0.5, means[:-1]], np.r_[0.25, variances[:-1]]
    bets = np.minimum(np.sqrt(2 * target / (variance_before * t * np.log1p(t))), largest_bet)
    # v ψ_E(λ) with v = 4 (x − mean before)² and ψ_E = (−log(1 − λ) − λ) / 4.
    loss = np.sum((seen - mean_before) ** 2 * (-np.log1p(-bets) - bets))
    centre = float(np.sum(bets * seen) / bets.sum())
    radius = float((target + loss) / bets.sum())
    lower = max(0.0, centre - radius) if side != "upper" else 0.0
    upper = min(1.0, centre + radius) if side != "lower" else 1.0
    return Interval(lower, upper, float(seen.mean()), n, alpha)
