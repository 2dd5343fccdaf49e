"""Gaussian process regression (Rasmussen & Williams 2006, chapters 2 and 5): a smooth surface through a few points.

The covariance is a plane plus a Matérn function of order 3/2 with a length for each coordinate. Lengths and noise are
those of the largest marginal likelihood, found by coordinate search: the points say themselves in which direction they
change fast, and nothing else needs to be chosen for another device. In numpy alone, since estimates are made where no
library of statistics is installed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]

# Variances of the plane and of what bends away from it; values are logarithms.
PLANE, BEND = 0.5, 0.5
# Coordinates over which the plane rises by its standard deviation.
REACH: Final = 5.0
START_LENGTH, LENGTHS = 3.0, (0.3, 40.0)
START_NOISE, NOISES = 1e-3, (1e-4, 0.05)
LENGTH_STEPS, NOISE_STEPS = (0.5, 0.7, 1.4, 2.0), (0.3, 3.0)
ROUNDS: Final = 3


@dataclass(frozen=True)
class Process:
    """Points with what follows from them anywhere between.

    Attributes:
        points: `[n, d]` float64.
        middle: `[d]`, where the plane is level.
        level: mean of the values.
        weights: `[n]`, of the points' covariances.
        lengths: `[d]`, over which values lose touch.
    """

    points: Vector
    middle: Vector
    level: float
    weights: Vector
    lengths: Vector

    @classmethod
    def fitted(cls, points: Vector, values: Vector, noises: tuple[float, float] = NOISES) -> Process:
        """The process of the most likely lengths and noise.

        Args:
            points: `[n, d]` float64, at least one.
            values: `[n]` float64.
            noises: between which the variance of their noise lies.
        """
        middle, level = points.mean(0), float(values.mean())
        lengths, noise = _most_likely(points, values - level, middle, noises)
        known = _covariance(points, points, middle, lengths) + noise * np.eye(len(points))
        weights = np.linalg.solve(known, values - level).astype(np.float64)
        return cls(points, middle, level, weights, lengths)

    def at(self, point: Vector) -> float:
        """The expected value at a point `[d]`."""
        near = _covariance(point[None], self.points, self.middle, self.lengths)
        return self.level + float(near[0] @ self.weights)


def _covariance(one: Vector, other: Vector, middle: Vector, lengths: Vector) -> Vector:
    apart = math.sqrt(3) * np.sqrt((((one[:, None] - other[None]) / lengths) ** 2).sum(-1))
    plane = 1 + (one - middle) @ (other - middle).T / REACH**2
    found: Vector = BEND * (1 + apart) * np.exp(-apart) + PLANE * plane
    return found


def _most_likely(
    points: Vector, values: Vector, middle: Vector, noises: tuple[float, float]
) -> tuple[Vector, float]:
    lengths, noise = np.full(points.shape[1], START_LENGTH), float(np.clip(START_NOISE, *noises))
    changing = [axis for axis in range(points.shape[1]) if np.ptp(points[:, axis]) > 0]
    best = _likelihood(points, values, middle, lengths, noise)
    for _ in range(ROUNDS):
        before = best
        for axis in changing:
            for step in LENGTH_STEPS:
                tried = lengths.copy()
                tried[axis] = np.clip(tried[axis] * step, *LENGTHS)
                found = _likelihood(points, values, middle, tried, noise)
                if found > best:
                    best, lengths = found, tried
        for step in NOISE_STEPS:
            other = float(np.clip(noise * step, *noises))
            found = _likelihood(points, values, middle, lengths, other)
            if found > best:
                best, noise = found, other
        if best == before:
            break
    return lengths, noise


def _likelihood(points: Vector, values: Vector, middle: Vector, lengths: Vector, noise: float) -> float:
    """Logarithm of the marginal likelihood, but for a constant (equation 2.30 there)."""
    known = _covariance(points, points, middle, lengths) + noise * np.eye(len(points))
    lower = np.linalg.cholesky(known)
    whitened = np.linalg.solve(lower, values)
    return float(-0.5 * whitened @ whitened - np.log(np.diag(lower)).sum())
