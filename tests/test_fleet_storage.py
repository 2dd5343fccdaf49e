"""The database of a fleet, the same on SQLite and on PostgreSQL: nothing twice, nothing by halves, clear when away."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator

import psycopg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import func, insert, select, text, update
from sqlalchemy.exc import OperationalError, SQLAlchemyError

from edgekit.fleet.errors import InvalidError, NotFoundError, UnavailableError
from edgekit.fleet.storage import database as database_module
from edgekit.fleet.storage import schema
from edgekit.fleet.storage.database import Database, insert_new, lock, upsert
from edgekit.fleet.storage.failures import failure_of
from edgekit.fleet.storage.tables import channels, metadata, reports
from support.databases import KINDS, url_of
from support.disks import make_read_only, small_disk
from support.postgres import postgres
from support.storage_actor import Actor, report_of

KEYS = ["device", "key"]


@pytest.fixture(params=KINDS)
def kind(request) -> str:
    return request.param


@pytest.fixture
def url(kind, tmp_path) -> Iterator[str]:
    with url_of(kind, tmp_path) as url:
        yield url


@pytest.fixture
def database(url) -> Iterator[Database]:
    database = Database.open(url)
    yield database
    database.close()


def rows_of(database: Database) -> int:
    with database.reading() as connection:
        return connection.execute(select(func.count()).select_from(reports)).scalar_one()


def a_channel(name: str, revision: int = 0) -> dict[str, object]:
    return {"name": name, "model": "m", "settled": [], "revision": revision}


# Tables


def test_the_migrations_make_the_tables_of_this_program(database):
    with database.reading() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []


def test_a_database_without_tables_is_not_opened(kind, tmp_path):
    with url_of(kind, tmp_path, empty=True) as url:
        Database.open(url, create=True).close()
        if kind == "sqlite":
            sqlite3.connect(tmp_path / "fleet.db").close()
        with pytest.raises(InvalidError, match="edgekit fleet migrate") as caught:
            Database.open(url)
        assert caught.value.code == "database_empty"


def test_a_newer_database_is_neither_opened_nor_migrated(database, url):
    with database.writing() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    for use in (lambda: Database.open(url), database.migrate):
        with pytest.raises(InvalidError, match="install the edgekit") as caught:
            use()
        assert caught.value.code == "database_newer"


def test_an_older_database_says_how_to_migrate():
    refused = schema.refusal("0001", "0002", {"0001", "0002"}, "fleet.db")
    assert refused is not None
    assert refused.code == "database_older"
    assert "edgekit fleet migrate" in str(refused)


def test_two_processes_that_migrate_at_once_both_end_well(kind, tmp_path):
    with (
        url_of(kind, tmp_path, empty=True) as url,
        Actor("migrate", url) as one,
        Actor("migrate", url) as two,
    ):
        for actor in (one, two):
            assert actor.hear() == "ready"
        for actor in (one, two):
            actor.go()
        assert [one.hear(), two.hear()] == [schema.wanted_revision()] * 2


def test_a_file_that_is_not_there_is_not_made(tmp_path):
    with pytest.raises(NotFoundError, match="edgekit fleet init"):
        Database.open(f"sqlite:///{tmp_path}/fleet.db")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "url",
    ["", "fleet.db", "sqlite://", "sqlite:///:memory:", "mysql://u:secret@h/d", "postgresql://u:secret@h"],
)
def test_a_url_of_no_known_database_is_refused_without_its_password(url):
    with pytest.raises(InvalidError) as caught:
        Database.open(url)
    assert caught.value.code == "bad_database_url"
    assert "secret" not in str(caught.value)


# Rows


def test_only_keys_that_were_not_there_are_new(database):
    rows = [report_of(number) for number in range(2500)]
    with database.writing() as connection:
        assert len(insert_new(connection, reports, rows, KEYS)) == 2500
        more = [report_of(1, "later"), report_of(7000), report_of(7000, "twice")]
        assert insert_new(connection, reports, more, KEYS) == {("device-7000", "7000")}
        assert insert_new(connection, reports, [], KEYS) == set()
    with database.reading() as connection:
        assert set(connection.execute(select(reports.c.reason)).scalars()) == {""}
    assert rows_of(database) == 2501


def test_rows_with_different_columns_are_refused(database):
    with pytest.raises(ValueError, match="in one call"), database.writing() as connection:
        insert_new(connection, reports, [report_of(1), {"device": "d", "key": "k"}], KEYS)


def test_of_two_processes_exactly_one_finds_a_key_new(database, url):
    with Actor("insert", url, "forwards") as one, Actor("insert", url, "backwards") as two:
        for actor in (one, two):
            assert actor.hear() == "ready"
        for actor in (one, two):
            actor.go()
        assert int(one.hear()) + int(two.hear()) == 300
    assert rows_of(database) == 300


def test_upsert_inserts_and_changes_and_the_last_counts(database):
    with database.writing() as connection:
        upsert(connection, channels, [a_channel("a", 1), a_channel("b", 1)], ["name"])
        upsert(connection, channels, [a_channel("b", 2), a_channel("ü🚀", 1), a_channel("b", 3)], ["name"])
    with database.reading() as connection:
        found = dict(connection.execute(select(channels.c.name, channels.c.revision)).all())
    assert found == {"a": 1, "b": 3, "ü🚀": 1}


def test_what_fails_is_not_written_by_halves(database):
    def fail(connection):
        insert_new(connection, reports, [report_of(1)], KEYS)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        database.write(fail)
    assert rows_of(database) == 0


def test_a_reader_cannot_write_and_the_next_writer_can(database):
    for _ in range(3):
        with pytest.raises(SQLAlchemyError), database.reading() as connection:
            connection.execute(insert(reports).values(report_of(1)))
        with database.writing() as connection:
            insert_new(connection, reports, [report_of(1)], KEYS)
    assert rows_of(database) == 1


def test_a_reader_sees_one_moment(database):
    with database.reading() as connection:
        before = connection.execute(select(func.count()).select_from(reports)).scalar_one()
        database.write(lambda c: insert_new(c, reports, [report_of(1)], KEYS))
        after = connection.execute(select(func.count()).select_from(reports)).scalar_one()
    assert before == after == 0


# One at a time


def test_a_lock_makes_what_is_read_stay_true_until_the_end(database):
    database.write(lambda c: upsert(c, channels, [a_channel("a")], ["name"]))

    def add(connection):
        lock(connection, "counting")
        seen = connection.execute(select(channels.c.revision)).scalar_one()
        time.sleep(0.002)
        connection.execute(update(channels).values(revision=seen + 1))

    run_at_once([lambda: [database.write(add) for _ in range(10)]] * 4)
    with database.reading() as connection:
        assert connection.execute(select(channels.c.revision)).scalar_one() == 40
        with pytest.raises(ValueError, match="writing"):
            lock(connection, "counting")


def test_writers_that_block_one_another_both_get_through(database):
    database.write(lambda c: upsert(c, channels, [a_channel("a"), a_channel("b")], ["name"]))

    def raise_both(first: str, second: str):
        def function(connection):
            for name in (first, second):
                statement = update(channels).where(channels.c.name == name)
                connection.execute(statement.values(revision=channels.c.revision + 1))
                time.sleep(0.1)

        return lambda: database.write(function)

    run_at_once([raise_both("a", "b"), raise_both("b", "a")])
    with database.reading() as connection:
        assert connection.execute(select(channels.c.revision)).scalars().all() == [2, 2]


def test_a_lease_outlives_its_killed_holder_and_no_longer(database, url):
    with Actor("lease", url, "other", "2") as other:
        assert other.hear() == "ready"
        other.go()
        assert other.hear() == "True"
    # Killed with SIGKILL; nobody gave the lease back.
    assert not database.lease("one", "me", 2)
    until = time.monotonic() + 10
    while not database.lease("one", "me", 30):
        assert time.monotonic() < until
        time.sleep(0.2)
    assert database.lease("one", "me", 30)
    assert not database.lease("one", "other", 30)
    database.release_lease("one", "other")
    assert not database.lease("one", "other", 30)
    database.release_lease("one", "me")
    assert database.lease("one", "other", 30)


def test_of_many_that_ask_at_once_one_gets_the_lease(database):
    got: list[bool] = []
    run_at_once([lambda name=str(n): got.append(database.lease("one", name, 30)) for n in range(8)])
    assert sorted(got) == [False] * 7 + [True]


def test_a_server_with_a_wrong_clock_does_not_take_a_lease_of_postgresql(tmp_path, monkeypatch):
    with url_of("postgresql", tmp_path) as url:
        database = Database.open(url)
        assert database.lease("one", "right", 30)
        real = time.time
        for skew_s in (-86_400, 86_400):
            monkeypatch.setattr(time, "time", lambda skew_s=skew_s: real() + skew_s)
            assert not database.lease("one", "wrong", 30)
        database.close()


def run_at_once(functions) -> None:
    """Run each in a thread, and raise what one of them raises."""
    failures: list[BaseException] = []

    def run(function) -> None:
        try:
            function()
        except BaseException as error:  # noqa: BLE001 - raised below
            failures.append(error)

    threads = [threading.Thread(target=run, args=(function,)) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


# When the database fails


def test_the_next_call_works_after_postgresql_came_back(tmp_path):
    server = postgres()
    with url_of("postgresql", tmp_path) as url:
        database = Database.open(url)
        database.write(lambda c: insert_new(c, reports, [report_of(1)], KEYS))

        def insert_and_stop(connection):
            insert_new(connection, reports, [report_of(2)], KEYS)
            server.stop()

        try:
            with pytest.raises(UnavailableError) as caught:
                database.write(insert_and_stop)
            assert caught.value.code == "database_away"
            for use in (lambda: rows_of(database), lambda: Database.open(url), database.check):
                with pytest.raises(UnavailableError) as caught:
                    use()
                assert caught.value.code == "database_away"
        finally:
            server.start()
        assert rows_of(database) == 1
        assert len(database.write(lambda c: insert_new(c, reports, [report_of(2)], KEYS))) == 1
        database.close()


def test_a_writer_waits_for_another_process_and_says_so_when_it_takes_too_long(tmp_path, monkeypatch):
    monkeypatch.setattr(database_module, "BUSY_S", 0.2)
    monkeypatch.setattr(database_module, "RETRY_S", 1.0)
    with url_of("sqlite", tmp_path) as url:
        database = Database.open(url)
        other = sqlite3.connect(tmp_path / "fleet.db", isolation_level=None, check_same_thread=False)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(UnavailableError) as caught:
            database.write(lambda c: insert_new(c, reports, [report_of(1)], KEYS))
        assert caught.value.code == "database_busy"
        assert rows_of(database) == 0  # readers are not in the way
        timer = threading.Timer(0.4, other.rollback)
        timer.start()
        database.write(lambda c: insert_new(c, reports, [report_of(1)], KEYS))
        timer.join()
        other.close()
        assert rows_of(database) == 1
        database.close()


def test_a_full_disk_leaves_what_was_there(tmp_path):
    with small_disk(tmp_path / "disk", "2m") as disk, url_of("sqlite", disk) as url:
        database = Database.open(url)
        done = []

        def insert_more(connection):
            rows = [report_of(len(done) * 200 + number, "x" * 60) for number in range(200)]
            return insert_new(connection, reports, rows, KEYS)

        def fill():
            while True:
                done.append(database.write(insert_more))

        with pytest.raises(UnavailableError) as caught:
            fill()
        assert caught.value.code == "no_room"
        assert rows_of(database) == 200 * len(done) > 0
        database.close()


def test_a_disk_that_takes_nothing_more_is_said_and_mended(tmp_path):
    with small_disk(tmp_path / "disk", "4m") as disk, url_of("sqlite", disk) as url:
        Database.open(url).close()
        make_read_only(disk)
        with pytest.raises(UnavailableError) as caught:
            Database.open(url).write(lambda c: insert_new(c, reports, [report_of(1)], KEYS))
        assert caught.value.code == "database_away"
        make_read_only(disk, read_only=False)
        database = Database.open(url)
        assert len(database.write(lambda c: insert_new(c, reports, [report_of(1)], KEYS))) == 1
        database.close()


def test_a_file_that_is_no_database_is_said(tmp_path):
    (tmp_path / "fleet.db").write_bytes(b"no database" * 1000)
    with pytest.raises(UnavailableError) as caught:
        Database.open(f"sqlite:///{tmp_path}/fleet.db")
    assert caught.value.code == "database_away"


@pytest.mark.parametrize(
    ("error", "writes", "code"),
    [
        (psycopg.errors.DiskFull, True, "no_room"),
        (psycopg.errors.SerializationFailure, True, "database_busy"),
        (psycopg.errors.TooManyConnections, False, "database_busy"),
        (psycopg.errors.AdminShutdown, False, "database_away"),
        (psycopg.errors.InvalidPassword, False, "database_away"),
        (psycopg.errors.ReadOnlySqlTransaction, True, "database_away"),
        (psycopg.errors.ReadOnlySqlTransaction, False, None),
        (psycopg.errors.UndefinedTable, True, None),
    ],
)
def test_what_postgresql_says_is_told_apart(error, writes, code):
    found = failure_of(OperationalError("SELECT 1", {}, error("words")), "fleet", writes=writes)
    assert (found and found.code) == code
