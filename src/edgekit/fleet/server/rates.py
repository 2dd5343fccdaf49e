"""How often somebody may ask: token buckets in memory, of each process for itself.

With N processes somebody who is spread over all of them gets up to N times as much; the limits are there against
accidents and floods, not to bill anybody.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from edgekit.fleet.errors import TooMuchError

# Keys that are remembered; who was forgotten begins with a full bucket.
MOST_KEYS: Final = 100_000


class TooOftenError(TooMuchError):
    """Asked more often than is taken.

    Args:
        wait_s: seconds until it may be asked again.
    """

    status = 429

    def __init__(self, wait_s: float) -> None:
        self.wait_s = wait_s
        super().__init__(
            "more requests than are taken",
            expected=f"a pause of {wait_s:.1f} s",
            way_out="Wait as long as Retry-After says.",
            code="too_often",
        )


class Rates:
    """A bucket for each key, which refills with time.

    Args:
        per_s: that each key gets, in the long run.
        burst: that it may have at once.
        clock: monotonic seconds.
    """

    def __init__(self, per_s: float, burst: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_s, self._burst, self._clock = per_s, burst, clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._lock = threading.Lock()

    def spend(self, key: str) -> None:
        """Take one from the bucket of a key.

        Raises:
            TooOftenError: it is empty.
        """
        now_s = self._clock()
        with self._lock:
            left, at_s = self._buckets.pop(key, (self._burst, now_s))
            left = min(self._burst, left + (now_s - at_s) * self._per_s)
            spent = left >= 1
            self._buckets[key] = left - spent, now_s
            if len(self._buckets) > MOST_KEYS:
                self._buckets.popitem(last=False)
        if not spent:
            raise TooOftenError((1 - left) / self._per_s)
