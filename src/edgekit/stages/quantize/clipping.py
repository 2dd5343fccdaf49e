"""Four ways to read a range off a histogram; pure, vectorised over every candidate range at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Clip = Callable[[Floats, Floats, float], tuple[float, float]]

PERCENTILE: Final = 99.99
LEVELS: Final = 256
# Each end is tried at these shares of its extreme.
_SHARES: Final = np.linspace(0.25, 1.0, 31)
# Probability that stands for "no value of the quantized distribution lies here".
_ABSENT: Final = 1e-9


def clip_minmax(counts: Floats, edges: Floats, level: float) -> tuple[float, float]:
    """The whole range."""
    del counts, level
    return float(edges[0]), float(edges[-1])


def clip_percentile(counts: Floats, edges: Floats, level: float) -> tuple[float, float]:
    """Cut `(100 - level) / 2` percent of the values at each end."""
    tail = (100.0 - level) / 200.0
    cumulative = np.cumsum(counts) / counts.sum()
    low = int(np.searchsorted(cumulative, tail, side="right"))
    high = int(np.searchsorted(cumulative, 1.0 - tail))
    last = len(counts)
    return float(edges[min(low, last - 1)]), float(edges[min(high + 1, last)])


def clip_mse(counts: Floats, edges: Floats, level: float) -> tuple[float, float]:
    """The range whose 256 levels reconstruct the histogram with the least squared error.

    Banner et al., "Post-training 4-bit quantization of convolution networks" (2019): clipping noise against
    rounding noise; here minimised on the histogram itself instead of a fitted distribution. Zero is a level
    of every grid, so values of zero are reproduced without noise and have no say.
    """
    del level
    counts = _without_zero(counts)
    if not counts.any():
        return float(edges[0]), float(edges[-1])
    centers = (edges[:-1] + edges[1:]) / 2
    first, last = _candidates(counts)
    low, high = edges[first], edges[last]
    n, nx, nxx = (_prefix(counts * centers**power) for power in range(3))
    q_low, q_high = np.minimum(low, 0.0), np.maximum(high, 0.0)
    i = np.searchsorted(centers, q_low)
    j = np.searchsorted(centers, q_high)
    below = nxx[i] - 2 * q_low * nx[i] + q_low**2 * n[i]
    above = (nxx[-1] - nxx[j]) - 2 * q_high * (nx[-1] - nx[j]) + q_high**2 * (n[-1] - n[j])
    step = (q_high - q_low) / (LEVELS - 1)
    best = int(np.argmin(below + above + (n[j] - n[i]) * step**2 / 12))
    return float(low[best]), float(high[best])


def clip_entropy(counts: Floats, edges: Floats, level: float) -> tuple[float, float]:
    """The range whose quantized histogram has the least Kullback-Leibler divergence from the true one.

    Migacz, "8-bit inference with TensorRT" (GTC 2017), on both ends of an affine range. As there, the bin
    of zero is left out: rectifiers put most values exactly on zero, which every grid represents, and that
    spike alone would decide for the narrowest range.
    """
    del level
    counts = _without_zero(counts)
    first, last = _candidates(counts)
    enough = last - first >= LEVELS
    if not enough.any() or not counts.any():
        return float(edges[0]), float(edges[-1])
    first, last = first[enough], last[enough]
    best = int(np.argmin(_divergences(counts, first, last)))
    return float(edges[first[best]]), float(edges[last[best]])


def _divergences(counts: Floats, first: npt.NDArray[np.int64], last: npt.NDArray[np.int64]) -> Floats:
    """`KL(P ‖ Q)` for every candidate `[first, last)`, float64 `[candidates]`.

    P is the histogram with what lies outside added to its end bins. Q gives every non-empty bin the mean of
    the non-empty bins that share its level. With `r` the counts of P, `c` the inner counts and `q` those of
    Q, `KL = (Σ r log r - Σ r log q) / Σ r - log Σ r + log Σ c`; sums over bins are differences of prefix
    sums, so each candidate costs its 256 levels and not its bins.
    """
    mass, filled, plogp = _prefix(counts), _prefix(counts > 0), _prefix(_xlogy(counts, counts))
    bounds = first[:, None] + -(-np.arange(LEVELS + 1) * (last - first)[:, None] // LEVELS)
    level_mass = np.diff(mass[bounds], axis=1)
    level_filled = np.diff(filled[bounds], axis=1)
    level_mean = level_mass / np.maximum(level_filled, 1)
    total, inner = mass[-1], level_mass.sum(axis=1)
    self_term = plogp[last] - plogp[first]
    cross_term = _xlogy(level_mass, level_mean).sum(axis=1)
    ends = ((first, mass[first], level_mean[:, 0]), (last - 1, total - mass[last], level_mean[:, -1]))
    for end_bin, outside, mean in ends:
        own = counts[end_bin]
        self_term += _xlogy(own + outside, own + outside) - _xlogy(own, own)
        cross_term += _xlogy(outside, np.where(own > 0, mean, _ABSENT * total))
    with np.errstate(divide="ignore"):
        divergence = (self_term - cross_term) / total - np.log(total) + np.log(inner)
    return np.where(inner > 0, divergence, np.inf)


def _candidates(counts: Floats) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """First and one-past-last bin of the ranges to try: each end shrunk from its extreme towards zero."""
    half = len(counts) // 2
    used = np.nonzero(counts)[0]
    if not len(used):
        return np.array([0]), np.array([len(counts)])
    low, high = int(used[0]) - half, int(used[-1]) + 1 - half
    firsts = np.unique(np.round(min(low, 0) * _SHARES).astype(np.int64))
    lasts = np.unique(np.round(max(high, 0) * _SHARES).astype(np.int64))
    grid = np.array([(f, e) for f in firsts for e in lasts if f < e], dtype=np.int64)
    # Widest first, so that equals keep the most values.
    grid = grid[np.argsort(grid[:, 0] - grid[:, 1], kind="stable")]
    return grid[:, 0] + half, grid[:, 1] + half


def _without_zero(counts: Floats) -> Floats:
    """The bin that starts at zero also holds every exact zero; without it only real values count."""
    kept = counts.copy()
    kept[len(counts) // 2] = 0.0
    return kept


def _prefix(values: npt.NDArray[np.float64] | npt.NDArray[np.bool_]) -> Floats:
    return np.concatenate(([0.0], np.cumsum(values, dtype=np.float64)))


def _xlogy(x: Floats, y: Floats) -> Floats:
    """`x log y`, zero where `x` is zero."""
    return np.where(x > 0, x * np.log(np.where(x > 0, y, 1.0)), 0.0)


METHODS: Final[dict[str, Clip]] = {
    "minmax": clip_minmax,
    "percentile": clip_percentile,
    "mse": clip_mse,
    "entropy": clip_entropy,
}
