"""What time it is, on a device whose clock lies in both directions. Standard library only.

Whether metadata are expired is asked at the later of the system clock and a floor that only rises. The floor never
comes from a clock of this device, so a clock that jumped ahead refuses installs while it is wrong, and leaves nothing
behind. It comes from the date on which this package was released and from `signed_at`, a field of the timestamp role:
the signer's time in the form of `expires`. The Update Framework (TUF) has no such field, so it may be missing, and
then it raises nothing. It is believed when root, timestamp, snapshot and targets are all valid at that time. So a
thief of the online timestamp key can move the floor no further than the keys that are kept offline let their own
metadata live, and a root with another timestamp key voids what the stolen key said, as it does for versions (TUF
specification 5.3.11). What is left: a device whose clock is behind and that is shown the same old timestamp for ever
takes that for fresh; it installs nothing new by that, and nothing that was not signed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Final

from edgekit_runtime.disk import Disk, replace
from edgekit_runtime.strict_json import ContractError, Fields, parse

UTC: Final = timezone.utc  # noqa: UP017 - Python 3.10 has no `datetime.UTC`
# To be raised with every release, and never later than its true date.
RELEASED: Final = datetime(2026, 11, 1, tzinfo=UTC)
TIME_FORMAT: Final = "%Y-%m-%dT%H:%M:%SZ"
LATEST_S: Final = datetime(9999, 12, 31, tzinfo=UTC).timestamp()
SIGNED_AT: Final = "signed_at"


@dataclass(frozen=True, slots=True)
class Floor:
    """The earliest time that it can be.

    Attributes:
        path: of the file that keeps it.
        released: no device is used before that; the floor while there is no other.
        disk: writes the file.
    """

    path: Path
    released: datetime
    disk: Disk

    def of(self, keys: Sequence[str]) -> datetime:
        """The floor that these keys vouched for.

        Args:
            keys: ids of those that may sign a timestamp.
        """
        try:
            clock = Fields(parse(self.path.read_bytes()), "", ("floor", "keys"))
            vouched, floor = clock.take("keys"), read_time(clock.text("floor"))
        except (OSError, ContractError, ValueError):
            # Missing, or the disk lost it: better a lower floor than a device that never installs again.
            return self.released
        return max(self.released, floor) if vouched == list(keys) else self.released

    def rise(self, floor: datetime, keys: Sequence[str]) -> None:
        """Keep a floor, and who vouched for it.

        Raises:
            OSError: it cannot be written.
        """
        clock = {"floor": f"{floor:{TIME_FORMAT}}", "keys": list(keys)}
        replace(self.disk, self.path, json.dumps(clock).encode())


def signed_at(more: Mapping[str, Any]) -> datetime | None:
    """When a timestamp was signed, None where it does not say.

    Args:
        more: its fields beyond those of TUF, which lets them be anything.
    """
    try:
        return read_time(more[SIGNED_AT])
    except (KeyError, TypeError, ValueError):
        return None


def read_time(text: str) -> datetime:
    """A time as TUF writes it.

    Raises:
        ValueError: it is none.
    """
    return datetime.strptime(text, TIME_FORMAT).replace(tzinfo=UTC)


def moment(seconds: float) -> datetime:
    """What a clock says in seconds since 1970; a broken one says anything, and beyond the calendar it is its end."""
    return datetime.fromtimestamp(min(max(seconds, 0.0), LATEST_S), tz=UTC)
