"""Takes what is older than the operator keeps: documents of windows that are counted, looks, what was told.

What stays of a window is its key, so that it is counted once whenever it comes again, and the sums that it went into.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    Connection,
    Delete,
    Select,
    Table,
    Update,
    and_,
    delete,
    func,
    select,
    update,
)

from edgekit.fleet.context import Fleet
from edgekit.fleet.errors import FleetError, UnavailableError
from edgekit.fleet.storage.tables import deliveries, looks, windows

log = logging.getLogger(__name__)

LEASE: Final = "retention"
LEASE_S: Final = 300.0
EVERY_S: Final = 3600.0
BATCH: Final = 500
DAY_S: Final = 86400
# Seconds by which the clock may differ from what went by: by one that jumped years ahead all would be old.
STEP_S: Final = 300.0


def sweep(fleet: Fleet, since_s: int = 0) -> int:
    """Take what is too old.

    Args:
        fleet: of the server.
        since_s: seconds since 1970; what was received before is swept already.

    Returns:
        Before which second everything is swept now.
    """
    old_s = int(fleet.now()) - fleet.settings.retention_days * DAY_S
    counted = and_(
        windows.c.received_s >= since_s, windows.c.received_s < old_s, windows.c.merged.is_(True),
        func.length(windows.c.document) > 0,
    )  # fmt: skip
    ids = select(windows.c.id).where(counted).order_by(windows.c.received_s)
    _each_batch(fleet, ids, lambda found: update(windows).where(windows.c.id.in_(found)).values(document=b""))
    for table, those in ((looks, looks.c.at_s < old_s), (deliveries, _told(old_s))):
        _each_batch(fleet, select(table.c.id).where(those), partial(_removal, table))
    return max(since_s, old_s)


class Sweeper:
    """Sweeps every hour on a thread of its own.

    Args:
        fleet: of the server.
        holder: name of this process among all servers.
    """

    def __init__(self, fleet: Fleet, holder: str) -> None:
        self._fleet, self._holder = fleet, holder
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="retention", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End after the sweep that is under way."""
        self._stop.set()
        self._thread.join()
        try:
            self._fleet.database.release_lease(LEASE, self._holder)
        except UnavailableError:
            # It runs out by itself.
            log.info("the lease could not be given back")

    def _run(self) -> None:
        since_s, clock, went = 0, self._fleet.now(), time.monotonic()
        while not self._stop.wait(EVERY_S):
            before_s, before, clock, went = clock, went, self._fleet.now(), time.monotonic()
            if abs((clock - before_s) - (went - before)) > STEP_S:
                log.warning("nothing is swept: the clock was set")
                continue
            try:
                if self._fleet.database.lease(LEASE, self._holder, LEASE_S):
                    since_s = sweep(self._fleet, since_s)
            except FleetError as error:
                log.warning("not swept: %s", error.what)
            except Exception:
                log.exception("not swept")


def _told(old_s: int) -> ColumnElement[bool]:
    return and_(deliveries.c.done_s > 0, deliveries.c.done_s < old_s)


def _removal(table: Table, ids: Sequence[int]) -> Delete:
    return delete(table).where(table.c.id.in_(ids))


def _each_batch(fleet: Fleet, query: Select[Any], change: Callable[[Sequence[int]], Update | Delete]) -> None:
    """Change what a query finds, each batch in a transaction of its own, so that nobody waits long."""

    def work(connection: Connection) -> int:
        ids: Sequence[int] = connection.scalars(query.limit(BATCH)).all()
        if ids:
            connection.execute(change(ids))
        return len(ids)

    while fleet.database.write(work) == BATCH:
        pass
