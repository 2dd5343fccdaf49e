"""Rows that the pages show. Whole tables are grouped by the database; lists come a page at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, and_, func, select

from edgekit.fleet.conduct.conductor import LEASE
from edgekit.fleet.rules.rollouts import OPEN
from edgekit.fleet.storage.tables import (
    audit,
    decisions,
    deliveries,
    devices,
    evidence,
    leases,
    looks,
    reports,
    rollouts,
    versions,
    windows,
)
from edgekit.fleet.windows import views

PAGE: Final = 50
# Points of a history: more than that no screen shows.
MOST_LOOKS: Final = 240
HOUR_S: Final = 3600


@dataclass(frozen=True, slots=True)
class Group:
    """Devices that are alike.

    Attributes:
        labels: name to value.
        live: id of the release that serves on them.
        revoked: whether they are refused.
        age: "never", "day" or "week" within which they were heard of, or "older", "minutes", "hour".
        count: of them.
    """

    labels: Mapping[str, str]
    live: str
    revoked: bool
    age: str
    count: int


AGES: Final = (("minutes", 15 * 60), ("hour", HOUR_S), ("day", 86400), ("week", 7 * 86400))


def groups(connection: Connection, now_s: float) -> list[Group]:
    """All devices by labels, version and when they were last heard of."""
    found: list[Group] = []
    newest = int(now_s) + 10**9
    ranges = [("never", -1, 0)]
    for name, seconds in AGES:
        ranges.append((name, int(now_s) - seconds, newest))
        newest = int(now_s) - seconds
    ranges.append(("older", 0, newest))
    for name, low, high in ranges:
        query = select(devices.c.labels, devices.c.live, devices.c.revoked, func.count()).where(
            devices.c.seen_s > low, devices.c.seen_s <= high
        )
        rows = connection.execute(query.group_by(devices.c.labels, devices.c.live, devices.c.revoked))
        found += [Group(dict(row[0]), row[1], bool(row[2]), name, int(row[3])) for row in rows]
    return found


def running(connection: Connection) -> dict[str, int]:
    """Release to the devices on which it serves."""
    query = select(devices.c.live, func.count()).where(devices.c.revoked.is_(False)).group_by(devices.c.live)
    return {row[0]: int(row[1]) for row in connection.execute(query)}


def names(connection: Connection) -> dict[str, tuple[str, str]]:
    """Release to model and version."""
    rows = connection.execute(select(versions.c.id, versions.c.model, versions.c.version))
    return {row.id: (row.model, row.version) for row in rows}


def recent_decisions(connection: Connection, limit: int = 8) -> list[dict[str, Any]]:
    """Decisions of all rollouts, newest first, with model and version; growth within a stage is left out."""
    query = (
        select(decisions, rollouts.c.model, versions.c.version)
        .join(rollouts, rollouts.c.id == decisions.c.rollout)
        .join(versions, versions.c.id == rollouts.c.release)
        .where(decisions.c.kind != "grown")
        .order_by(decisions.c.id.desc())
        .limit(limit)
    )
    return [dict(row) for row in connection.execute(query).mappings()]


def open_rollouts(connection: Connection) -> list[dict[str, Any]]:
    """Rollouts that are not over, with their last look."""
    found = views.rollouts_listed(connection, states=OPEN)
    return [views.rollout(connection, each["id"]) for each in found]


@dataclass(frozen=True, slots=True)
class Operations:
    """What the server's own work leaves in the database.

    Attributes:
        holder: of the conductor's lease, "" for none.
        until_s: when it runs out.
        looked_s: the newest look at any gate, 0 for none.
        unmerged: windows that are still to be counted.
        oldest_s: when the first of them came, 0 for none.
        undelivered: messages to webhooks that failed so far.
        pending: versions that wait for signatures.
    """

    holder: str
    until_s: float
    looked_s: int
    unmerged: int
    oldest_s: int
    undelivered: int
    pending: int


def operations(connection: Connection) -> Operations:
    """How the server's own work stands."""
    lease: Any = connection.execute(select(leases).where(leases.c.name == LEASE)).one_or_none()
    waits: Any = connection.execute(
        select(func.count(), func.min(windows.c.received_s)).where(windows.c.merged.is_(False))
    ).one()
    failing = and_(deliveries.c.done_s == 0, deliveries.c.tries > 0)
    return Operations(
        holder=lease.holder if lease else "",
        until_s=lease.until_s if lease else 0.0,
        looked_s=connection.scalar(select(func.max(looks.c.at_s))) or 0,
        unmerged=int(waits[0]),
        oldest_s=int(waits[1] or 0),
        undelivered=connection.scalar(select(func.count()).select_from(deliveries).where(failing)) or 0,
        pending=connection.scalar(
            select(func.count()).select_from(versions).where(versions.c.state == "pending")
        )
        or 0,
    )


def history(connection: Connection, rollout: str) -> list[dict[str, Any]]:
    """Looks at the gates of the whole rollout, oldest first, thinned to `MOST_LOOKS`; the last one is among them."""
    total = connection.scalar(select(func.count()).select_from(looks).where(looks.c.rollout == rollout)) or 0
    every = max(1, -(-total // MOST_LOOKS))
    number = func.row_number().over(order_by=looks.c.id.desc()).label("number")
    picked = select(looks.c.id, number).where(looks.c.rollout == rollout).subquery()
    query = (
        select(looks)
        .join(picked, picked.c.id == looks.c.id)
        .where((picked.c.number - 1) % every == 0)
        .order_by(looks.c.id)
    )
    return [dict(row) for row in connection.execute(query).mappings()]


def reports_of(connection: Connection, device: str, limit: int = PAGE) -> list[dict[str, Any]]:
    """What a device reported, newest first."""
    query = select(reports).where(reports.c.device == device).order_by(reports.c.id.desc()).limit(limit)
    return [dict(row) for row in connection.execute(query).mappings()]


def hours_of(connection: Connection, device: str, since_s: int) -> dict[int, int]:
    """Hour since 1970 to the windows of a device that came in it."""
    hour = (windows.c.received_s // HOUR_S).label("hour")
    query = select(hour, func.count()).where(windows.c.device == device, windows.c.received_s >= since_s)
    return {int(row[0]): int(row[1]) for row in connection.execute(query.group_by(hour))}


def evidence_of(connection: Connection, device: str) -> list[dict[str, Any]]:
    """What a device showed of each rollout, newest first."""
    columns = [column for column in evidence.c if column.name not in {"figures", "first", "labels"}]
    query = (
        select(*columns, rollouts.c.model, rollouts.c.document, versions.c.version)
        .join(rollouts, rollouts.c.id == evidence.c.rollout)
        .join(versions, versions.c.id == rollouts.c.release)
        .where(evidence.c.device == device)
        .order_by(rollouts.c.created_s.desc())
        .limit(PAGE)
    )
    return [dict(row) for row in connection.execute(query).mappings()]


def failures_of(connection: Connection, rollout: str, limit: int = 20) -> list[dict[str, Any]]:
    """Devices on which a rollout's release failed, the newest first."""
    query = (
        select(evidence.c.device, evidence.c.failed, evidence.c.heard_s)
        .where(evidence.c.rollout == rollout, evidence.c.failed != "")
        .order_by(evidence.c.heard_s.desc(), evidence.c.device)
        .limit(limit)
    )
    return [dict(row) for row in connection.execute(query).mappings()]


def audit_rows(
    connection: Connection, *, search: str, action: str, before: int, limit: int = PAGE
) -> list[dict[str, Any]]:
    """Rows of the audit log, newest first.

    Args:
        connection: to read with.
        search: part of who or upon what.
        action: that it begins with, such as "rollout".
        before: sequence; rows from it on are left out. 0 for the newest.
        limit: of rows.
    """
    query = select(audit).order_by(audit.c.sequence.desc()).limit(limit)
    if before:
        query = query.where(audit.c.sequence < before)
    if search:
        found = (column.contains(search, autoescape=True) for column in (audit.c.actor, audit.c.subject))
        actor, subject = found
        query = query.where(actor | subject)
    if action:
        query = query.where(audit.c.action.startswith(action, autoescape=True))
    return [dict(row) for row in connection.execute(query).mappings()]


def audit_actions(connection: Connection) -> Sequence[str]:
    """First words of the actions that there are."""
    found = connection.scalars(select(audit.c.action).distinct())
    return sorted({each.partition(".")[0] for each in found})
