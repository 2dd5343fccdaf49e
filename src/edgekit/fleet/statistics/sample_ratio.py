"""Sequential test for a sample-ratio mismatch: did the arms get the shares of devices that they were promised?

Lindon and Malek, "Anytime-valid inference for multinomial count data", NeurIPS 2022: the Bayes factor of a Dirichlet
around the promised shares against exactly them is a martingale from 1 while the promise holds, so its inverse is a
p-value at every look.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from edgekit.fleet.statistics.intervals import check_count, check_positive, refused

# The Dirichlet counts as so many devices: shares that are off by 1/(2 √101), 5 points, are what it looks for first.
CONCENTRATION: Final = 100.0


def log_bayes_factor(
    counts: Sequence[int], shares: Sequence[float], *, concentration: float = CONCENTRATION
) -> float:
    """Log of how much better devices fit to other shares than to the promised ones.

    Args:
        counts: devices in each arm so far.
        shares: promised, up to a common factor; above 0 each.
        concentration: of the Dirichlet; larger looks for smaller deviations, and needs more devices for large ones.

    Raises:
        InvalidError: not as many shares as counts, fewer than two, or numbers that are no counts or shares.
    """
    if len(counts) != len(shares) or len(counts) < 2:
        raise refused(f"{len(counts)} counts and {len(shares)} shares", "one of each for two or more arms")
    for count in counts:
        check_count("devices of an arm", count)
    for share in shares:
        check_positive("share of an arm", share)
    check_positive("concentration", concentration)
    whole = math.fsum(shares)
    seen = math.lgamma(concentration) - math.lgamma(concentration + sum(counts))
    for count, share in zip(counts, shares, strict=True):
        prior = concentration * share / whole
        seen += math.lgamma(prior + count) - math.lgamma(prior) - count * math.log(share / whole)
    return seen


def p_value(
    counts: Sequence[int],
    shares: Sequence[float],
    previous: float = 1.0,
    *,
    concentration: float = CONCENTRATION,
) -> float:
    """The smallest p-value of all looks so far; it never rises again.

    Args:
        counts: devices in each arm so far.
        shares: promised, up to a common factor.
        previous: of the look before.
        concentration: as in `log_bayes_factor`.

    Raises:
        InvalidError: as there, or `previous` is no p-value.
    """
    if not 0 <= previous <= 1:
        raise refused(f"previous = {previous}", "a p-value from 0 to 1")
    evidence = log_bayes_factor(counts, shares, concentration=concentration)
    return min(previous, math.exp(-evidence) if evidence > 0 else 1.0)
