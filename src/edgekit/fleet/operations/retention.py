"""Takes what is older than the operator keeps: documents of windows that are counted, looks, what was told.

What stays of a window is its key, so that it is counted once whenever it comes again, and the sums that it went into.
"""

from __future__ import annotations

import logging
import math
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

from edgekit.fleet.background import Repeated
from edgekit.fleet.context import Fleet
from edgekit.fleet.errors import FleetError
from edgekit.fleet.operations import leftovers
from edgekit.fleet.storage.tables import deliveries, disagreements, looks, windows

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
    unseen_s = int(fleet.now()) - fleet.settings.disagreement_days * DAY_S
    for table, those in (
        (looks, looks.c.at_s < old_s), (deliveries, _told(old_s)),
        (disagreements, disagreements.c.received_s < unseen_s),
    ):  # fmt: skip
        _each_batch(fleet, select(table.c.id).where(those), partial(_removal, table))
    return max(since_s, old_s)


def repeated(fleet: Fleet, holder: str) -> Repeated:
    """Sweeps for as long as the server runs.

    Args:
        fleet: of the server.
        holder: name of this process among all servers.
    """
    since_s, clock_s, went_s = 0, math.nan, math.nan

    def rounds(is_ending: Callable[[], bool]) -> float:
        nonlocal since_s, clock_s, went_s
        del is_ending
        before_s, before_went_s = clock_s, went_s
        clock_s, went_s = fleet.now(), time.monotonic()
        # At the start there is nothing to hold the clock against.
        if not abs((clock_s - before_s) - (went_s - before_went_s)) <= STEP_S:
            if not math.isnan(before_s):
                log.warning("nothing is swept: the clock was set")
        elif fleet.database.lease(LEASE, holder, LEASE_S):
            since_s = sweep(fleet, since_s)
            try:
                leftovers.collect(fleet)
            except FleetError as error:
                log.warning("files that no version names stay: %s", error.what)
        return EVERY_S

    return Repeated(fleet, holder, LEASE, rounds)


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
