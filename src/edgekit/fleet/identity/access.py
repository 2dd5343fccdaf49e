"""Who may do what: tokens of people and programs with a role each, tokens of devices, and what a role allows.

Of a token only the sha256 is kept. It has 256 random bits, so that nobody finds it by its hash, and a hash that needs
no salt can be looked up.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, func, insert, select, update

from edgekit.fleet.context import Fleet
from edgekit.fleet.errors import ConflictError, DeniedError, InvalidError, NotFoundError
from edgekit.fleet.storage import audit
from edgekit.fleet.storage.tables import devices, tokens

READ, PUBLISH, OPERATE, ADMINISTER = "read", "publish", "operate", "administer"
ROLES: Final[Mapping[str, frozenset[str]]] = {
    "viewer": frozenset({READ}),
    "publisher": frozenset({READ, PUBLISH}),
    "operator": frozenset({READ, OPERATE}),
    "admin": frozenset({READ, PUBLISH, OPERATE, ADMINISTER}),
}
API_PREFIX, DEVICE_PREFIX = "edgk_", "edgd_"
MAX_TOKEN: Final = 256
MAX_DAYS: Final = 3650
NAME: Final = re.compile(r"[0-9A-Za-z][0-9A-Za-z._@ -]{0,99}")
DAY_S: Final = 86400


@dataclass(frozen=True, slots=True)
class Actor:
    """Who does something.

    Attributes:
        name: for the audit log.
        role: one of `ROLES`.
    """

    name: str
    role: str

    def may(self, permission: str) -> bool:
        """Whether the role allows it."""
        return permission in ROLES.get(self.role, frozenset())

    def check(self, permission: str) -> None:
        """Raise unless the role allows it.

        Raises:
            DeniedError: it does not (`role`).
        """
        if self.may(permission):
            return
        allowed = ", ".join(role for role, all_of in ROLES.items() if permission in all_of)
        raise DeniedError(
            f"{self.name} is {self.role}",
            expected=f"a token of one of the roles {allowed}",
            way_out="Ask an admin of this fleet for such a token.",
            code="role",
        )


# Before there is any token: whoever holds the folder of the fleet may do everything.
OWNER: Final = Actor("owner", "admin")


@dataclass(frozen=True, slots=True)
class Device:
    """A device that showed its token.

    Attributes:
        id: of it.
        channel: whose policy it follows.
        labels: name to value.
        token_hash: of the token that it showed, "" where none was shown.
    """

    id: str
    channel: str
    labels: Mapping[str, str]
    token_hash: str = ""


@dataclass(frozen=True, slots=True)
class Token:
    """What is known of a token.

    Attributes:
        id: public part of it.
        name: who has it.
        role: one of `ROLES`.
        created_s: seconds since 1970.
        created_by: name.
        expires_s: seconds since 1970.
        revoked: whether it was taken back.
    """

    id: str
    name: str
    role: str
    created_s: int
    created_by: str
    expires_s: int
    revoked: bool


def make_token(fleet: Fleet, actor: Actor, *, name: str, role: str, days: int = 365) -> str:
    """Make a token; this is the only time that it is seen.

    Args:
        fleet: of the server.
        actor: an admin.
        name: who gets it, for the audit log.
        role: one of `ROLES`.
        days: until it expires.

    Raises:
        DeniedError: the actor is no admin.
        InvalidError: no such name, role or time.
    """
    actor.check(ADMINISTER)
    _check_token(name, role, days)
    made, secret, now_s = secrets.token_hex(8), secrets.token_urlsafe(32), int(fleet.now())
    token = f"{API_PREFIX}{made}_{secret}"
    row = {
        "id": made, "name": name, "token_hash": hashed(token), "role": role, "created_s": now_s,
        "created_by": actor.name, "expires_s": now_s + days * DAY_S, "revoked": False,
    }  # fmt: skip

    def work(connection: Connection) -> None:
        connection.execute(insert(tokens).values(row))
        detail = {"name": name, "role": role, "expires_s": row["expires_s"]}
        audit.append(connection, actor.name, "token.made", made, detail, now_s)

    fleet.database.write(work)
    return token


def first_token(fleet: Fleet) -> str:
    """Make the token of the first admin.

    Raises:
        ConflictError: there is one already.
    """
    with fleet.database.reading() as connection:
        if connection.scalar(select(func.count()).select_from(tokens)):
            raise ConflictError(
                "this fleet has tokens already",
                expected="none, before the first",
                way_out="Make another with `edgekit fleet token --role admin`.",
                code="first_token",
            )
    return make_token(fleet, OWNER, name="admin", role="admin")


def revoke_token(fleet: Fleet, actor: Actor, token_id: str) -> None:
    """Take a token back, for good.

    Raises:
        DeniedError: the actor is no admin.
        NotFoundError: there is no such token.
    """
    actor.check(ADMINISTER)
    now_s = int(fleet.now())

    def work(connection: Connection) -> None:
        # Whatever else it is, PostgreSQL cannot even be asked for NUL.
        wanted = token_id if token_id.isalnum() else ""
        found = connection.execute(update(tokens).where(tokens.c.id == wanted).values(revoked=True))
        if found.rowcount != 1:
            raise NotFoundError(
                f"token {token_id[:40]!r}",
                expected="the id of a token, the part between the first two `_`",
                way_out="Look at `edgekit fleet tokens`.",
                code="no_token_id",
            )
        audit.append(connection, actor.name, "token.revoked", token_id, {}, now_s)

    fleet.database.write(work)


def listed_tokens(connection: Connection) -> Sequence[Token]:
    """All tokens, the newest first; none of their secrets."""
    names = [tokens.c[name] for name in Token.__slots__]
    rows = connection.execute(select(*names).order_by(tokens.c.created_s.desc(), tokens.c.id))
    return [Token(*row) for row in rows]


def authenticated(connection: Connection, token: str, now_s: float) -> Actor:
    """Who shows this token.

    Raises:
        DeniedError: nobody who may (401).
    """
    if not token.startswith(API_PREFIX) or len(token) > MAX_TOKEN:
        raise _unknown()
    made, _, _ = token.removeprefix(API_PREFIX).partition("_")
    if not made.isalnum():
        raise _unknown()
    row: Any = connection.execute(select(tokens).where(tokens.c.id == made)).one_or_none()
    # Without a row the comparison takes the same time.
    right = hmac.compare_digest(hashed(token), row.token_hash if row else hashed(""))
    if row is None or not right:
        raise _unknown()
    if row.revoked or now_s >= row.expires_s:
        raise _unknown("was taken back" if row.revoked else "has expired")
    return Actor(row.name, row.role)


def device_of(connection: Connection, token: str) -> Device:
    """Which device shows this token.

    Raises:
        DeniedError: none that may (401).
    """
    if not token.startswith(DEVICE_PREFIX) or len(token) > MAX_TOKEN:
        raise _unknown()
    names = (devices.c.id, devices.c.channel, devices.c.labels, devices.c.token_hash, devices.c.revoked)
    row: Any = connection.execute(select(*names).where(devices.c.token_hash == hashed(token))).one_or_none()
    if row is None or not hmac.compare_digest(hashed(token), row.token_hash):
        raise _unknown()
    if row.revoked:
        raise _unknown("was taken back")
    return Device(row.id, row.channel, dict(row.labels), row.token_hash)


def device_token() -> str:
    """A new token for a device."""
    return DEVICE_PREFIX + secrets.token_urlsafe(32)


def hashed(secret: str) -> str:
    """What is kept of a secret."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def _check_token(name: str, role: str, days: int) -> None:
    if not NAME.fullmatch(name):
        raise _invalid(f"name {name[:80]!r}", "letters, digits and . _ @ - or a space, at most 100")
    if role not in ROLES:
        raise _invalid(f"role {role[:80]!r}", f"one of {', '.join(ROLES)}")
    if not 1 <= days <= MAX_DAYS:
        raise _invalid(f"{days} days", f"from 1 to {MAX_DAYS}")


def _invalid(found: str, expected: str) -> InvalidError:
    return InvalidError(found, expected=expected, way_out="See `edgekit fleet token --help`.", code="token")


def _unknown(why: str = "is none that this fleet knows") -> DeniedError:
    return DeniedError(
        f"the token {why}",
        expected="Authorization: Bearer, and a token that is valid",
        way_out="Ask an admin of this fleet for a new one; a device is enrolled again with a code.",
        code="unauthorized",
        status=401,
    )
