"""What people look at: rollouts, their looks and decisions, channels, the comparison's minutes, the audit log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from sqlalchemy import Connection, Row, and_, select

from edgekit.fleet.errors import NotFoundError
from edgekit.fleet.storage.tables import audit, channels, decisions, looks, minutes, rollouts, versions
from edgekit.fleet.windows.comparison import Minute
from edgekit.fleet.windows.figures import unpacked

MAX_PAGE: Final = 500
# Of the minutes that a comparison reads at most: two weeks of one pair.
MAX_MINUTES: Final = 14 * 24 * 60


def rollouts_listed(
    connection: Connection, *, model: str = "", states: Sequence[str] = (), limit: int = 50
) -> list[dict[str, Any]]:
    """Rollouts with the names of their versions, newest first."""
    query = _rollouts().order_by(rollouts.c.created_s.desc(), rollouts.c.id).limit(_page(limit))
    if model:
        query = query.where(rollouts.c.model == model)
    if states:
        query = query.where(rollouts.c.state.in_(states))
    return [_rollout(row) for row in connection.execute(query)]


def rollout(connection: Connection, rollout_id: str) -> dict[str, Any]:
    """A rollout with its last look at the gates, None where there was none yet.

    Raises:
        NotFoundError: there is no such rollout.
    """
    row = connection.execute(_rollouts().where(rollouts.c.id == rollout_id)).one_or_none()
    if row is None:
        raise NotFoundError(
            f"no rollout {rollout_id[:64]!r}", expected="the id of a rollout",
            way_out="`edgekit rollout list` shows them.", code="unknown",
        )  # fmt: skip
    last = looks_of(connection, rollout_id, limit=1)
    return {**_rollout(row), "look": last[0] if last else None}


def looks_of(connection: Connection, rollout_id: str, *, limit: int = 100) -> list[dict[str, Any]]:
    """Looks at the gates, newest first."""
    query = select(looks).where(looks.c.rollout == rollout_id).order_by(looks.c.id.desc()).limit(_page(limit))
    return [dict(row) for row in connection.execute(query).mappings()]


def arms(connection: Connection, rollout_id: str) -> dict[str, Any]:
    """The A/B comparison of a rollout at its last look.

    Raises:
        NotFoundError: there is no such rollout, it compares no arms, or nobody looked at them yet.
    """
    look = rollout(connection, rollout_id)["look"]
    if look is None or "arms" not in look["counts"]:
        raise NotFoundError(
            f"no arms of the rollout {rollout_id}", expected="a rollout with --mode ab over a version before",
            way_out="Its arms are seen from the first look at its gates on.", code="no_arms",
        )  # fmt: skip
    return {"at_s": look["at_s"], **look["counts"]["arms"]}


def decisions_of(connection: Connection, rollout_id: str, *, limit: int = 100) -> list[dict[str, Any]]:
    """Decisions, newest first."""
    query = select(decisions).where(decisions.c.rollout == rollout_id)
    query = query.order_by(decisions.c.id.desc()).limit(_page(limit))
    return [dict(row) for row in connection.execute(query).mappings()]


def channels_listed(connection: Connection) -> list[dict[str, Any]]:
    """Channels, and what they are settled on."""
    names = {row.id: row.version for row in connection.execute(select(versions.c.id, versions.c.version))}
    return [
        {
            "name": row.name,
            "model": row.model,
            "settled": [{**each, "version": names.get(each["release"], "")} for each in row.settled],
        }
        for row in connection.execute(select(channels).order_by(channels.c.name))
    ]


def audit_page(connection: Connection, *, before: int = 0, limit: int = 100) -> list[dict[str, Any]]:
    """Rows of the audit log, newest first.

    Args:
        connection: to read with.
        before: sequence; rows from it on are left out. 0 for the newest.
        limit: of rows.
    """
    query = select(audit).order_by(audit.c.sequence.desc()).limit(_page(limit))
    if before:
        query = query.where(audit.c.sequence < before)
    return [dict(row) for row in connection.execute(query).mappings()]


def minutes_of(
    connection: Connection, rollout_id: str, *, part: str = "", stage: int | None = None, since_s: int = 0
) -> list[Minute]:
    """Minutes of a rollout's release beside the version before, newest first.

    Args:
        connection: to read with.
        rollout_id: of the rollout.
        part: "label=value", or "" for all devices.
        stage: None for all of them.
        since_s: seconds since 1970.
    """
    wanted = [
        minutes.c.rollout == rollout_id, minutes.c.slice == part, minutes.c.live != minutes.c.candidate,
        minutes.c.minute >= max(1, since_s // 60),
    ]  # fmt: skip
    if stage is not None:
        wanted.append(minutes.c.stage == stage)
    query = select(minutes.c.minute, minutes.c.windows, minutes.c.figures).where(and_(*wanted))
    rows = connection.execute(query.order_by(minutes.c.minute.desc()).limit(MAX_MINUTES))
    return [Minute(row.minute, row.windows, unpacked(row.figures).figures) for row in rows]


def parts_of(connection: Connection, rollout_id: str) -> list[str]:
    """Parts of the fleet that a rollout has minutes of, "label=value"."""
    query = select(minutes.c.slice).where(minutes.c.rollout == rollout_id).distinct()
    return sorted(each for each in connection.scalars(query) if "=" in each)


def news(connection: Connection, decision: int, look: int, limit: int = 100) -> list[dict[str, Any]]:
    """Decisions and looks after these, oldest first, each with its kind."""
    found: list[dict[str, Any]] = []
    for kind, table, after in (("decision", decisions, decision), ("look", looks, look)):
        query = select(table).where(table.c.id > after).order_by(table.c.id).limit(limit)
        found += [{"kind_of": kind, **row} for row in connection.execute(query).mappings()]
    return sorted(found, key=lambda each: (each["at_s"], each["id"]))


def newest(connection: Connection) -> tuple[int, int]:
    """Ids of the last decision and the last look."""
    ids = (
        connection.scalars(select(table.c.id).order_by(table.c.id.desc()).limit(1)).first()
        for table in (decisions, looks)
    )
    decision, look = (each or 0 for each in ids)
    return decision, look


def _rollouts() -> Any:
    return select(rollouts, versions.c.version).join(versions, versions.c.id == rollouts.c.release)


def _rollout(row: Row[Any]) -> dict[str, Any]:
    document: Mapping[str, Any] = row.document
    return {
        **document, "version": row.version, "revision": row.revision, "created_s": row.created_s,
        "created_by": row.created_by,
    }  # fmt: skip


def _page(limit: int) -> int:
    return min(max(limit, 1), MAX_PAGE)
