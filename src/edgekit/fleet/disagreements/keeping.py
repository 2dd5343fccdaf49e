"""Keeps what devices send: once, sealed, and no more than the operator let it be, all in one transaction.

What nobody asked for, or a device may not send any more, is answered as if it were kept, so that the device forgets it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, delete, func, insert, select

from edgekit.fleet.context import Fleet
from edgekit.fleet.disagreements import sealing
from edgekit.fleet.disagreements.samples import Sample, read_sample
from edgekit.fleet.disagreements.sealing import Seal
from edgekit.fleet.errors import DeniedError
from edgekit.fleet.identity.access import Device
from edgekit.fleet.rules.rollouts import Rollout
from edgekit.fleet.settings import Settings
from edgekit.fleet.storage.database import lock
from edgekit.fleet.storage.tables import devices, disagreements, rollouts
from edgekit.fleet.windows.belonging import rollouts_of
from edgekit_runtime.policies import bucket_of

LOCK: Final = "disagreements"
BATCH: Final = 500


@dataclass(frozen=True, slots=True)
class Taken:
    """What a device is answered.

    Attributes:
        have: keys that the device may forget.
        labels: of the device.
        kept: whether it is new here.
    """

    have: tuple[str, ...]
    labels: Mapping[str, str]
    kept: bool


def take(fleet: Fleet, sender: Device, body: bytes) -> Taken:
    """Read a post, and keep it where it was asked for.

    Args:
        fleet: of the server.
        sender: device that showed its token.
        body: JSON, not packed.

    Raises:
        InvalidError: it breaks the contract.
        TooMuchError: its payload is too large.
        DeniedError: it is another device's, or the device was revoked meanwhile.
        UnavailableError: the database does not answer, or the key is not the one that sealed what is there.
    """
    sample, now_s = read_sample(body, fleet.settings.disagreement_bytes), int(fleet.now())
    if sample.device != sender.id:
        raise DeniedError(
            f"an input of device {sample.device[:128]!r} with the token of {sender.id!r}",
            expected="the token of the device that saw it",
            way_out="Give each device the token that it enrolled with.",
            code="other_device",
        )

    def work(connection: Connection) -> Taken:
        row, kept = _device(connection, sender), False
        if fleet.settings.disagreements_per_device:
            # Before the rollout is read: whoever erases its inputs lets it ask for no more.
            lock(connection, LOCK)
            rollout = _asked_by(connection, sample, row)
            kept = rollout is not None and _keep(connection, sample, rollout, fleet.settings, now_s)
        return Taken((sample.key,), dict(row.labels), kept)

    return fleet.database.write(work)


def about(device: str, key: str, rollout: str) -> tuple[str, str, str]:
    """What is sealed with a payload."""
    return device, key, rollout


def _device(connection: Connection, sender: Device) -> Any:
    query = select(devices.c.id, devices.c.channel, devices.c.labels, devices.c.erased_s).where(
        devices.c.id == sender.id, devices.c.revoked.is_(False), devices.c.token_hash == sender.token_hash
    )
    # Held until the commit, so that what is erased or forgotten meanwhile stays so.
    row = connection.execute(query.with_for_update()).one_or_none()
    if row is None:
        raise DeniedError(
            f"device {sender.id} was revoked or forgotten, or has another token by now",
            expected="a device of this fleet", way_out="Ask an operator of this fleet.", code="unauthorized",
            status=401,
        )  # fmt: skip
    return row


def _asked_by(connection: Connection, sample: Sample, device: Any) -> Rollout | None:
    """The rollout that asks this device for such an input, None where none does."""
    found = rollouts_of(connection, {sample.candidate}).of_release(
        sample.candidate, device.channel, device.labels
    )
    if found is None or not found.plan.disagreements:
        return None
    if bucket_of(found.salt, device.id) >= max(found.shadow_bound, found.live_bound):
        return None
    began_s: int = connection.execute(
        select(rollouts.c.created_s).where(rollouts.c.id == found.id)
    ).scalar_one()
    return found if began_s > device.erased_s else None


def _keep(connection: Connection, sample: Sample, rollout: Rollout, settings: Settings, now_s: int) -> bool:
    table = disagreements
    known = select(table.c.id).where(table.c.device == sample.device, table.c.key == sample.key)
    if connection.execute(known).first() is not None:
        return False
    seal = _seal(connection, settings)
    sealed = seal.seal(sample.payload, about(sample.device, sample.key, rollout.id))
    row = {
        "device": sample.device, "key": sample.key, "rollout": rollout.id, "live": sample.live,
        "candidate": sample.candidate, "live_label": sample.labels[0], "candidate_label": sample.labels[1],
        "at_s": sample.at_s, "received_s": now_s, "size_bytes": len(sample.payload), "key_id": seal.id,
        "sealed": sealed,
    }  # fmt: skip
    connection.execute(insert(table).values(row))
    _bound(connection, sample.device, rollout.id, settings)
    return True


def _seal(connection: Connection, settings: Settings) -> Seal:
    """The key, which has to be the one that sealed all that is there; made where nothing is."""
    ids = select(func.min(disagreements.c.key_id), func.max(disagreements.c.key_id))
    first, last = connection.execute(ids).one()
    seal = sealing.load(settings.folder)
    if seal is None:
        if first is not None:
            raise sealing.no_key(settings.folder, first)
        return sealing.make(settings.folder)
    for each in (first, last):
        if each not in {None, seal.id}:
            raise sealing.other_key(seal, each)
    return seal


def _bound(connection: Connection, device: str, rollout: str, settings: Settings) -> None:
    """Let the oldest go, of this device and rollout and then of all, until the rest is as much as may be kept."""
    table = disagreements
    own = select(table.c.id).where(table.c.device == device, table.c.rollout == rollout)
    own = own.order_by(table.c.id.desc()).offset(settings.disagreements_per_device)
    beyond = connection.scalars(own).all()
    if beyond:
        connection.execute(delete(table).where(table.c.id.in_(beyond)))
    total: int = connection.scalar(select(func.sum(table.c.size_bytes))) or 0
    excess = total - settings.disagreements_mb * 10**6
    oldest = select(table.c.id, table.c.size_bytes).order_by(table.c.id).limit(BATCH)
    while excess > 0 and (rows := connection.execute(oldest).all()):
        last = 0
        for row in rows:
            if excess <= 0:
                break
            last, excess = row.id, excess - row.size_bytes
        connection.execute(delete(table).where(table.c.id <= last))
