"""How a device comes into the fleet, is changed in it, and leaves it."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, and_, delete, insert, select, update

from edgekit.fleet.context import Fleet
from edgekit.fleet.errors import ConflictError, DeniedError, InvalidError, NotFoundError
from edgekit.fleet.identity.access import OPERATE, Actor, device_token, hashed
from edgekit.fleet.storage import audit
from edgekit.fleet.storage.database import insert_new
from edgekit.fleet.storage.tables import (
    devices,
    disagreements,
    enrolment_codes,
    evidence,
    reports,
    windows,
)
from edgekit_runtime.cohorts import Cohort
from edgekit_runtime.labels import read_labels
from edgekit_runtime.strict_json import ContractError

CODE_S: Final = 86400
LONGEST_CODE_S: Final = 90 * 86400
MAX_PAGE: Final = 500
# Of devices and channels, the same as the agent's; both stand in addresses.
NAME: Final = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,127}")


@dataclass(frozen=True, slots=True)
class Code:
    """One device may enrol with it.

    Attributes:
        code: as it is given to the device; it is not kept.
        expires_s: seconds since 1970.
    """

    code: str
    expires_s: int


@dataclass(frozen=True, slots=True)
class Enrolled:
    """What a device gets.

    Attributes:
        token: by which the server knows it from now on.
        device: id.
        channel: whose policy it follows.
        labels: name to value.
    """

    token: str
    device: str
    channel: str
    labels: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Page:
    """Some devices.

    Attributes:
        devices: rows of the table without the hash of the token, by id.
        after: to be given for the next page; "" where this is the last.
    """

    devices: Sequence[Mapping[str, Any]]
    after: str


def make_code(
    fleet: Fleet, actor: Actor, *, labels: Mapping[str, str], channel: str = "stable", seconds: int = CODE_S
) -> Code:
    """Make a code with which one device may enrol, once.

    Args:
        fleet: of the server.
        actor: an operator.
        labels: that the device gets.
        channel: that it gets.
        seconds: until the code expires.

    Raises:
        DeniedError: the actor is no operator.
        InvalidError: labels, channel or time are none.
    """
    actor.check(OPERATE)
    labels, now_s = _labels(labels), int(fleet.now())
    _check_name("channel", channel)
    if not 1 <= seconds <= LONGEST_CODE_S:
        raise _invalid(f"{seconds} seconds", f"from 1 to {LONGEST_CODE_S}")
    made = Code(secrets.token_urlsafe(24), now_s + seconds)
    row = {
        "code_hash": hashed(made.code), "labels": labels, "channel": channel, "created_s": now_s,
        "created_by": actor.name, "expires_s": made.expires_s, "used_by": "",
    }  # fmt: skip

    def work(connection: Connection) -> None:
        connection.execute(insert(enrolment_codes).values(row))
        detail = {"labels": labels, "channel": channel, "expires_s": made.expires_s}
        audit.append(connection, actor.name, "code.made", hashed(made.code)[:12], detail, now_s)

    fleet.database.write(work)
    return made


def enrol(fleet: Fleet, code: str, device: str) -> Enrolled:
    """Take a device into the fleet.

    Args:
        fleet: of the server.
        code: of an operator; of two uses at once one comes through.
        device: id that the device chose.

    Raises:
        InvalidError: the id is none.
        DeniedError: the code is none, expired or used.
        ConflictError: the id is taken; an operator may let it enrol again. The code stays good.
    """
    _check_name("device", device)
    now_s, token = int(fleet.now()), device_token()

    def work(connection: Connection) -> Enrolled:
        found: Any = connection.execute(
            update(enrolment_codes)
            .where(
                enrolment_codes.c.code_hash == hashed(code),
                enrolment_codes.c.used_by == "",
                enrolment_codes.c.expires_s > now_s,
            )
            .values(used_by=device)
            .returning(enrolment_codes.c.labels, enrolment_codes.c.channel)
        ).one_or_none()
        if found is None:
            raise DeniedError(
                "the code is not known, has expired or was used",
                expected="a code that an operator has just made",
                way_out="Ask for another; each is good for one device.",
                code="code",
            )
        labels, channel = dict(found.labels), str(found.channel)
        _enter(connection, device, token, labels, channel, now_s)
        audit.append(
            connection, f"device {device}"[:128], "device.enrolled", device, {"channel": channel}, now_s
        )
        return Enrolled(token, device, channel, labels)

    return fleet.database.write(work)


def allow_again(fleet: Fleet, actor: Actor, device: str) -> None:
    """Let a device that is known enrol again; its token is over at once.

    Raises:
        DeniedError: the actor is no operator.
        NotFoundError: there is no such device.
    """
    _change(fleet, actor, device, "device.allowed_again", {"token_hash": _open(device)}, {})


def revoke(fleet: Fleet, actor: Actor, device: str) -> None:
    """Refuse a device from now on.

    Raises:
        DeniedError: the actor is no operator.
        NotFoundError: there is no such device.
    """
    _change(fleet, actor, device, "device.revoked", {"revoked": True}, {})


def set_labels(fleet: Fleet, actor: Actor, device: str, labels: Mapping[str, str]) -> None:
    """Give a device other labels; it hears of them with its next post.

    Raises:
        DeniedError: the actor is no operator.
        InvalidError: they are none.
        NotFoundError: there is no such device.
    """
    checked = _labels(labels)
    _change(fleet, actor, device, "device.labels", {"labels": checked}, {"labels": checked})


def set_channel(fleet: Fleet, actor: Actor, device: str, channel: str) -> None:
    """Count a device to another channel; the device itself has to be told to follow it.

    Raises:
        DeniedError: the actor is no operator.
        InvalidError: there can be no such channel.
        NotFoundError: there is no such device.
    """
    _check_name("channel", channel)
    _change(fleet, actor, device, "device.channel", {"channel": channel}, {"channel": channel})


def forget(fleet: Fleet, actor: Actor, device: str) -> None:
    """Delete a device and all that it told, as its owner may ask for.

    What stays are sums over many devices, and its id in the audit log.

    Raises:
        DeniedError: the actor is no operator.
        NotFoundError: there is no such device.
    """
    actor.check(OPERATE)
    _check_known(device)
    now_s = int(fleet.now())

    def work(connection: Connection) -> None:
        # The device first: whoever stores something of it waits for this row, and then finds none.
        if connection.execute(delete(devices).where(devices.c.id == device)).rowcount != 1:
            raise _unknown(device)
        for table in (windows, reports, evidence, disagreements):
            connection.execute(delete(table).where(table.c.device == device))
        forgotten = (
            update(enrolment_codes).where(enrolment_codes.c.used_by == device).values(used_by="forgotten")
        )
        connection.execute(forgotten)
        audit.append(connection, actor.name, "device.forgotten", device, {}, now_s)

    fleet.database.write(work)


def read_device(connection: Connection, device: str) -> dict[str, Any]:
    """A row of the table, without the hash of the token.

    Raises:
        NotFoundError: there is no such device.
    """
    _check_known(device)
    row = connection.execute(select(*_SHOWN).where(devices.c.id == device)).mappings().one_or_none()
    if row is None:
        raise _unknown(device)
    return dict(row)


def find(
    connection: Connection,
    *,
    search: str = "",
    cohort: str = "",
    channel: str = "",
    after: str = "",
    limit: int = 50,
) -> Page:
    """Devices by id, a page at a time.

    Args:
        connection: to read with.
        search: part of the id.
        cohort: expression over labels.
        channel: "" for all.
        after: of the page before.
        limit: devices on the page, at most `MAX_PAGE`.

    Raises:
        InvalidError: the expression is none.
    """
    limit, wanted = min(max(limit, 1), MAX_PAGE), _cohort(cohort)
    if "\0" in search + channel + after:
        return Page([], "")
    found: list[dict[str, Any]] = []
    while True:
        query = select(*_SHOWN).where(devices.c.id > after).order_by(devices.c.id).limit(MAX_PAGE)
        if search:
            query = query.where(devices.c.id.contains(search, autoescape=True))
        if channel:
            query = query.where(devices.c.channel == channel)
        rows = connection.execute(query).mappings().all()
        found += [dict(row) for row in rows if wanted.includes(row["labels"])]
        if len(found) > limit:
            return Page(found[:limit], str(found[limit - 1]["id"]))
        if len(rows) < MAX_PAGE:
            return Page(found, "")
        after = rows[-1]["id"]


_SHOWN: Final = tuple(column for column in devices.c if column.name != "token_hash")


def _enter(
    connection: Connection, device: str, token: str, labels: dict[str, str], channel: str, now_s: int
) -> None:
    new = {
        "token_hash": hashed(token), "revoked": False, "labels": labels, "channel": channel, "enrolled_s": now_s,
    }  # fmt: skip
    again = update(devices).where(and_(devices.c.id == device, devices.c.token_hash == _open(device)))
    if connection.execute(again.values(new)).rowcount == 1:
        return
    if not insert_new(connection, devices, [{"id": device, "status": {}, **new}], ["id"]):
        raise ConflictError(
            f"device {device} is enrolled",
            expected="a device that is not yet known",
            way_out="Where it lost its token, an operator lets it enrol again; or give it another id.",
            code="enrolled",
        )


def _change(
    fleet: Fleet, actor: Actor, device: str, action: str, values: Mapping[str, Any], detail: Mapping[str, Any]
) -> None:
    actor.check(OPERATE)
    _check_known(device)
    now_s = int(fleet.now())

    def work(connection: Connection) -> None:
        found = connection.execute(update(devices).where(devices.c.id == device).values(**values))
        if found.rowcount != 1:
            raise _unknown(device)
        audit.append(connection, actor.name, action, device, detail, now_s)

    fleet.database.write(work)


def _open(device: str) -> str:
    """In place of a token's hash, which has no such letters: the id may be enrolled again."""
    return "open:" + hashed(device)[:59]


def _labels(labels: Mapping[str, str]) -> dict[str, str]:
    try:
        return read_labels(dict(labels), "labels")
    except ContractError as error:
        raise _invalid(f"{error.key}: {error.found}", error.expected) from error


def _cohort(text: str) -> Cohort:
    try:
        return Cohort.parse(text)
    except ContractError as error:
        raise _invalid(f"cohort {text[:200]!r}: {error.found}", error.expected) from error


def _check_name(what: str, name: str) -> None:
    if not NAME.fullmatch(name):
        raise _invalid(
            f"{what} {name[:80]!r}", "letters, digits and ._-, at most 128, a letter or digit first"
        )


def _check_known(device: str) -> None:
    """What can be no id is no device; PostgreSQL would not even take a question with NUL in it."""
    if not NAME.fullmatch(device):
        raise _unknown(device)


def _invalid(found: str, expected: str) -> InvalidError:
    return InvalidError(found, expected=expected, way_out="Correct it, and ask again.", code="device")


def _unknown(device: str) -> NotFoundError:
    return NotFoundError(
        f"device {device[:128]!r}",
        expected="a device of this fleet",
        way_out="Look at `edgekit fleet devices`.",
        code="no_device",
    )
