"""What a server does by itself, again and again on a thread of its own, one server at a time."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Final

from edgekit.fleet.context import Fleet
from edgekit.fleet.errors import FleetError, UnavailableError

log = logging.getLogger(__name__)

Round = Callable[[Callable[[], bool]], float]
"""Does one round; is given what tells whether a long one should end early, and returns seconds until the next."""

# Seconds that a round may still take when the server ends.
ENDS_S: Final = 30.0
# Least seconds to the next round after one that failed.
FAILED_S: Final = 1.0


class Repeated:
    """Does rounds of something until it is stopped. Whatever goes wrong in one round, the next one comes.

    Args:
        fleet: of the server.
        holder: name of this process among all servers.
        lease: that rounds take, and that is given back at the end, so that another server goes on at once.
        act: does one round.
        at_end: gives back what rounds share.
    """

    def __init__(
        self, fleet: Fleet, holder: str, lease: str, act: Round, at_end: Callable[[], None] | None = None
    ) -> None:
        self._fleet, self._holder, self._lease = fleet, holder, lease
        self._act, self._at_end = act, at_end
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=lease, daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End after the round that is under way; one that takes too long ends with the process."""
        self._stop.set()
        self._thread.join(ENDS_S)
        if self._at_end:
            self._at_end()
        try:
            self._fleet.database.release_lease(self._lease, self._holder)
        except UnavailableError:
            # It runs out by itself.
            log.info("the lease %s could not be given back", self._lease)

    def _run(self) -> None:
        wait_s = 0.0
        while not self._stop.wait(wait_s):
            try:
                wait_s = self._act(self._stop.is_set)
            except FleetError as error:
                log.warning("%s waits: %s", self._lease, error.what)
                wait_s = max(wait_s, FAILED_S)
            except Exception:
                # A fleet whose conductor ended would never be stopped by a gate.
                log.exception("a round of %s failed", self._lease)
                wait_s = max(wait_s, FAILED_S)
