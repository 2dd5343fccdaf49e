"""Did a distribution move: population stability index and Jensen-Shannon divergence of two histograms.

The index is the symmetric Kullback-Leibler divergence (Jeffreys 1946; Siddiqi, "Credit risk scorecards", 2006). Two
samples of the same distribution differ as well: without drift it is about (1/n + 1/m) times a chi-square of bins − 1
degrees of freedom (Yurdakul, "Statistical properties of population stability index", Western Michigan University 2018),
so that the usual limits of 0.1 and 0.25 mean nothing for few numbers. `psi_critical` is the limit that is exceeded by
noise with probability alpha. Both are for one look and for independent numbers: divide alpha by the looks, and count
what one device sends often as few.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np

from edgekit.fleet.statistics.intervals import Floats, check_alpha, check_count, refused
from edgekit.fleet.statistics.special import chi_square_quantile
from edgekit_runtime.sketches import FIRST_BIN, Sketch

DECILES: Final = 10
# Half a number in each bin (Jeffreys' prior, as Krichevsky and Trofimov 1981): an empty bin is rare, not impossible.
SMOOTHING: Final = 0.5
# The chi-square approximation wants about so many numbers in each bin (Cochran 1954).
LEAST_IN_BIN: Final = 5


def psi(
    reference: Sequence[int] | Floats, current: Sequence[int] | Floats, *, smoothing: float = SMOOTHING
) -> float:
    """Population stability index, Σ (p − q) log(p / q), in nats.

    Args:
        reference: counts in each bin, shape [bins].
        current: counts in the same bins.
        smoothing: added to every count of both.

    Raises:
        InvalidError: the counts do not fit one another, one is negative, or all are zero.
    """
    before, after = _histograms(reference, current)
    if not smoothing > 0:
        raise refused(f"smoothing = {smoothing}", "a number above 0", "0.5 is usual")
    p, q = _shares(before + smoothing), _shares(after + smoothing)
    return float(np.sum((p - q) * np.log(p / q)))


def jensen_shannon(reference: Sequence[int] | Floats, current: Sequence[int] | Floats) -> float:
    """Jensen-Shannon divergence in bits: 0 for equal shares, 1 for histograms that share no bin.

    Lin, "Divergence measures based on the Shannon entropy", 1991.

    Args:
        reference: counts in each bin, shape [bins].
        current: counts in the same bins.

    Raises:
        InvalidError: as `psi`.
    """
    p, q = map(_shares, _histograms(reference, current))
    middle = (p + q) / 2
    return min(1.0, max(0.0, (_divergence_bits(p, middle) + _divergence_bits(q, middle)) / 2))


def psi_noise(n: int, m: int, bins: int) -> float:
    """The index to expect without drift: (bins − 1) (1/n + 1/m).

    Args:
        n: numbers of the reference.
        m: numbers of the current histogram.
        bins: of both.
    """
    check_count("n", n, 1)
    check_count("m", m, 1)
    check_count("bins", bins, 1)
    return (bins - 1) * (1 / n + 1 / m)


def psi_critical(n: int, m: int, bins: int, alpha: float) -> float:
    """The index that is exceeded without drift with probability alpha, about.

    Args:
        n: numbers of the reference.
        m: numbers of the current histogram; from `LEAST_IN_BIN` a bin on, the approximation is good.
        bins: of both.
        alpha: of one look.
    """
    check_alpha(alpha)
    if bins < 2:
        return math.inf
    return psi_noise(n, m, bins) / (bins - 1) * chi_square_quantile(1 - alpha, bins - 1)


def bins_for(n: int, m: int, most: int = DECILES) -> int:
    """So many bins that both histograms have `LEAST_IN_BIN` numbers in each, and at least 2."""
    return max(2, min(most, min(n, m) // LEAST_IN_BIN))


def rebin(reference: Sketch, current: Sketch, bins: int = DECILES) -> tuple[Floats, Floats]:
    """Both sketches counted in bins that hold equal parts of the reference (its deciles).

    A single value that is as frequent as a whole part gets a bin of its own, so that leaving it is seen on both sides.

    Args:
        reference: what the bins come from.
        current: what is compared with it.
        bins: parts of the reference.

    Returns:
        Counts of reference and current, of the same shape [at most 2 bins + 1].

    Raises:
        InvalidError: the reference is empty.
    """
    check_count("bins", bins, 2)
    if not reference.n:
        raise refused(
            "a reference without numbers", "a sketch that counted some", "wait for its first window"
        )
    places, counts = _ordered(reference)
    totals, part = np.cumsum(counts), reference.n / bins
    cuts: set[int] = set()
    for place, count, total in zip(places, counts, totals, strict=True):
        heavy = count >= part
        if heavy:
            cuts.add(int(place) - 1)
        crossed = total // part > (total - count) // part
        if heavy or (crossed and place != places[-1]):
            cuts.add(int(place))
    edges = np.array(sorted(cuts))
    return _counted(reference, edges), _counted(current, edges)


def _ordered(sketch: Sketch) -> tuple[Floats, Floats]:
    """The sketch's bins as places on one axis from the lowest to the highest value, and their counts."""
    found = {-(number - FIRST_BIN + 1): count for number, count in sketch.below.items()}
    found |= {0: sketch.zeros} if sketch.zeros else {}
    found |= {number - FIRST_BIN + 1: count for number, count in sketch.above.items()}
    places = sorted(found)
    return np.array(places, np.float64), np.array([found[place] for place in places], np.float64)


def _counted(sketch: Sketch, edges: Floats) -> Floats:
    """Counts in (−∞, edge], (edge, edge], …, (edge, ∞)."""
    places, counts = _ordered(sketch)
    at = np.searchsorted(edges, places, side="left")
    return np.bincount(at, weights=counts, minlength=len(edges) + 1).astype(np.float64)


def _histograms(reference: Sequence[int] | Floats, current: Sequence[int] | Floats) -> tuple[Floats, Floats]:
    before, after = np.asarray(reference, np.float64), np.asarray(current, np.float64)
    if before.ndim != 1 or before.shape != after.shape or not before.size:
        raise refused(f"histograms of shapes {before.shape} and {after.shape}", "the same bins in both")
    for name, counts in (("reference", before), ("current", after)):
        if not (np.isfinite(counts) & (counts >= 0)).all() or not counts.sum() > 0:
            raise refused(f"{name} histogram {counts.tolist()}", "counts of at least 0, one above 0")
    return before, after


def _shares(counts: Floats) -> Floats:
    return np.asarray(counts / counts.sum())


def _divergence_bits(p: Floats, q: Floats) -> float:
    there = p > 0
    return float(np.sum(p[there] * np.log2(p[there] / q[there])))
