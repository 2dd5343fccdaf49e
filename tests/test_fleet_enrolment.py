"""Devices come in by a code that is good for once, and go with all that they told."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from sqlalchemy import select

from edgekit.fleet.context import Fleet
from edgekit.fleet.errors import ConflictError, DeniedError, FleetError, InvalidError, NotFoundError
from edgekit.fleet.identity import enrolment
from edgekit.fleet.identity.access import device_of
from edgekit.fleet.identity.enrolment import (
    allow_again,
    enrol,
    find,
    forget,
    make_code,
    read_device,
    revoke,
    set_labels,
)
from edgekit.fleet.storage import audit
from edgekit.fleet.storage.tables import devices, enrolment_codes, evidence, reports, windows
from edgekit.fleet.windows.ingest import take
from edgekit.fleet.windows.merging import merge
from support.served_fleet import (
    ADA,
    OPERATOR,
    VIEWER,
    a_body,
    a_fleet,
    a_report,
    a_window,
    add_rollout,
    count,
    enrolled,
    moved,
)


@pytest.fixture(params=["sqlite", "postgresql"])
def fleet(request, tmp_path) -> Iterator[Fleet]:
    with a_fleet(tmp_path, request.param) as found:
        yield found


def knows(fleet: Fleet, token: str) -> bool:
    try:
        with fleet.database.reading() as connection:
            device_of(connection, token)
    except DeniedError:
        return False
    return True


def test_a_device_gets_the_labels_and_the_channel_of_its_code(fleet):
    code = make_code(fleet, OPERATOR, labels={"region": "eu"}, channel="beta")
    found = enrol(fleet, code.code, "kitchen-1")
    assert (found.channel, found.labels) == ("beta", {"region": "eu"})
    assert knows(fleet, found.token)
    with fleet.database.reading() as connection:
        assert code.code not in str(connection.execute(select(enrolment_codes)).all())
        assert audit.verify(connection) is None


def test_a_code_is_good_for_one_device_even_where_two_come_at_once(fleet):
    code, barrier, found = make_code(fleet, OPERATOR, labels={}).code, threading.Barrier(6), []

    def come(number: int) -> None:
        barrier.wait()
        try:
            found.append(enrol(fleet, code, f"kitchen-{number}").token)
        except DeniedError as error:
            found.append(error.code)

    threads = [threading.Thread(target=come, args=(number,)) for number in range(6)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert sorted(found)[:5] == ["code"] * 5
    assert count(fleet, devices) == 1


def test_a_code_that_expired_or_never_was_is_refused(fleet):
    code = make_code(fleet, OPERATOR, labels={}, seconds=60)
    with pytest.raises(DeniedError):
        enrol(moved(fleet, 60), code.code, "kitchen-1")
    with pytest.raises(DeniedError):
        enrol(fleet, "guess", "kitchen-1")
    assert count(fleet, devices) == 0


def test_a_known_device_enrols_again_only_where_an_operator_lets_it(fleet):
    _, before = enrolled(fleet, "kitchen-1")
    code = make_code(fleet, OPERATOR, labels={"region": "us"}).code
    with pytest.raises(ConflictError):
        enrol(fleet, code, "kitchen-1")
    assert knows(fleet, before)
    allow_again(fleet, OPERATOR, "kitchen-1")
    assert not knows(fleet, before)
    after = enrol(fleet, code, "kitchen-1")
    assert knows(fleet, after.token)
    with pytest.raises(ConflictError):
        enrol(fleet, make_code(fleet, OPERATOR, labels={}).code, "kitchen-1")


def test_a_revoked_device_is_not_known_any_more(fleet):
    device, token = enrolled(fleet, "kitchen-1")
    revoke(fleet, OPERATOR, "kitchen-1")
    assert not knows(fleet, token)
    # It was let in before it was revoked, and comes to the database after.
    with pytest.raises(DeniedError):
        take(fleet, device, a_body("kitchen-1", a_window(1)))
    assert count(fleet, windows) == 0


@pytest.mark.parametrize(
    "labels", [{"Region": "eu"}, {"region": "a\nb"}, {"region": "x" * 129}, {f"l{n}": "" for n in range(33)}]
)
def test_labels_that_no_expression_could_ask_for_are_refused(tmp_path, labels):
    with a_fleet(tmp_path) as fleet:
        enrolled(fleet, "kitchen-1")
        with pytest.raises(InvalidError):
            set_labels(fleet, OPERATOR, "kitchen-1", labels)
        with pytest.raises(InvalidError):
            make_code(fleet, OPERATOR, labels=labels)


@pytest.mark.parametrize("name", ["", "..", "../x", "a/b", "a b", "-a", "a" * 129, "a\0", "<b>"])
def test_a_device_with_a_name_that_cannot_stand_in_an_address_is_refused(tmp_path, name):
    with a_fleet(tmp_path) as fleet:
        with pytest.raises(InvalidError):
            enrol(fleet, make_code(fleet, OPERATOR, labels={}).code, name)
        assert count(fleet, devices) == 0


def test_devices_are_found_by_id_and_by_cohort_page_after_page(fleet, monkeypatch):
    monkeypatch.setattr(enrolment, "MAX_PAGE", 4)
    for number in range(11):
        enrolled(fleet, f"kitchen-{number:02}", region="eu" if number % 2 else "us", site="100%")
    seen, after = [], ""
    while True:
        with fleet.database.reading() as connection:
            page = find(connection, cohort='region == "eu"', after=after, limit=2)
        seen += [each["id"] for each in page.devices]
        after = page.after
        if not after:
            break
    assert seen == [f"kitchen-{number:02}" for number in range(11) if number % 2]
    with fleet.database.reading() as connection:
        assert [each["id"] for each in find(connection, search="n-03").devices] == ["kitchen-03"]
        assert find(connection, search="%").devices == []
        assert "token_hash" not in find(connection).devices[0]
        with pytest.raises(InvalidError):
            find(connection, cohort="region = eu")


def test_a_device_that_is_forgotten_leaves_nothing_that_tells_of_it(fleet):
    add_rollout(fleet)
    for name in ("kitchen-1", "kitchen-2"):
        device, _ = enrolled(fleet, name)
        take(
            fleet,
            device,
            a_body(name, a_window(1), reports=(a_report(2, "refused", "too_slow"),), candidate="b" * 64),
        )
    assert merge(fleet, "me") == 2
    forget(fleet, OPERATOR, "kitchen-1")
    for table in (windows, reports, evidence):
        with fleet.database.reading() as connection:
            assert list(connection.scalars(select(table.c.device))) == ["kitchen-2"]
    with pytest.raises(NotFoundError), fleet.database.reading() as connection:
        read_device(connection, "kitchen-1")


@pytest.mark.parametrize("what", [revoke, allow_again, forget])
def test_only_an_operator_changes_devices_and_only_those_that_are_there(tmp_path, what):
    with a_fleet(tmp_path) as fleet:
        enrolled(fleet, "kitchen-1")
        with pytest.raises(DeniedError):
            what(fleet, VIEWER, "kitchen-1")
        with pytest.raises(NotFoundError):
            what(fleet, ADA, "kitchen-2")
        with fleet.database.reading() as connection:
            assert not read_device(connection, "kitchen-1")["revoked"]


def test_every_error_says_the_way_out(tmp_path):
    with a_fleet(tmp_path) as fleet, pytest.raises(FleetError) as caught:
        enrol(fleet, "guess", "kitchen-1")
    assert caught.value.way_out
    assert caught.value.expected
