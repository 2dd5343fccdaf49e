"""The audit log: no gap, no fork, and every change shows, as far as a chain can show it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from itertools import count

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, select, update

from edgekit.fleet.errors import InvalidError
from edgekit.fleet.storage import audit as log
from edgekit.fleet.storage.database import Database
from edgekit.fleet.storage.tables import audit
from support.databases import KINDS, url_of
from support.storage_actor import Actor

TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=12)
NUMBERS = st.one_of(
    st.integers(-(2**53) + 1, 2**53 - 1), st.floats(allow_nan=False, allow_infinity=False), st.booleans()
)
VALUES = st.recursive(
    st.one_of(st.none(), TEXTS, NUMBERS),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXTS, inner, max_size=4)),
    max_leaves=12,
)


@pytest.fixture(params=KINDS)
def url(request, tmp_path) -> Iterator[str]:
    with url_of(request.param, tmp_path) as url:
        yield url


@pytest.fixture
def database(url) -> Iterator[Database]:
    database = Database.open(url)
    yield database
    database.close()


def note(database: Database, number: int, **detail: object) -> log.Head:
    return database.write(
        lambda c: log.append(c, "Zoë", "rollout.pause", f"rollout-{number}", {"n": number, **detail}, number)
    )


def broken(database: Database, known: log.Head | None = None) -> log.Break | None:
    with database.reading() as connection:
        return log.verify(connection, known)


def lines_of(database: Database) -> list[str]:
    with database.reading() as connection:
        return list(log.export(connection))


def change(database: Database, statement) -> None:
    database.write(lambda c: c.execute(statement))


def test_an_empty_log_is_whole(database):
    assert broken(database) is None
    assert lines_of(database) == []


def test_four_processes_at_once_leave_no_gap(database, url):
    names = "abcd"
    actors = [Actor("audit", url, name) for name in names]
    try:
        assert [actor.hear() for actor in actors] == ["ready"] * 4
        for actor in actors:
            actor.go()
        assert [actor.hear() for actor in actors] == ["done"] * 4
    finally:
        for actor in actors:
            actor.__exit__()
    assert broken(database) is None
    with database.reading() as connection:
        assert connection.execute(select(audit.c.sequence).order_by("sequence")).scalars().all() == list(
            range(1, 81)
        )


def test_what_is_rolled_back_leaves_no_gap(database):
    def fail(connection):
        log.append(connection, "a", "b", "c", {}, 1)
        raise ZeroDivisionError

    for number in range(3):
        note(database, number)
        with pytest.raises(ZeroDivisionError):
            database.write(fail)
    assert broken(database) is None
    assert len(lines_of(database)) == 3


@pytest.mark.parametrize(
    "values",
    [{"detail": {"n": 9}}, {"actor": "somebody"}, {"at_s": 5}, {"hash": "f" * 64}, {"previous": "f" * 64}],
    ids=lambda values: next(iter(values)),
)
def test_a_changed_row_is_found(database, values):
    for number in range(5):
        note(database, number)
    change(database, update(audit).where(audit.c.sequence == 3).values(values))
    found = broken(database)
    assert found is not None
    assert found.sequence == 3


def test_a_row_that_was_removed_is_found_where_others_follow(database):
    for number in range(5):
        note(database, number)
    change(database, delete(audit).where(audit.c.sequence == 2))
    found = broken(database)
    assert found is not None
    assert found.sequence == 2
    assert "missing" in found.why


def test_an_end_that_was_removed_is_found_by_a_head_that_was_noted_alone(database):
    heads = [note(database, number) for number in range(5)]
    change(database, delete(audit).where(audit.c.sequence == 5))
    assert broken(database) is None  # a chain says nothing about its own end
    assert broken(database, heads[3]) is None
    found = broken(database, heads[4])
    assert found is not None
    assert found.sequence == 5
    assert "end was removed" in found.why


def test_a_log_that_was_written_anew_is_found_by_a_head_that_was_noted_alone(database):
    heads = [note(database, number) for number in range(3)]
    change(database, delete(audit))
    for number in range(4):
        note(database, number, forged=True)
    assert broken(database) is None
    found = broken(database, heads[2])
    assert found is not None
    assert found.sequence == 3
    assert "written anew" in found.why


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(detail=st.dictionaries(TEXTS, VALUES, max_size=4))
def test_whatever_is_written_has_the_same_hash_when_it_is_read(database, detail):
    database.write(lambda c: log.append(c, "a", "b", "c", detail, 1))
    assert broken(database) is None


def test_whoever_has_the_export_can_check_it(database):
    for number in range(3):
        note(database, number, share=0.5, text="Zürich 🚀", whole=1e22)
    previous = "0" * 64
    for number, line in zip(count(1), lines_of(database), strict=False):
        row = json.loads(line)
        stated = row.pop("hash")
        text = json.dumps(row, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        assert hashlib.sha256(text.encode()).hexdigest() == stated
        assert (row["sequence"], row["previous"]) == (number, previous)
        previous = stated


@pytest.mark.parametrize(
    ("actor", "detail"),
    [
        ("a" * 129, {}),
        ("a\x00", {}),
        ("a", {"x": float("nan")}),
        ("a", {"x": 2**60}),
        ("a", {"x": "\ud800"}),
        ("a", {"x": b"bytes"}),
        ("a", {"x": {1: 2}}),
        ("a", {"x": "y" * 70_000}),
    ],
)
def test_what_a_log_cannot_hold_is_refused(database, actor, detail):
    with pytest.raises(InvalidError) as caught:
        database.write(lambda c: log.append(c, actor, "b", "c", detail, 1))
    assert caught.value.code == "bad_audit"
    assert lines_of(database) == []
