"""The difference between two arms of devices, at every look.

Devices are paired in the order in which each arm's were known, so that a pair is one number, and the numbers are bet
on as any others (`means`): (1 + d) / 2 for a difference d that is cut off at ± `span`. Both arms are drawn at random,
so without a difference X − Y is as likely as Y − X; its mean is zero wherever it is cut off, and the test of "no
difference" is exact for any span. A difference that is there is cut towards zero where it is larger than the span. A
smaller span sees small differences with fewer devices: no device can bring more than its span.

Pairing costs no power against two intervals, one of each arm, which would have to part (that takes twice the devices).
Who has no partner yet waits for one. Pairs never change, since the numbers are frozen and so is their order.
"""

from __future__ import annotations

import math

import numpy as np

from edgekit.fleet.statistics.intervals import Floats, Interval, check_alpha, check_positive, refused
from edgekit.fleet.statistics.parts import log_capital, lower_bound


def pairs(candidate: Floats, control: Floats, span: float) -> Floats:
    """Differences of pairs, cut off at ± span, onto [0, 1]; 1/2 is none.

    Args:
        candidate: one number per device, in the order in which they were known, shape [n].
        control: of the other arm, shape [m].
        span: above 0, units of the numbers.

    Returns:
        Shape [min(n, m)].

    Raises:
        InvalidError: a number is NaN or infinite, or the span is none.
    """
    check_positive("span", span)
    for name, values in (("candidate", candidate), ("control", control)):
        if values.ndim != 1 or not np.isfinite(values).all():
            raise refused(f"{name} {values!r}"[:200], "finite numbers, one per device: [n]")
    n = min(len(candidate), len(control))
    apart = np.clip(candidate[:n] - control[:n], -span, span)
    return np.asarray((1 + apart / span) / 2, dtype=np.float64)


def shows_above(x: Floats, value: float, *, span: float, alpha: float) -> bool:
    """Whether it is shown, at every look, that the mean difference is above a value, as the interval's bound is.

    Args:
        x: of `pairs`; one less it for "below", with the value's sign turned.
        value: within ± the span.
        span: as in `pairs`.
        alpha: chance that this is ever said of a difference that is not, at most.
    """
    check_alpha(alpha)
    everybody = [np.ones(len(x), dtype=np.bool_)]
    return bool(log_capital(x, everybody, (1 + value / span) / 2)[0] >= -math.log(alpha))


def interval(x: Floats, *, below: float, above: float, span: float) -> Interval:
    """Where the mean difference lies, candidate less control.

    Args:
        x: of `pairs`.
        below: chance that the lower bound is ever above the truth, at most.
        above: chance that the upper bound is ever below it, at most.
        span: as in `pairs`.

    Raises:
        InvalidError: a level is none.
    """
    check_alpha(below, "below")
    check_alpha(above, "above")
    low = (2 * lower_bound(x, below) - 1) * span
    high = (1 - 2 * lower_bound(1 - x, above)) * span
    mean = float((2 * x - 1).mean()) * span if len(x) else None
    # Both gamblers won against everything: one of the cases of the levels. Claim nothing then.
    if low > high:
        low, high = -span, span
    return Interval(low, high, mean, len(x), below + above)
