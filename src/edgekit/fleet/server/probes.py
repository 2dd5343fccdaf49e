"""Whether database and blobs can be read, and written: the latter is tried every few seconds only, whoever asks."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from sqlalchemy import text

from edgekit.fleet.context import Fleet
from edgekit.fleet.errors import FleetError, UnavailableError

EVERY_S: Final = 5.0
# After a failure, since somebody waits for its end.
SOON_S: Final = 0.5
# The same row and the same file each time, so that nothing grows.
_LEASE, _LEASE_S = "health", 1.0
_NAME: Final = "health/probe"
_CONTENT: Final = b"edgekit\n"


@dataclass(frozen=True, slots=True)
class Found:
    """What came of asking.

    Attributes:
        ms: that it took.
        why: code of the error, "" where there was none.
    """

    ms: float
    why: str


class Probes:
    """What a server needs, of one process.

    Args:
        fleet: of it.
        clock: monotonic seconds.
    """

    def __init__(self, fleet: Fleet, clock: Callable[[], float] = time.monotonic) -> None:
        self._fleet, self._clock = fleet, clock
        self._lock = threading.Lock()
        self._until_s = float("-inf")
        self._found: Mapping[str, Found] = {}

    def found(self) -> Mapping[str, Found]:
        """Part to what came of asking it: of reading now, of writing now or a moment ago."""
        reads = {name: _asked(self._fleet, ask) for name, (ask, _) in _PARTS.items()}
        with self._lock:
            if self._clock() >= self._until_s:
                self._found = {name: _asked(self._fleet, ask) for name, (_, ask) in _PARTS.items()}
                failed = any(each.why for each in self._found.values())
                self._until_s = self._clock() + (SOON_S if failed else EVERY_S)
            return {name: read if read.why else self._found[name] for name, read in reads.items()}


def _read_database(fleet: Fleet) -> None:
    with fleet.database.reading() as connection:
        connection.execute(text("SELECT 1"))


def _write_database(fleet: Fleet) -> None:
    # On a full disk all is read as ever.
    if not fleet.database.lease(_LEASE, _LEASE, _LEASE_S):
        raise UnavailableError(
            "a row that was not taken", expected="it", way_out="Try again.", code="database_busy"
        )


def _read_blobs(fleet: Fleet) -> None:
    # Whether something is there or not: that it says so is the answer.
    fleet.blobs.size(_NAME)


def _write_blobs(fleet: Fleet) -> None:
    fleet.blobs.put(_NAME, [_CONTENT], max_bytes=len(_CONTENT))


_Ask = Callable[[Fleet], None]
_PARTS: Final[Mapping[str, tuple[_Ask, _Ask]]] = {
    "database": (_read_database, _write_database),
    "blobs": (_read_blobs, _write_blobs),
}


def _asked(fleet: Fleet, ask: Callable[[Fleet], None]) -> Found:
    began_s = time.perf_counter()
    why = ""
    try:
        ask(fleet)
    except FleetError as error:
        # The address of the database is nobody's business who has no token.
        why = error.code
    return Found(round((time.perf_counter() - began_s) * 1000, 2), why)
