"""Confidence sequences for the probability of a rare failure, valid at every look.

Robbins, "Statistical methods related to the law of the iterated logarithm", 1970; Howard, Ramdas, McAuliffe and Sekhon,
"Time-uniform, nonparametric, nonasymptotic confidence sequences", Annals of Statistics 2021, section 4 (conjugate
mixtures). If the probability is p, then

    M(p) = ∫ θ^k (1 − θ)^(n−k) π(θ) dθ / (p^k (1 − p)^(n−k))

is a martingale from 1 for whatever weights π, so it reaches 1/alpha at some look with probability alpha at most (Ville
1939). Both bounds are tests of their own, whose weights lie only where the alternative does, and grow with p, so that
nothing is tuned to how rare a failure is:

- upper bound, against θ < p: π ∝ θ^(−1/2) on (0, p), a Beta(1/2, 1) cut off at p. Also right for every larger p.
- lower bound, against θ > p: π ∝ 1/θ on (p, 1), a Beta(0, 1) cut off at p. Also right for every smaller p.

M crosses 1/alpha once, so bisection finds the bound. Proof: per unit of log p, log M moves back towards 1 by less than
the hazard of π (1/2 and 1/log(1/p)), and away from it by |n p − k| / (1 − p). Where M ≥ 1/alpha, so is the largest
likelihood ratio: n KL(k/n ‖ p) ≥ log(1/alpha). With KL(q ‖ p) ≤ (q − p)² / (p (1 − p)) for q < p, and, KL being convex
in q, ≤ (q − p) / (1 − p) log(1/p) for q > p, the second is the larger one as long as alpha ≤ 1/e. A larger alpha is
taken for 1/e.

With `population` the devices are drawn without replacement and the likelihoods are those of an urn with K failures
(Waudby-Smith and Ramdas, "Confidence sequences for sampling without replacement", NeurIPS 2020, section 2); all K are
tried.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt

from edgekit.fleet.statistics.intervals import (
    Floats,
    Interval,
    Side,
    check_count,
    check_population,
    per_side,
    refused,
)
from edgekit.fleet.statistics.special import log_beta, log_beta_above, log_beta_below

_LEAST_LOG_P: Final = -700.0
_HALVINGS: Final = 60
_LARGEST_ALPHA: Final = math.exp(-1)


def interval(
    failures: int, n: int, alpha: float, *, population: int | None = None, side: Side = "both"
) -> Interval:
    """Where the probability of a failure lies.

    Args:
        failures: k of the n.
        n: devices (or trials) seen.
        alpha: probability that the interval is wrong at any look, at most.
        population: how many devices there are, if the n are drawn from them without replacement; the interval is then
            for the share that fails of exactly these.
        side: which bound gets alpha; the other one is then what is certain.

    Raises:
        InvalidError: the counts or alpha make no sense.
    """
    _check(failures, n)
    check_population(n, population)
    target = -math.log(min(per_side(alpha, side), _LARGEST_ALPHA))
    estimate = failures / n if n else None
    if population is not None:
        lower, upper = _of_population(failures, n, population, target, side)
    else:
        lower = _lower(failures, n, target) if failures and side != "upper" else 0.0
        upper = _upper(failures, n, target) if failures < n and side != "lower" else 1.0
    return Interval(lower, upper, estimate, n, alpha)


def log_evidence_above(failures: int, n: int, limit: float) -> float:
    """Log of the e-value that failures are more frequent than `limit`; log(1/alpha) shows it at level alpha.

    Args:
        failures: k of the n.
        n: devices (or trials) seen, at whatever look.
        limit: between 0 and 1, both excluded.
    """
    _check(failures, n)
    _check_limit(limit)
    if not failures:
        # Σ (1−p)^i / (n + i) ≥ Σ (1−p)^i / ((n + 1) i): a lower bound will do, as this never reaches a level.
        return -math.log(n + 1)
    mixed = log_beta(failures, n - failures + 1) + log_beta_above(limit, failures, n - failures + 1)
    return mixed - math.log(-math.log(limit)) - _log_likelihood(failures, n, limit)


def log_evidence_below(failures: int, n: int, limit: float) -> float:
    """Log of the e-value that failures are less frequent than `limit`; log(1/alpha) shows it at level alpha.

    Args:
        failures: k of the n.
        n: devices (or trials) seen, at whatever look.
        limit: between 0 and 1, both excluded.
    """
    _check(failures, n)
    _check_limit(limit)
    a, b = failures + 0.5, n - failures + 1
    mixed = math.log(0.5) - 0.5 * math.log(limit) + log_beta(a, b) + log_beta_below(limit, a, b)
    return mixed - _log_likelihood(failures, n, limit)


def _lower(failures: int, n: int, target: float) -> float:
    """The largest p that the failures are shown to lie above."""
    return _edge(
        lambda p: log_evidence_above(failures, n, p) >= target,
        beyond=_LEAST_LOG_P,
        near=math.log(failures / n),
        nothing=0.0,
    )


def _upper(failures: int, n: int, target: float) -> float:
    """The smallest p that the failures are shown to lie below."""
    return _edge(
        lambda p: log_evidence_below(failures, n, p) >= target,
        beyond=math.log1p(-1e-15),
        near=math.log(failures / n) if failures else _LEAST_LOG_P,
        nothing=1.0,
    )


def _edge(shown: Callable[[float], bool], *, beyond: float, near: float, nothing: float) -> float:
    """Bisection in log p between what is shown to be wrong and the estimate; the end that is shown wrong."""
    if not shown(math.exp(beyond)):
        return nothing
    for _ in range(_HALVINGS):
        middle = (beyond + near) / 2
        if shown(math.exp(middle)):
            beyond = middle
        else:
            near = middle
    return math.exp(beyond)


def _of_population(failures: int, n: int, population: int, target: float, side: Side) -> tuple[float, float]:
    """Smallest and largest share of the population that nothing speaks against.

    Time and memory grow with the population: some 100 bytes each.
    """
    total = np.arange(population + 1)
    logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, population + 1)))])
    possible = (total >= failures) & (total <= failures + population - n)
    # Log of K (K−1) … × (N−K) (N−K−1) …, the ways to draw k failures and n − k others in their order.
    ways = np.full(population + 1, -math.inf)
    urn = total[possible]
    ways[possible] = (
        logs[urn] - logs[urn - failures] + logs[population - urn] - logs[population - urn - (n - failures)]
    )
    left = possible.copy()
    if side != "upper":
        weights = 1 / np.maximum(total, 1)
        left &= ~_shown(ways[::-1], weights[::-1], target)[::-1]
    if side != "lower":
        left &= ~_shown(ways, 1 / np.sqrt(total + 0.5), target)
    kept = np.flatnonzero(left)
    if not len(kept):
        kept = np.flatnonzero(possible)
    return float(kept[0]) / population, float(kept[-1]) / population


def _shown(ways: Floats, weights: Floats, target: float) -> npt.NDArray[np.bool_]:
    """Where the mixture over all that come before an entry is exp(target) times as likely as the entry."""
    most = float(ways.max())
    mixed = np.cumsum(weights * np.exp(ways - most))
    # Before the first entry there is no alternative.
    before = np.concatenate([[0.0], mixed[:-1]]) / np.concatenate([[1.0], np.cumsum(weights)[:-1]])
    # Entries that cannot be give NaN, which shows nothing; the caller leaves them out.
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.log(before) + most - ways >= target, dtype=np.bool_)


def _log_likelihood(failures: int, n: int, p: float) -> float:
    return failures * math.log(p) + (n - failures) * math.log1p(-p)


def _check(failures: int, n: int) -> None:
    check_count("n", n)
    check_count("failures", failures)
    if failures > n:
        raise refused(f"{failures} failures of {n}", "at most as many failures as devices")


def _check_limit(limit: float) -> None:
    if not 0 < limit < 1:
        raise refused(f"limit = {limit}", "a probability between 0 and 1, both excluded")
