"""Ratios of latency as numbers in [0, 1], for the methods that need bounds, and back.

The mean of logarithms is the log of the geometric mean: twice as slow and twice as fast cancel out, and 1 (as fast as
before) is at 1/2 (Fleming and Wallace, "How not to lie with statistics: the correct way to summarize benchmark
results", 1986). A log ratio is cut off at ± log 4. The bias of that is towards 1 and only as large as what sticks out:
with U the log ratio, E[cut U] − E[U] = E[(−log 4 − U)⁺] − E[(U − log 4)⁺]. A device that is 10 times slower counts as 4
times slower: a candidate that is bad on few devices shows better by this mean than it is, and that is what gates on
failures and slices are for. `clipping_bias` measures it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np

from edgekit.fleet.statistics.intervals import Floats, Interval, refused

LARGEST_RATIO: Final = 4.0
_LOG: Final = math.log(LARGEST_RATIO)


def to_unit(ratios: Sequence[float] | Floats) -> Floats:
    """Ratios, candidate to live, mapped to [0, 1]: 1/4 and less to 0, 1 to 1/2, 4 and more (infinity, too) to 1.

    Raises:
        InvalidError: one is NaN, zero or negative.
    """
    logs = np.clip(_logs(ratios), -_LOG, _LOG)
    return np.asarray((logs + _LOG) / (2 * _LOG))


def from_unit(value: float) -> float:
    """The ratio of a number in [0, 1]; of a mean of such numbers the geometric mean of the ratios."""
    if not 0 <= value <= 1:
        raise refused(f"value {value}", "a number in [0, 1]")
    return math.exp((2 * value - 1) * _LOG)


def from_interval(interval: Interval) -> Interval:
    """The interval of a mean of numbers of `to_unit`, as one for the geometric mean of the cut ratios."""
    estimate = None if interval.estimate is None else from_unit(interval.estimate)
    return Interval(
        from_unit(interval.lower), from_unit(interval.upper), estimate, interval.n, interval.alpha
    )


def clipping_bias(ratios: Sequence[float] | Floats) -> float:
    """Factor by which cutting off changed the geometric mean: 1 where nothing was cut, 0 where one was infinite."""
    logs = _logs(ratios)
    if not logs.size:
        return 1.0
    if np.isposinf(logs).any():
        return 0.0
    return float(np.exp(np.mean(np.clip(logs, -_LOG, _LOG) - logs)))


def _logs(ratios: Sequence[float] | Floats) -> Floats:
    array = np.asarray(ratios, dtype=np.float64)
    wrong = ~(array > 0)
    if wrong.any():
        raise refused(
            f"ratio {array[wrong].flat[0]}",
            "a number above 0, infinity where the candidate gave no answer",
            "leave out devices without measurements",
        )
    return np.asarray(np.log(array))
