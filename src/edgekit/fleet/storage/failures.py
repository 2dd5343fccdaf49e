"""What an error of a database driver means: to wait, to make room, or to call somebody."""

from __future__ import annotations

from sqlalchemy import exc

from edgekit.fleet.errors import UnavailableError

# https://www.sqlite.org/rescode.html: the low byte is the primary code, the rest says more.
_SQLITE_BUSY = {5, 6}  # BUSY, LOCKED
_SQLITE_FULL = 13
# A write inside `reading` has no extended code, and is a mistake in the program.
_SQLITE_READONLY = 8
_SQLITE_SHM_SIZE = 4874  # IOERR_SHMSIZE: no room for the index of the write-ahead log
_SQLITE_AWAY = {3, 8, 10, 11, 14, 26}  # PERM, READONLY, IOERR, CORRUPT, CANTOPEN, NOTADB

# https://www.postgresql.org/docs/current/errcodes-appendix.html
_PG_BUSY = {
    "40001",
    "40P01",
    "55P03",
    "57014",
    "53300",
}  # serialization, deadlock, lock and query time-out, full
_PG_NO_ROOM = {"53100", "53200", "54000"}
_PG_AWAY_CLASSES = ("08", "28", "3D", "53", "57", "58", "XX")
_PG_READ_ONLY = "25006"


def failure_of(error: exc.SQLAlchemyError, place: str, *, writes: bool) -> UnavailableError | None:
    """Return what to raise instead of `error`.

    Args:
        error: as SQLAlchemy raised it.
        place: the URL of the database, without its password.
        writes: whether it happened while writing.

    Returns:
        An error with the code `database_busy` (nothing was written, and the same call may do in a moment), `no_room`
        or `database_away`; None where the statement itself is wrong, which is a mistake in the program.
    """
    if isinstance(error, exc.TimeoutError):
        return _busy(place, "no connection became free")
    if not isinstance(error, exc.DBAPIError) or isinstance(error, exc.IntegrityError):
        return None
    reason = str(error.orig).strip().split("\n", maxsplit=1)[0] or type(error.orig).__name__
    sqlite_code = getattr(error.orig, "sqlite_errorcode", None)
    if sqlite_code is not None:
        return _of_sqlite(sqlite_code, place, reason, writes=writes)
    return _of_postgresql(error, place, reason, writes=writes)


def _of_sqlite(code: int, place: str, reason: str, *, writes: bool) -> UnavailableError | None:
    if code & 0xFF in _SQLITE_BUSY:
        return _busy(place, reason)
    if code & 0xFF == _SQLITE_FULL or code == _SQLITE_SHM_SIZE:
        return _no_room(place, reason)
    if code == _SQLITE_READONLY and not writes:
        return None
    return _away(place, reason) if code & 0xFF in _SQLITE_AWAY else None


def _of_postgresql(
    error: exc.DBAPIError, place: str, reason: str, *, writes: bool
) -> UnavailableError | None:
    state = getattr(error.orig, "sqlstate", None)
    if state in _PG_BUSY:
        return _busy(place, reason)
    if state in _PG_NO_ROOM:
        return _no_room(place, reason)
    # A standby takes no writes.
    if state == _PG_READ_ONLY:
        return _away(place, reason) if writes else None
    # Without a state the driver itself speaks: not reached, or cut off.
    gone = state is None and isinstance(error, exc.OperationalError | exc.InterfaceError)
    if gone or error.connection_invalidated or (state or "").startswith(_PG_AWAY_CLASSES):
        return _away(place, reason)
    return None


def _busy(place: str, reason: str) -> UnavailableError:
    return UnavailableError(
        f"{place} is busy: {reason}",
        expected="its turn within a few seconds",
        way_out="try again; if it stays, look for a process that keeps a transaction open",
        code="database_busy",
    )


def _no_room(place: str, reason: str) -> UnavailableError:
    return UnavailableError(
        f"{place} has no room: {reason}",
        expected="free space where the database lies; nothing was written",
        way_out="free or add space, or shorten the retention, then try again",
        code="no_room",
    )


def _away(place: str, reason: str) -> UnavailableError:
    return UnavailableError(
        f"{place} does not answer: {reason}",
        expected="a database that can be read and written",
        way_out="see that the server runs and is reached, that the account may write, and that the disk is sound",
        code="database_away",
    )
