"""What devices post: a post that breaks the contract stores nothing, one that keeps it is stored once."""

from __future__ import annotations

import json
import threading
import zlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select, text

from edgekit.fleet.context import Fleet
from edgekit.fleet.errors import DeniedError, FleetError, InvalidError, TooMuchError, UnavailableError
from edgekit.fleet.storage.tables import devices, evidence, reports, windows
from edgekit.fleet.windows.ingest import Writer, take
from edgekit.fleet.windows.posts import read_post, unpacked
from edgekit.fleet.windows.schema import quickly_read
from edgekit_runtime.sketches import FIRST_BIN, LAST_BIN, MAX_COUNT
from edgekit_runtime.strict_json import ContractError
from edgekit_runtime.windows import Window
from support.served_fleet import (
    BASELINE,
    OTHER,
    RELEASE,
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


def shown(fleet: Fleet) -> dict[str, Any]:
    with fleet.database.reading() as connection:
        return dict(connection.execute(select(evidence)).mappings().one())


def changed(tree: Any, path: tuple[Any, ...], value: Any) -> Any:
    """The tree with another value at a place; `...` takes the key away."""
    first, *rest = path
    copy = list(tree) if isinstance(tree, list) else dict(tree)
    if rest:
        copy[first] = changed(copy[first], tuple(rest), value)
    elif value is ...:
        del copy[first]
    else:
        copy[first] = value
    return copy


# Stored once


def test_a_post_is_stored_and_its_keys_answered(fleet):
    device, _ = enrolled(fleet, "kitchen-1", region="eu")
    body = a_body("kitchen-1", a_window(1), a_window(2), reports=(a_report(3, "committed"),), phase="shadow")
    taken = take(fleet, device, body)
    assert sorted(taken.have) == [f"{number:032x}" for number in (1, 2, 3)]
    assert (taken.windows, taken.labels) == (2, {"region": "eu"})
    with fleet.database.reading() as connection:
        rows = connection.execute(select(windows).order_by(windows.c.id)).all()
        assert [unpacked(row.document) for row in rows] == [a_window(1), a_window(2)]
        row = connection.execute(select(devices)).one()
    assert (row.phase, row.live, row.candidate, row.seen_s) == ("shadow", BASELINE, "", int(fleet.now()))
    assert row.status == {"rollbacks": 0, "failed": {}, "dropped": 0}


def test_what_comes_again_is_answered_and_not_stored_again(fleet):
    device, _ = enrolled(fleet, "kitchen-1")
    first = take(fleet, device, a_body("kitchen-1", a_window(1), reports=(a_report(2, "refused", "errors"),)))
    again = take(
        fleet,
        device,
        a_body(
            "kitchen-1", a_window(1), a_window(3), a_window(3), reports=(a_report(2, "refused", "errors"),)
        ),
    )
    assert set(first.have) < set(again.have)
    assert again.windows == 1
    assert (count(fleet, windows), count(fleet, reports)) == (2, 1)


def test_the_same_key_of_two_devices_is_two_windows(fleet):
    for name in ("kitchen-1", "kitchen-2"):
        take(fleet, enrolled(fleet, name)[0], a_body(name, a_window(1)))
    assert count(fleet, windows) == 2


def test_posts_that_race_with_the_same_windows_store_them_once(fleet):
    device, _ = enrolled(fleet, "kitchen-1")
    writer = Writer(fleet)
    writer.start()
    posts = [
        read_post(a_body("kitchen-1", *(a_window(key) for key in range(6))), windows=10) for _ in range(8)
    ]
    futures = [writer.submit(post) for post in posts[:4]]
    threads = [
        threading.Thread(target=take, args=(fleet, device, a_body("kitchen-1", a_window(0), a_window(9))))
        for _ in range(4)
    ]
    for each in threads:
        each.start()
    futures += [writer.submit(post) for post in posts[4:]]
    found = [future.result(30) for future in futures]
    for each in threads:
        each.join()
    writer.stop()
    assert all(len(each.have) == 6 for each in found)
    assert count(fleet, windows) == 7


def test_posts_of_one_device_in_one_transaction_are_told_apart(fleet):
    device, _ = enrolled(fleet, "kitchen-1")
    writer = Writer(fleet)
    bodies = [
        a_body(device.id, a_window(1), a_window(2)),
        a_body(device.id, a_window(2), a_window(3)),
        a_body(device.id),
    ]
    futures = [writer.submit(read_post(body, windows=10)) for body in bodies]
    writer.start()
    assert [future.result(30).windows for future in futures] == [2, 1, 0]
    writer.stop()


def test_one_post_that_cannot_be_stored_takes_no_other_with_it(fleet):
    device, _ = enrolled(fleet, "kitchen-1")
    writer = Writer(fleet)
    futures = [
        writer.submit(read_post(a_body(name, a_window(1)), windows=10)) for name in (device.id, "stranger")
    ]
    writer.start()
    assert futures[0].result(30).have
    with pytest.raises(DeniedError):
        futures[1].result(30)
    writer.stop()


def test_a_queue_that_is_full_asks_to_come_later(tmp_path):
    with a_fleet(tmp_path, queued_posts=2) as fleet:
        writer = Writer(fleet)
        post = read_post(a_body("kitchen-1"), windows=1)
        writer.submit(post)
        writer.submit(post)
        with pytest.raises(UnavailableError) as caught:
            writer.submit(post)
        assert caught.value.code == "queue_full"
        writer.start()
        writer.stop()


def test_a_database_that_fails_acknowledges_nothing(tmp_path):
    with a_fleet(tmp_path) as fleet:
        device, _ = enrolled(fleet, "kitchen-1")
        with fleet.database.writing() as connection:
            connection.execute(text("ALTER TABLE reports RENAME TO elsewhere"))
        writer = Writer(fleet)
        writer.start()
        future = writer.submit(
            read_post(a_body(device.id, a_window(1), reports=(a_report(2, "refused"),)), windows=9)
        )
        assert future.exception(30) is not None
        writer.stop()
        assert count(fleet, windows) == 0


def test_a_post_with_a_token_that_is_not_the_devices_any_more_stores_nothing(fleet):
    device, _ = enrolled(fleet, "kitchen-1")
    with pytest.raises(DeniedError) as caught:
        take(fleet, replace(device, token_hash="0" * 64), a_body("kitchen-1", a_window(1)))
    assert caught.value.status == 401
    assert count(fleet, windows) == 0
    assert take(fleet, device, a_body("kitchen-1", a_window(1))).windows == 1


# The contract

WRONG = [
    (("windows", 0, "key"), "short", "key"),
    (("windows", 0, "key"), ..., "key"),
    (("windows", 0, "more"), 1, "more"),
    (("windows", 0, "counts", "agreed"), 51, "agreed"),
    (("windows", 0, "counts", "seen"), -1, "seen"),
    (("windows", 0, "counts", "seen"), True, "seen"),
    (("windows", 0, "counts", "seen"), 1.0, "seen"),
    (("windows", 0, "counts", "seen"), MAX_COUNT + 1, "seen"),
    (("windows", 0, "distance", "above"), {str(LAST_BIN + 1): 1}, "distance"),
    (("windows", 0, "distance", "above"), {"01": 1}, "above"),
    (("windows", 0, "distance", "above"), {"1": 0}, "distance"),
    (("windows", 0, "confusion"), [["a", "b", 1], ["a", "b", 2]], "confusion"),
    (("windows", 0, "task"), "guessing", "task"),
    (("windows", 0, "live"), "A" * 64, "live"),
    (("windows", 0, "seconds"), -1, "seconds"),
    (("windows", 0, "inputs"), {"a\u0000b": {}}, "inputs"),
    (("windows",), {}, "windows"),
    (("reports", 0, "reason"), "not a code", "reason"),
    (("reports", 0, "key"), "x", "key"),
    (("status", "phase"), "asleep", "phase"),
    (("status", "live"), "../etc", "live"),
    (("status", "pinned"), 1, "pinned"),
    (("status", "failed"), {RELEASE: "<script>"}, "failed"),
    (("status", "note"), "a\u0000b", "note"),
    (("status", "note"), "x" * 5000, "note"),
    (("schema",), 2, "schema"),
    (("device",), "", "device"),
    (("more",), 1, "more"),
    (("status",), ..., "status"),
]


@pytest.mark.parametrize(("path", "value", "named"), WRONG)
def test_a_post_that_breaks_the_contract_names_the_key_and_stores_nothing(tmp_path, path, value, named):
    with a_fleet(tmp_path) as fleet:
        device, _ = enrolled(fleet, "kitchen-1")
        whole = json.loads(a_body("kitchen-1", a_window(1), a_window(2), reports=(a_report(3, "refused"),)))
        with pytest.raises(InvalidError) as caught:
            take(fleet, device, json.dumps(changed(whole, path, value)).encode())
        assert caught.value.status == 422
        assert named in caught.value.what
        assert (count(fleet, windows), count(fleet, reports)) == (0, 0)
        with fleet.database.reading() as connection:
            assert connection.execute(select(devices.c.seen_s)).scalar_one() == 0


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b'{"a":' * 5000 + b"1" + b"}" * 5000,
        b"[" * 100_000,
        b"1" * 5000,
        b'{"schema":NaN}',
    ],
)
def test_what_is_no_post_is_refused(tmp_path, body):
    with pytest.raises(InvalidError):
        read_post(body, windows=1)


def test_a_post_of_another_device_or_with_too_many_windows_is_refused(tmp_path):
    with a_fleet(tmp_path, windows_per_post=2) as fleet:
        device, _ = enrolled(fleet, "kitchen-1")
        with pytest.raises(DeniedError) as caught:
            take(fleet, device, a_body("kitchen-2", a_window(1)))
        assert caught.value.status == 403
        with pytest.raises(TooMuchError):
            take(fleet, device, a_body("kitchen-1", a_window(1), a_window(2), a_window(3)))
        assert count(fleet, windows) == 0


NUMBERS = st.one_of(
    st.integers(-2, 3), st.integers(MAX_COUNT - 1, MAX_COUNT + 1), st.floats(), st.booleans(), st.none(),
    st.text(max_size=3), st.just([]), st.just({}), st.just(10**400), st.just(1e308), st.just(-0.0),
)  # fmt: skip
BINS = st.dictionaries(
    st.one_of(
        st.integers(FIRST_BIN - 1, LAST_BIN + 1).map(str),
        st.sampled_from(["+1", "01", "-0", "1.0", "", " 1", "٣"]),
    ),
    st.one_of(st.integers(1, 5), NUMBERS),
    max_size=3,
)
PLACES = [
    ("key",), ("live",), ("task",), ("began_s",), ("seconds",), ("other_pairs",), ("counts", "compared"),
    ("counts", "agreed"), ("noise", "agreed"), ("distance", "zeros"), ("distance", "above"),
    ("sides", "live", "latency_ms", "below"),
    ("inputs", "image", "moments", "mean"), ("inputs", "image", "moments", "squares"),
    ("inputs", "image", "moments", "n"),
    ("confusion", 0), ("inputs",), ("noise",),
]  # fmt: skip
PAIRS = st.lists(st.tuples(st.text(max_size=2), st.text(max_size=2), st.integers(0, 2)).map(list), max_size=3)


@given(st.data())
def test_the_quick_reader_takes_nothing_that_the_contract_refuses(data):
    place = data.draw(st.sampled_from(PLACES))
    value = data.draw(st.one_of(NUMBERS, BINS, PAIRS, st.text(max_size=5)))
    tree = json.loads(a_window(1).to_json())
    tree["inputs"] = {
        "image": {
            "moments": {"n": 1, "mean": 0.5, "squares": 0.0, "low": 0, "high": 1},
            "values": tree["distance"],
        }
    }
    tree = changed(tree, place, value)
    body = json.dumps({"schema": 1, "device": "d", "status": {}, "reports": [], "windows": [tree]}).encode()
    found = quickly_read(body)
    try:
        window = Window.from_json(json.dumps(tree))
    except ContractError:
        assert found is None
        return
    if found is not None:
        assert Window.from_json(json.dumps(found["windows"][0])) == window


def test_the_quick_reader_takes_what_agents_send():
    assert quickly_read(a_body("kitchen-1", a_window(1), a_window(2, live=RELEASE))) is not None


def test_windows_are_kept_packed(tmp_path):
    (packed,) = read_post(a_body("kitchen-1", a_window(1)), windows=1).windows
    assert Window.from_json(zlib.decompress(packed.document)) == a_window(1)
    assert len(packed.document) < len(a_window(1).to_json()) / 2


# Evidence


def test_a_status_shows_that_a_device_took_the_release_and_that_it_does_well(fleet):
    add_rollout(fleet)
    device, _ = enrolled(fleet, "kitchen-1", region="eu")
    began_s = int(fleet.now())
    take(fleet, device, a_body("kitchen-1", candidate=RELEASE, phase="fetch"))
    assert (shown(fleet)["accepted_s"], shown(fleet)["committed_s"]) == (began_s, 0)
    take(moved(fleet, 10), device, a_body("kitchen-1", live=RELEASE, phase="probation"))
    assert (shown(fleet)["committed_s"], shown(fleet)["heard_s"]) == (0, began_s + 10)
    take(moved(fleet, 20), device, a_body("kitchen-1", live=RELEASE, phase="idle"))
    take(moved(fleet, 30), device, a_body("kitchen-1", live=RELEASE, phase="idle"))
    found = shown(fleet)
    assert (found["accepted_s"], found["committed_s"], found["failed"]) == (began_s, began_s + 20, "")
    assert found["labels"] == {"region": "eu"}


@pytest.mark.parametrize(("kind", "reason", "failed"), [
    ("refused", "too_slow", "too_slow"), ("rolled_back", "crash_loop", "crash_loop"),
    ("rolled_back", "", "rolled_back"),
    ("refused", "withdrawn", ""), ("damaged", "rotten", ""), ("committed", "", ""),
])  # fmt: skip
def test_a_report_says_why_a_device_gave_a_release_up(fleet, kind, reason, failed):
    add_rollout(fleet)
    device, _ = enrolled(fleet, "kitchen-1")
    take(fleet, device, a_body("kitchen-1", reports=(a_report(1, kind, reason),)))
    found = shown(fleet)
    assert found["failed"] == failed
    assert bool(found["committed_s"]) == (kind == "committed")


def test_the_first_reason_stays_and_a_report_that_was_lost_is_in_the_status(fleet):
    add_rollout(fleet)
    device, _ = enrolled(fleet, "kitchen-1")
    take(fleet, device, a_body("kitchen-1", failed={RELEASE: "errors"}))
    take(fleet, device, a_body("kitchen-1", reports=(a_report(1, "refused", "slow"),)))
    assert shown(fleet)["failed"] == "errors"


def test_what_is_no_rollouts_leaves_no_evidence(fleet):
    add_rollout(fleet)
    device, _ = enrolled(fleet, "kitchen-1")
    take(fleet, device, a_body("kitchen-1", live=OTHER, reports=(a_report(1, "refused", "slow", OTHER),)))
    assert count(fleet, evidence) == 0


def test_errors_are_of_the_fleet(tmp_path):
    with pytest.raises(FleetError, match="way out"):
        read_post(b"{}", windows=1)
