"""When the candidate's process may work: within its share of a core, and while the device is cool."""

from __future__ import annotations

from pathlib import Path
from typing import Final

# Degrees below the limit at which work goes on, so that it does not start and stop all the time.
COOLER_BY: Final = 5.0
# What a sensor says in degrees that no board survives is not a temperature.
SENSIBLE: Final = (-60.0, 200.0)


class Duty:
    """A share of a core: seconds of processor time are credited as time goes by and spent by work.

    Credit does not pile up beyond a burst, so that a quiet hour is not followed by a minute of full load; debt does,
    so that one long prediction is paid for by one long pause.

    Args:
        share: seconds of processor time for each second.
        now_s: by a clock that nobody sets.
        spent_s: of processor time until now.
        burst_s: of credit at most.
    """

    def __init__(self, share: float, now_s: float, spent_s: float = 0.0, *, burst_s: float = 0.05) -> None:
        self.share, self.burst_s = share, burst_s
        self._credit_s, self._now_s, self._spent_s = burst_s, now_s, spent_s

    def pause_s(self, now_s: float, spent_s: float) -> float:
        """Seconds until work may go on.

        Args:
            now_s: as at the start.
            spent_s: of processor time by now, since the process began.
        """
        earned = self.share * max(0.0, now_s - self._now_s)
        self._credit_s = min(self.burst_s, self._credit_s + earned - (spent_s - self._spent_s))
        self._now_s, self._spent_s = now_s, spent_s
        return max(0.0, -self._credit_s / self.share)


def is_hot(celsius: float | None, limit: float, *, was: bool) -> bool:
    """Whether the device is too hot to compare anything; once it was, until it is `COOLER_BY` degrees cooler."""
    if celsius is None:
        return False
    return celsius > (limit - COOLER_BY if was else limit)


def hottest_celsius(folder: Path) -> float | None:
    """Degrees of the hottest sensor, None where the system has none that can be read."""
    found = []
    for sensor in folder.glob("thermal_zone*/temp"):
        try:
            degrees = int(sensor.read_text("ascii")) / 1000
        except (OSError, ValueError):
            continue
        if SENSIBLE[0] <= degrees <= SENSIBLE[1]:
            found.append(degrees)
    return max(found, default=None)
