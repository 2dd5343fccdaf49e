"""The database of the fleet: SQLite by default, PostgreSQL by URL, the same statements on both.

Writers of SQLite take their turn by `BEGIN IMMEDIATE`; several processes may hold the same file, on one machine and not
over a network file system. Writers of PostgreSQL run at READ COMMITTED and take a `lock` where they have to be alone.
Whoever reads sees one moment, and cannot write.
"""

from __future__ import annotations

import hashlib
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import quote

from sqlalchemy import (
    JSON,
    Connection,
    Engine,
    Table,
    bindparam,
    column,
    create_engine,
    delete,
    event,
    func,
    literal,
    or_,
    select,
    text,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.pool import QueuePool
from tenacity import (
    Retrying,
    retry_if_exception,
    stop_after_attempt,
    stop_after_delay,
    wait_random_exponential,
)

from edgekit.fleet.errors import InvalidError, NotFoundError, UnavailableError
from edgekit.fleet.storage import schema
from edgekit.fleet.storage.failures import failure_of
from edgekit.fleet.storage.tables import leases

BUSY_S: Final = 5.0  # a connection, a turn or a lock that takes longer is reported
TRIES: Final = 8
RETRY_S: Final = 10.0

# A server that hangs in the middle of a transaction may not hold up the others for ever.
_PG_OPTIONS: Final = (
    f"-c lock_timeout={int(BUSY_S * 1000)} -c statement_timeout=60000"
    " -c idle_in_transaction_session_timeout=60000 -c timezone=UTC"
)
_PG_CONNECT: Final = {
    "connect_timeout": 5,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "application_name": "edgekit",
}
_WRITES: Final = "edgekit_writes"
# Times that a lease lasts: who asks may have waited for its turn, and the end of another's lies that much later.
_STEP: Final = 2

T = TypeVar("T")


class Database:
    """One database, for all threads of a process; made by `Database.open`.

    Attributes:
        place: its URL without the password, for messages.
        path: the file of SQLite, else None.
    """

    __slots__ = ("_engine", "_reader", "_turn", "_writer", "path", "place")

    def __init__(self, engine: Engine, place: str, path: Path | None) -> None:
        self.place, self.path = place, path
        self._engine = engine
        options: dict[str, Any] = {_WRITES: False}
        if path is None:
            options |= {"postgresql_readonly": True, "isolation_level": "REPEATABLE READ"}
        self._reader = engine.execution_options(**options)
        self._writer = engine.execution_options(**{_WRITES: True})
        # SQLite lets the waiting poll; threads of one process queue here, which is fair and faster.
        self._turn = threading.Lock() if path is not None else None

    @classmethod
    def open(cls, url: str, *, create: bool = False) -> Database:
        """Open a database and see that this program knows its tables.

        Args:
            url: `sqlite:////folder/fleet.db` or `postgresql://user:password@host/name`.
            create: for `migrate`: a file that is missing is made, and the tables are not looked at.

        Raises:
            InvalidError: not such a URL, or tables that are older (`database_older`, `database_empty`) or newer
                (`database_newer`) than this program.
            NotFoundError: no such file (`no_database`).
            UnavailableError: it does not answer.
        """
        parsed = _parse(url)
        if parsed.get_backend_name() == "sqlite":
            path = Path(str(parsed.database)).absolute()
            if not create and not path.is_file():
                raise NotFoundError(
                    f"{path} is not there",
                    expected="the database of a fleet",
                    way_out="make one with `edgekit fleet init DIR`, or correct the URL",
                    code="no_database",
                )
            database = cls(_sqlite_engine(path, create=create), f"sqlite:///{path}", path)
        else:
            place = parsed.set(drivername="postgresql").render_as_string(hide_password=True)
            database = cls(_postgresql_engine(parsed), place, None)
        if not create:
            try:
                database.check()
            except BaseException:
                database.close()
                raise
        return database

    def close(self) -> None:
        """Close every connection that is not in use."""
        self._engine.dispose()

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """Give a connection that sees one moment of the database and cannot write."""
        with self._translated(writes=False), self._reader.connect() as connection, connection.begin():
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """Give a connection within one transaction: all of it is written, or nothing.

        Raises:
            UnavailableError: nothing was written; but where the connection broke during the commit itself
                (`database_away`), nobody can say, so what is written has to bear being written again.
        """
        with (
            self._own_turn(),
            self._translated(writes=True),
            self._writer.connect() as connection,
            connection.begin(),
        ):
            yield connection

    def write(self, function: Callable[[Connection], T]) -> T:
        """Run `function(connection)` in a transaction, again from the start while somebody is in the way.

        `function` may run several times, so it changes nothing but the database.
        """
        for attempt in Retrying(
            retry=retry_if_exception(_is_passing),
            stop=stop_after_attempt(TRIES) | stop_after_delay(RETRY_S),
            wait=wait_random_exponential(multiplier=0.02, max=1.0),
            reraise=True,
        ):
            with attempt, self.writing() as connection:
                return function(connection)
        raise AssertionError("tenacity raises when the tries are used up")

    def revision(self) -> str | None:
        """Return the revision of the tables that are there, None before the first."""
        with self.reading() as connection:
            return schema.revision_of(connection)

    def check(self) -> None:
        """Raise unless the database answers and its tables are those of this program."""
        schema.check_revision(self.revision(), self.place)

    def migrate(self) -> None:
        """Bring the tables to this program's revision, all of it or nothing; a second process waits for the first.

        Raises:
            InvalidError: the tables are newer than this program (`database_newer`).
        """

        def upgrade(connection: Connection) -> None:
            if connection.dialect.name == "postgresql":
                connection.execute(text("SET LOCAL lock_timeout = 0"))
                connection.execute(text("SET LOCAL statement_timeout = 0"))
            lock(connection, "migrate")
            schema.upgrade(connection, self.place)

        self.write(upgrade)

    def lease(self, name: str, holder: str, seconds: float) -> bool:
        """Take or prolong the lease `name`; tell whether `holder` has it now.

        Time is PostgreSQL's own; for SQLite it is the clock of the one machine on which all its processes run. So
        servers whose clocks differ never hold it together. The holder counts `seconds` by its monotonic clock from
        before this call, and stops when they are over. A step of the database's own clock moves the end with it; an
        end that is further away than anybody can have asked for is from before such a step, and holds nobody off.

        Args:
            name: what is held, such as "conductor".
            holder: who asks; different for each process.
            seconds: how long, if it does not come again before.
        """
        insert = _insert_of(self._engine.dialect.name)
        now = _now(self._engine.dialect.name)
        statement = insert(leases).values(name=name, holder=holder, until_s=now + seconds)
        statement = statement.on_conflict_do_update(
            index_elements=[leases.c.name],
            set_={"holder": statement.excluded.holder, "until_s": statement.excluded.until_s},
            where=or_(
                leases.c.holder == holder, leases.c.until_s <= now, leases.c.until_s > now + _STEP * seconds
            ),
        ).returning(leases.c.name)
        return self.write(lambda connection: connection.execute(statement).first() is not None)

    def release_lease(self, name: str, holder: str) -> None:
        """Give the lease back, if `holder` has it."""
        statement = delete(leases).where(leases.c.name == name, leases.c.holder == holder)
        self.write(lambda connection: connection.execute(statement))

    @contextmanager
    def _translated(self, *, writes: bool) -> Iterator[None]:
        try:
            yield
        except SQLAlchemyError as error:
            failure = failure_of(error, self.place, writes=writes)
            if failure is None:
                raise
            raise failure from error

    @contextmanager
    def _own_turn(self) -> Iterator[None]:
        if self._turn is None:
            yield
            return
        if not self._turn.acquire(timeout=BUSY_S):
            raise UnavailableError(
                f"{self.place} is busy: a thread of this process has been writing for {BUSY_S:g} s",
                expected="short transactions, and none within another",
                way_out="try again",
                code="database_busy",
            )
        try:
            yield
        finally:
            self._turn.release()


def insert_new(
    connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]], keys: Sequence[str]
) -> set[tuple[Any, ...]]:
    """Insert the rows whose keys are not there yet, and leave the others as they are.

    Exactly one of any number of writers finds a key new. Of rows with the same key the first counts.

    Args:
        connection: of `Database.writing`.
        table: into which.
        rows: all with the same columns; any number.
        keys: the columns of a primary key or a unique constraint.

    Returns:
        The keys that were new, each a tuple in the order of `keys`.
    """
    if not rows:
        return set()
    ordered = _sorted(rows, keys)
    values: Any
    if connection.dialect.name == "postgresql" and not any(
        isinstance(table.c[n].type, JSON) for n in rows[0]
    ):
        statement, values = _from_arrays(table, tuple(rows[0])), _arrays(ordered)
    else:
        # SQLAlchemy parts them to what the driver takes in one statement.
        statement, values = _insert_of(connection.dialect.name)(table), ordered
    statement = statement.on_conflict_do_nothing(index_elements=list(keys))
    found = connection.execute(statement.returning(*(table.c[key] for key in keys)), values)
    return {tuple(row) for row in found}


def upsert(
    connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]], keys: Sequence[str]
) -> None:
    """Insert rows, or change those that are there already; of rows with the same key the last counts.

    Args:
        connection: of `Database.writing`.
        table: into which.
        rows: all with the same columns; each that is no key is overwritten.
        keys: the columns of a primary key or a unique constraint.
    """
    if not rows:
        return
    # PostgreSQL refuses to change one row twice in a statement.
    last = {tuple(row[key] for key in keys): row for row in rows}
    statement = _insert_of(connection.dialect.name)(table)
    changed = {name: statement.excluded[name] for name in rows[0] if name not in keys}
    if changed:
        statement = statement.on_conflict_do_update(index_elements=list(keys), set_=changed)
    else:
        statement = statement.on_conflict_do_nothing(index_elements=list(keys))
    connection.execute(statement, _sorted(list(last.values()), keys))


def lock(connection: Connection, name: str) -> None:
    """Be alone with `name` among all servers until the transaction ends.

    What is read after it is up to date with everything that earlier holders wrote.
    """
    if not connection.get_execution_options().get(_WRITES):
        raise ValueError(f"lock({name!r}) needs a connection of Database.writing")
    if connection.dialect.name == "postgresql":
        number = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big", signed=True)
        connection.execute(func.pg_advisory_xact_lock(number).select())
    # In SQLite a writer is alone since its BEGIN IMMEDIATE.


def _from_arrays(table: Table, names: Sequence[str]) -> Any:
    """One statement for any number of rows; one for each number would be parsed and planned every time."""
    columns = [table.c[name] for name in names]
    arrays = [bindparam(each.name, type_=postgresql.ARRAY(each.type)) for each in columns]
    names_ = (column(each.name, each.type) for each in columns)
    rows = func.unnest(*arrays).table_valued(*names_).render_derived()
    return postgresql.insert(table).from_select(names, select(*rows.c), include_defaults=False)


def _arrays(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    return {name: [row[name] for row in rows] for name in rows[0]}


def _sorted(rows: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> list[dict[str, Any]]:
    """Order rows by key, since writers that lock in one order do not deadlock."""
    columns = rows[0].keys()
    for row in rows:
        if row.keys() != columns:
            raise ValueError(f"rows with the columns {sorted(columns)} and {sorted(row.keys())} in one call")
    return [dict(row) for row in sorted(rows, key=lambda row: tuple(row[key] for key in keys))]


def _insert_of(dialect: str) -> Any:
    return {"sqlite": sqlite.insert, "postgresql": postgresql.insert}[dialect]


def _is_passing(error: BaseException) -> bool:
    return isinstance(error, UnavailableError) and error.code == "database_busy"


def _parse(url: str) -> URL:
    try:
        parsed = make_url(url)
    except ArgumentError:
        parsed = None
    kind = parsed.drivername.split("+")[0] if parsed else ""
    if parsed and kind in {"postgresql", "postgres"} and parsed.database:
        return parsed.set(drivername="postgresql+psycopg")
    # A database in memory would be another one for each connection.
    if parsed and kind == "sqlite" and parsed.database and parsed.database != ":memory:" and not parsed.query:
        return parsed.set(drivername="sqlite")
    shown = parsed.render_as_string(hide_password=True) if parsed else "the URL of the database"
    raise InvalidError(
        f"{shown} names no database that edgekit knows",
        expected="sqlite:////folder/fleet.db or postgresql://user:password@host/name",
        way_out="correct the URL",
        code="bad_database_url",
    )


def _sqlite_engine(path: Path, *, create: bool) -> Engine:
    mode = "rwc" if create else "rw"

    def connect() -> sqlite3.Connection:
        # Without an isolation level the driver starts no transaction by itself.
        connection = sqlite3.connect(
            f"file:{quote(str(path))}?mode={mode}",
            uri=True,
            timeout=BUSY_S,
            isolation_level=None,
            check_same_thread=False,
        )
        try:
            if connection.execute("PRAGMA journal_mode").fetchone() != ("wal",):
                connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA foreign_keys = ON")
        except BaseException:
            connection.close()
            raise
        return connection

    engine = create_engine(
        "sqlite://", creator=connect, poolclass=QueuePool, pool_size=8, max_overflow=24, pool_timeout=BUSY_S
    )
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _begin_sqlite(connection: Connection) -> None:
    writes = bool(connection.get_execution_options().get(_WRITES))
    if connection.info.get(_WRITES) != writes:
        connection.exec_driver_sql(f"PRAGMA query_only = {'OFF' if writes else 'ON'}")
        connection.info[_WRITES] = writes
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _postgresql_engine(url: URL) -> Engine:
    options = {} if "options" in url.query else {"options": _PG_OPTIONS}
    engine = create_engine(
        url,
        pool_pre_ping=True,
        isolation_level="READ COMMITTED",
        pool_size=8,
        max_overflow=24,
        pool_timeout=BUSY_S,
        connect_args={key: value for key, value in (_PG_CONNECT | options).items() if key not in url.query},
    )
    event.listen(engine, "connect", _send_binary)
    return engine


def _send_binary(connection: Any, record: object) -> None:
    """Arrays as bytes: as text, with each byte of a window escaped twice, they take twice as long."""
    # Not everybody has PostgreSQL, and its driver.
    from psycopg.types.array import ListBinaryDumper

    del record
    connection.adapters.register_dumper(list, ListBinaryDumper)


def _now(dialect: str) -> Any:
    """Return the time in seconds since 1970 as an expression."""
    if dialect == "postgresql":
        return func.extract("epoch", func.clock_timestamp())
    return literal(time.time())
