"""The audit log: who did what, when; each row carries the hash of the one before.

What the chain shows: a row that was changed, removed or put in between, wherever others follow it. What it cannot show
by itself: that rows at its end were removed, and that somebody with the database wrote the whole chain anew. Both show
when a `Head` that was noted elsewhere (an export, a ticket, another server) is given to `verify`.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, CursorResult, insert, select

from edgekit.fleet.errors import InvalidError
from edgekit.fleet.storage.database import lock
from edgekit.fleet.storage.tables import audit

FIRST: Final = "0" * 64  # what comes before the first row
_EXACT: Final = 2**53  # whole numbers up to it are the same in every reader of JSON
_LIMITS: Final = {"actor": 128, "action": 64, "subject": 256}
_DETAIL_BYTES: Final = 64 * 1024
_BATCH: Final = 500


@dataclass(frozen=True, slots=True)
class Head:
    """The end of the log at some moment.

    Attributes:
        sequence: of its last row, 0 where there is none.
        hash: of its last row.
    """

    sequence: int
    hash: str


@dataclass(frozen=True, slots=True)
class Break:
    """The first place at which the log is not what was written.

    Attributes:
        sequence: the number that a row there should have.
        why: in words.
    """

    sequence: int
    why: str


def append(
    connection: Connection, actor: str, action: str, subject: str, detail: Mapping[str, Any], now_s: int
) -> Head:
    """Write one row within the caller's transaction, under the next number.

    Writers wait here for one another until they commit, so it is best the last statement of a transaction.

    Args:
        connection: of `Database.writing`.
        actor: who, such as the name of a token; at most 128 characters.
        action: what, such as "rollout.pause"; at most 64 characters.
        subject: upon what; at most 256 characters.
        detail: more, as JSON.
        now_s: seconds since 1970, UTC.

    Raises:
        InvalidError: something that the log cannot hold (`bad_audit`).
    """
    texts = {"actor": actor, "action": action, "subject": subject}
    for name, value in texts.items():
        if len(value) > _LIMITS[name]:
            raise _unfit(f"{name} of {len(value)} characters", f"at most {_LIMITS[name]}")
        _check(value)
    _check(detail)
    if len(_canonical(detail).encode()) > _DETAIL_BYTES:
        raise _unfit("a detail that is too long", f"at most {_DETAIL_BYTES} bytes as JSON")
    lock(connection, "audit")
    last = head(connection)
    row = {
        "sequence": last.sequence + 1,
        "at_s": now_s,
        **texts,
        "detail": _plain(detail),
        "previous": last.hash,
    }
    digest = _hash(row)
    connection.execute(insert(audit).values(**row, hash=digest))
    return Head(last.sequence + 1, digest)


def head(connection: Connection) -> Head:
    """Return the end of the log, to be noted elsewhere and given to `verify` later."""
    statement = select(audit.c.sequence, audit.c.hash).order_by(audit.c.sequence.desc()).limit(1)
    row = connection.execute(statement).first()
    return Head(0, FIRST) if row is None else Head(row.sequence, row.hash)


def verify(connection: Connection, known: Head | None = None) -> Break | None:
    """Return the first place at which the log is broken, None where it is whole.

    Args:
        connection: to read with.
        known: an end of the log that was noted before, which it must still contain.
    """
    expected, previous = 1, FIRST
    with _rows(connection) as rows:
        for row in rows:
            if row.sequence != expected:
                return Break(expected, f"the row is missing; the next one is {row.sequence}")
            if row.previous != previous:
                return Break(expected, "it does not follow the row before: that one, or this, was changed")
            if row.hash != _hash(row._asdict()):
                return Break(expected, "its content has another hash: it was changed")
            if known is not None and known.sequence == expected and known.hash != row.hash:
                return Break(expected, "it is not the row that was noted: the log was written anew")
            expected, previous = expected + 1, row.hash
    if known is not None and known.sequence >= expected:
        return Break(
            expected, f"the log ends before row {known.sequence} that was noted: its end was removed"
        )
    return None


def export(connection: Connection) -> Iterator[str]:
    """Return the log as JSON lines, each with its line end, in the form that is hashed and with the hash."""
    with _rows(connection) as rows:
        for row in rows:
            yield _canonical(row._asdict()) + "\n"


def _rows(connection: Connection) -> CursorResult[Any]:
    statement = select(audit).order_by(audit.c.sequence)
    return connection.execute(statement, execution_options={"yield_per": _BATCH})


def _hash(row: Mapping[str, Any]) -> str:
    hashed = {key: value for key, value in row.items() if key != "hash"}
    return hashlib.sha256(_canonical(hashed).encode()).hexdigest()


def _canonical(value: object) -> str:
    """Return JSON that is the same before and after the database."""
    return json.dumps(
        _plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def _plain(value: object) -> object:
    """Bring numbers into one spelling: PostgreSQL gives 1e22 back as a whole number."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    if abs(value) >= _EXACT:
        return float(value)
    return int(value) if value == int(value) else value


def _check(value: object) -> None:
    """Refuse what one of the databases would refuse or change."""
    if isinstance(value, str):
        if "\x00" in value or any("\ud800" <= letter <= "\udfff" for letter in value):
            raise _unfit("text with a zero byte or half a character", "text that UTF-8 can hold")
    elif isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                raise _unfit(f"the key {key!r}", "keys that are text")
            _check(key)
            _check(item)
    elif isinstance(value, list | tuple):
        for item in value:
            _check(item)
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise _unfit(f"the number {value}", "finite numbers")
    elif isinstance(value, int):
        if abs(value) >= _EXACT and not isinstance(value, bool):
            raise _unfit("a very large whole number", f"numbers below {_EXACT}, or text")
    elif value is not None:
        raise _unfit(f"a value of type {type(value).__name__}", "values of JSON")


def _unfit(what: str, expected: str) -> InvalidError:
    return InvalidError(
        f"{what} for the audit log", expected=expected, way_out="shorten or leave it out", code="bad_audit"
    )
