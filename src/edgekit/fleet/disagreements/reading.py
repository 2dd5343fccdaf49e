"""What people see of the inputs that are kept, and how these are deleted; each is a row in the audit log."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, delete, select, update

from edgekit.fleet.context import Fleet
from edgekit.fleet.disagreements import sealing
from edgekit.fleet.disagreements.keeping import about
from edgekit.fleet.errors import NotFoundError
from edgekit.fleet.identity.access import OPERATE, Actor
from edgekit.fleet.identity.enrolment import read_device
from edgekit.fleet.storage import audit
from edgekit.fleet.storage.tables import devices, disagreements

MAX_PAGE: Final = 500
_SHOWN: Final = tuple(each for each in disagreements.c if each.name not in {"sealed", "key_id"})


@dataclass(frozen=True, slots=True)
class Payload:
    """What is sealed in a row.

    Attributes:
        name: for a file.
        content: `.npz`.
    """

    name: str
    content: bytes


def listed(
    connection: Connection, rollout: str, *, before: int = 0, limit: int = 100
) -> list[dict[str, Any]]:
    """Rows of a rollout without what is sealed in them, newest first.

    Args:
        connection: to read with.
        rollout: id.
        before: id of a row; those from it on are left out. 0 for the newest.
        limit: of rows.
    """
    query = select(*_SHOWN).where(disagreements.c.rollout == rollout).order_by(disagreements.c.id.desc())
    if before:
        query = query.where(disagreements.c.id < before)
    rows = connection.execute(query.limit(min(max(limit, 1), MAX_PAGE))).mappings()
    return [dict(row) for row in rows]


def payload(fleet: Fleet, actor: Actor, number: int) -> Payload:
    """Open what is sealed in a row; who did so is in the audit log before anybody sees it.

    Raises:
        DeniedError: the actor is no operator.
        NotFoundError: there is no such row.
        UnavailableError: the key is not the one that sealed it, or the row is damaged.
    """
    actor.check(OPERATE)
    now_s = int(fleet.now())

    def work(connection: Connection) -> Payload:
        row: Any = connection.execute(select(disagreements).where(disagreements.c.id == number)).one_or_none()
        if row is None:
            raise NotFoundError(
                f"no disagreement {number}", expected="one that is kept",
                way_out="`edgekit rollout disagreements` lists them; the oldest give way.", code="unknown",
            )  # fmt: skip
        seal = sealing.load(fleet.settings.folder)
        if seal is None:
            raise sealing.no_key(fleet.settings.folder, row.key_id)
        content = seal.open(bytes(row.sealed), about(row.device, row.key, row.rollout), row.key_id)
        detail = {"device": row.device, "rollout": row.rollout, "key": row.key}
        audit.append(connection, actor.name, "disagreement.read", str(number), detail, now_s)
        return Payload(f"disagreement-{number}.npz", content)

    return fleet.database.write(work)


def erase_device(fleet: Fleet, actor: Actor, device: str) -> int:
    """Delete all inputs of a device, and take none of rollouts that began until now, whatever is still on its way.

    Returns:
        How many were deleted.

    Raises:
        DeniedError: the actor is no operator.
        NotFoundError: there is no such device.
    """
    actor.check(OPERATE)
    now_s = int(fleet.now())

    def work(connection: Connection) -> int:
        read_device(connection, device)
        # The device first: whoever keeps something of it waits for this row.
        connection.execute(update(devices).where(devices.c.id == device).values(erased_s=now_s))
        count: int = connection.execute(
            delete(disagreements).where(disagreements.c.device == device)
        ).rowcount
        audit.append(connection, actor.name, "disagreements.erased", device, {"count": count}, now_s)
        return count

    return fleet.database.write(work)


def erase_rollout(connection: Connection, actor: Actor, rollout: str, now_s: int) -> int:
    """Delete all inputs of a rollout, within the transaction in which it stops to ask for any.

    Returns:
        How many were deleted.
    """
    count: int = connection.execute(delete(disagreements).where(disagreements.c.rollout == rollout)).rowcount
    audit.append(connection, actor.name, "disagreements.erased", rollout, {"count": count}, now_s)
    return count
