"""The capital of `means.log_capital` for many devices and several parts of them at once, after all their numbers.

It does not depend on the order of the devices, so numbers of very many are rounded down and counted: capital only falls
by that, and what it shows stays shown.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edgekit.fleet.statistics.intervals import Floats
from edgekit.fleet.statistics.means import FRACTIONS, WEIGHTS

# Numbers from 0 to 1 are rounded to so many, where there are more of them; bounds are on that grid.
COUNTED: Final = 2**14


def log_capital(x: Floats, members: Sequence[NDArray[np.bool_]], mean: float) -> Floats:
    """`means.log_capital` after all devices of each part, that the mean of x is above one that is given.

    It does not depend on the order of the devices, so their numbers are counted where there are many; they are rounded
    down, by which capital only falls.

    Args:
        x: [n], numbers in [0, 1].
        members: for each part [n].
        mean: between 0 and 1.

    Returns:
        Of each part.
    """
    if mean <= 0:
        return np.array([math.inf if x[each].any() else 0.0 for each in members])
    if len(x) > COUNTED:
        at = (x * COUNTED).astype(np.int64)
        weights = np.array(
            [np.bincount(at[each], minlength=COUNTED + 1) for each in members], dtype=np.float64
        )
        used = weights[0] > 0
        x, weights = np.flatnonzero(used) / COUNTED, weights[:, used]
    else:
        weights = np.array(members, dtype=np.float64)
    fractions = FRACTIONS[:, None]
    logs = np.log(1 - fractions + fractions * (x / mean)) @ weights.T
    return np.asarray(np.logaddexp.reduce(logs + np.log(WEIGHTS)[:, None], axis=0), dtype=np.float64)


def lower_bound(x: Floats, alpha: float) -> float:
    """The largest mean on a grid that the capital excludes: it falls in the mean, so bisection finds it."""
    low, high = 0, COUNTED
    everybody = [np.ones(len(x), dtype=bool)]
    while len(x) and high - low > 1:
        middle = (low + high) // 2
        won = log_capital(x, everybody, middle / COUNTED)[0] >= -math.log(alpha)
        low, high = (middle, high) if won else (low, middle)
    return low / COUNTED
