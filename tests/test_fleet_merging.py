"""Windows are counted once, whoever merges and whoever dies in between; and gates are given what the devices showed."""

from __future__ import annotations

import json
import math
import random
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import func, insert, select, update

from edgekit.fleet.context import Fleet
from edgekit.fleet.errors import UnavailableError
from edgekit.fleet.identity.access import Device
from edgekit.fleet.identity.enrolment import forget
from edgekit.fleet.rules.evidence import Evidence, Observation
from edgekit.fleet.rules.gates import Limits
from edgekit.fleet.rules.rollouts import LIVE, Plan, Rollout, bound_of
from edgekit.fleet.storage.tables import devices, evidence, looks, minutes, windows
from edgekit.fleet.windows import merging
from edgekit.fleet.windows.belonging import MOST_VALUES, stage_of, values_of
from edgekit.fleet.windows.figures import MAX_INPUTS, MAX_PAIRS, Judged, Shown, Sum, unpacked
from edgekit.fleet.windows.ingest import take
from edgekit.fleet.windows.merging import cohort_size, evidence_of, merge
from edgekit.fleet.windows.observed import TOTAL
from edgekit_runtime.policies import BUCKETS, bucket_of
from edgekit_runtime.sketches import FIRST_BIN, LAST_BIN, MAX_COUNT, Moments, Sketch
from edgekit_runtime.windows import Counts, Drift, Figures, Noise, Side, Window
from support.served_fleet import (
    ADA,
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

DAY_S = 86400
DEVICE = Device("", "stable", {})


@pytest.fixture(params=["sqlite", "postgresql"])
def fleet(request, tmp_path) -> Iterator[Fleet]:
    with a_fleet(tmp_path, request.param) as found:
        yield found


@pytest.fixture
def small(tmp_path) -> Iterator[Fleet]:
    with a_fleet(tmp_path) as found:
        yield found


def told(fleet: Fleet, name: str, *posted: Any, labels: dict[str, str] | None = None, **status: Any) -> None:
    """A device says something; it enrols first where it is new."""
    with fleet.database.reading() as connection:
        row = connection.execute(select(devices.c.id).where(devices.c.id == name)).first()
    device = enrolled(fleet, name, **(labels or {}))[0] if row is None else replace(DEVICE, id=name)
    reports = tuple(each for each in posted if isinstance(each, dict))
    take(
        fleet,
        device,
        a_body(name, *(each for each in posted if not isinstance(each, dict)), reports=reports, **status),
    )


def drain(fleet: Fleet, limit: int = 100) -> int:
    total = 0
    while (done := merge(fleet, "me", limit=limit)) > 0:
        total += done
    return total


def looked(fleet: Fleet, rollout: Rollout) -> Evidence:
    with fleet.database.reading() as connection:
        return evidence_of(connection, rollout, fleet.now(), fleet.settings)


def summed(fleet: Fleet, part: str = "") -> tuple[int, Figures]:
    """All minutes of a part of the fleet together."""
    figures, total = Figures(), 0
    with fleet.database.reading() as connection:
        for row in connection.execute(select(minutes).where(minutes.c.slice == part)):
            figures, total = figures.merged(unpacked(row.figures).figures), total + row.windows
    return total, figures


# Counted once


def test_windows_are_added_up_by_device_and_by_minute_and_part(fleet):
    add_rollout(fleet)
    told(fleet, "eu-1", a_window(1), a_window(2), labels={"region": "eu"})
    told(moved(fleet, 60), "us-1", a_window(1, compared=30), labels={"region": "us"})
    assert drain(fleet) == 3
    assert drain(fleet) == 0
    with fleet.database.reading() as connection:
        rows = {row.device: row for row in connection.execute(select(evidence))}
        places = connection.execute(select(minutes.c.minute).where(minutes.c.slice == "")).all()
    assert (rows["eu-1"].compared, rows["us-1"].compared) == (100, 30)
    assert Shown.from_bytes(rows["eu-1"].figures).counts.compared == 100
    assert len(places) == 2
    total, figures = summed(fleet)
    assert (total, figures.counts.compared, figures.confusion) == (3, 130, {("cat", "dog"): 3})
    assert summed(fleet, "region=eu")[1].counts.compared == 100
    assert summed(fleet, TOTAL) == (total, figures)


def test_batches_of_any_size_come_to_the_same(small, tmp_path):
    add_rollout(small)
    for number in range(7):
        told(small, f"d{number % 3}", *(a_window(number * 10 + key, compared=5 + key) for key in range(3)))
    assert drain(small, limit=4) == 21
    once = summed(small)
    with small.database.writing() as connection:
        connection.execute(update(windows).values(merged=False))
        for table in (evidence, minutes):
            connection.execute(table.delete())
    assert drain(small, limit=1000) == 21
    assert summed(small) == once


def test_servers_that_merge_at_the_same_time_count_each_window_once(fleet):
    add_rollout(fleet)
    for number in range(6):
        told(fleet, f"d{number}", *(a_window(key) for key in range(5)))
    stop = threading.Event()

    def act(holder: str) -> None:
        while not stop.is_set():
            try:
                merge(fleet, holder, limit=4)
            except UnavailableError:
                continue
            # The lease is given back in the middle, so that all of them come to work.
            if random.random() < 0.5:
                fleet.database.release_lease(merging.LEASE, holder)

    threads = [threading.Thread(target=act, args=(f"server-{number}",)) for number in range(3)]
    for each in threads:
        each.start()
    while True:
        with fleet.database.reading() as connection:
            if not connection.scalar(
                select(func.count()).select_from(windows).where(windows.c.merged.is_(False))
            ):
                break
    stop.set()
    for each in threads:
        each.join()
    assert summed(fleet)[0] == 30
    assert summed(fleet)[1].counts.compared == 30 * 50


def test_who_lost_the_lease_while_it_added_up_writes_nothing(fleet, monkeypatch):
    add_rollout(fleet)
    told(fleet, "d1", a_window(1))
    planned = merging._planned

    def slow(connection: Any, *rest: Any) -> Any:
        found = planned(connection, *rest)
        fleet.database.release_lease(merging.LEASE, "slow")
        assert fleet.database.lease(merging.LEASE, "quick", 60)
        return found

    monkeypatch.setattr(merging, "_planned", slow)
    assert merge(fleet, "slow") == 0
    monkeypatch.undo()
    assert merge(fleet, "slow") == 0
    assert merge(fleet, "quick") == 1
    assert summed(fleet)[0] == 1


def test_a_merger_that_dies_before_its_commit_has_counted_nothing(fleet, monkeypatch):
    add_rollout(fleet)
    told(fleet, "d1", a_window(1))

    def dies(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(merging, "upsert", dies)
    with pytest.raises(KeyboardInterrupt):
        merge(fleet, "me")
    monkeypatch.undo()
    assert (count(fleet, evidence), count(fleet, minutes)) == (0, 0)
    assert drain(fleet) == 1
    assert summed(fleet)[1].counts.compared == 50


def test_a_device_that_is_forgotten_while_its_windows_are_added_up_does_not_come_back(small, monkeypatch):
    add_rollout(small)
    told(small, "d1", a_window(1))
    told(small, "d2", a_window(1))
    planned = merging._planned

    def slow(connection: Any, *rest: Any) -> Any:
        found = planned(connection, *rest)
        monkeypatch.undo()
        threading.Thread(target=forget, args=(small, ADA, "d1")).run()
        return found

    monkeypatch.setattr(merging, "_planned", slow)
    assert merge(small, "me") == 0
    assert drain(small) == 1
    with small.database.reading() as connection:
        assert list(connection.scalars(select(evidence.c.device))) == ["d2"]


def test_windows_of_no_rollout_are_done_with_and_unread(small):
    told(small, "d1", a_window(1, candidate=OTHER), a_window(2, live=OTHER, candidate=OTHER))
    assert drain(small) == 2
    assert (count(small, evidence), count(small, minutes)) == (0, 0)


def test_the_newest_rollout_of_a_release_has_its_windows(small):
    add_rollout(small, name="old", state="aborted")
    add_rollout(moved(small, 10), name="new")
    told(small, "d1", a_window(1))
    drain(small)
    with small.database.reading() as connection:
        assert set(connection.scalars(select(evidence.c.rollout))) == {"new"}


def test_a_merger_on_its_thread_merges_and_stops(small):
    add_rollout(small)
    told(small, "d1", a_window(1))
    merger = merging.repeated(replace(small, settings=replace(small.settings, merge_every_s=0.05)), "me")
    merger.start()
    for _ in range(1000):
        if summed(small)[0]:
            break
        threading.Event().wait(0.01)
    merger.stop()
    assert summed(small)[0] == 1
    assert small.database.lease(merging.LEASE, "another", 1)


# Evidence


def test_what_a_device_shows_is_frozen_when_it_is_enough(small):
    rollout = add_rollout(small, Plan(limits=Limits(samples=100)))
    told(small, "d1", a_window(1, compared=60, agreed=60), candidate=RELEASE, phase="shadow")
    drain(small)
    assert len(looked(small, rollout).now) == 0
    told(small, "d1", a_window(2, compared=60, agreed=60), candidate=RELEASE, phase="shadow")
    drain(small)
    told(small, "d1", a_window(3, compared=120, agreed=0), candidate=RELEASE, phase="shadow")
    drain(small)
    found = looked(small, rollout)
    assert found.first.agreement.tolist() == [1.0]
    assert found.now.agreement.tolist() == [0.5]
    assert (found.meant, found.taken, found.samples) == (1, 1, 240)
    assert found.outcomes.tolist() == [False]
    assert found.live_confidence.n == 6


def test_devices_are_in_the_order_in_which_they_had_shown_enough(small):
    rollout = add_rollout(small, Plan(limits=Limits(samples=50)))
    for number, name in enumerate(("d3", "d1", "d2")):
        told(small, name, a_window(1, compared=100, agreed=90 + number), labels={"region": name})
        drain(small)
    found = looked(small, rollout)
    assert found.first.agreement.round(2).tolist() == [0.9, 0.91, 0.92]
    assert found.slices["region=d1"].members.tolist() == [False, True, False]
    assert found.slices["region=d1"].meant == 1


@pytest.mark.parametrize(("said", "reason"), [
    ({"posted": (a_report(9, "refused", "too_slow"),)}, "too_slow"),
    ({"posted": (a_report(9, "rolled_back", "nan"),)}, "nan"),
    ({"posted": (a_window(9, died=1),)}, "died"),
    ({"posted": (a_window(9, over_memory=2),)}, "over_memory"),
])  # fmt: skip
def test_a_device_on_which_the_release_does_not_run_has_failed(small, said, reason):
    rollout = add_rollout(small)
    told(small, "d1", a_window(1, compared=200, agreed=200), candidate=RELEASE, phase="shadow")
    told(small, "d1", *said["posted"])
    drain(small)
    found = looked(small, rollout)
    assert found.outcomes.tolist() == [True]
    assert found.reasons == {reason: 1}


def test_a_device_that_falls_silent_with_the_release_has_failed_and_one_without_has_not(small):
    rollout = add_rollout(small, Plan(patience_s=DAY_S))
    told(small, "with", candidate=RELEASE, phase="shadow")
    told(small, "without")
    for hours in range(49):
        later = moved(small, hours * 3600)
        told(later, "other", candidate=RELEASE, phase="shadow")
        look_at(later, rollout, gap_s=100, looks_=36)
    found = looked(moved(small, 48 * 3600), rollout)
    assert found.reasons == {"silent": 1}
    assert found.heard[0] == 1


def look_at(fleet: Fleet, rollout: Rollout, *, gap_s: int, looks_: int) -> None:
    now_s = int(fleet.now())
    rows = [
        {"rollout": rollout.id, "at_s": now_s + number * gap_s, "stage": 0, "phase": "shadow",
         "bound": 1, "verdicts": [], "counts": {}}
        for number in range(looks_)
    ]  # fmt: skip
    with fleet.database.writing() as connection:
        connection.execute(insert(looks), rows)


def test_nobody_is_silent_because_no_server_looked(small):
    rollout = add_rollout(small, Plan(patience_s=DAY_S))
    told(small, "d1", candidate=RELEASE, phase="shadow")
    look_at(small, rollout, gap_s=10, looks_=2)
    later = moved(small, 5 * DAY_S)
    look_at(later, rollout, gap_s=10, looks_=2)
    found = looked(later, rollout)
    assert found.outcomes.tolist() == []
    assert found.meant == 1


def test_where_it_serves_a_device_has_done_well_once_it_committed(small):
    rollout = add_rollout(small, Plan(mode="canary", limits=Limits(samples=100)), phase=LIVE)
    told(small, "d1", a_window(1, live=BASELINE, candidate=BASELINE))
    told(small, "d2")
    told(small, "d1", a_window(2, live=RELEASE, candidate=RELEASE, errors=5), live=RELEASE, phase="probation")
    drain(small)
    found = looked(small, rollout)
    assert (found.meant, found.taken, found.outcomes.tolist()) == (2, 1, [])
    assert found.now.errors.tolist() == [0.01]
    assert not math.isnan(found.now.latency_ratio[0])
    told(small, "d1", live=RELEASE, phase="idle")
    assert looked(small, rollout).outcomes.tolist() == [False]
    told(small, "d1", a_report(7, "rolled_back", "crash_loop"))
    assert looked(small, rollout).outcomes.tolist() == [True]


def test_evidence_is_of_the_devices_within_the_bound_of_the_cohort_that_were_heard_of(small):
    plan = Plan(cohort='region == "eu"', stages=(50.0, 100.0))
    rollout = add_rollout(small, plan, shadow_bound=BUCKETS // 2)
    for number in range(20):
        told(small, f"eu-{number}", a_window(1), labels={"region": "eu"}, candidate=RELEASE, phase="shadow")
        told(small, f"us-{number}", labels={"region": "us"})
    told(moved(small, -10 * DAY_S), "eu-old", labels={"region": "eu"})
    drain(small)
    inside = [number for number in range(20) if bucket_of("salt", f"eu-{number}") < BUCKETS // 2]
    found = looked(small, rollout)
    assert (found.meant, found.taken) == (len(inside), len(inside))
    assert found.heard == (len(inside), 20 - len(inside))
    assert found.share == 0.5
    with small.database.reading() as connection:
        assert cohort_size(connection, rollout, small.now(), small.settings) == 20


# Pure


@given(st.integers(0, BUCKETS - 1))
def test_the_stage_of_a_bucket_is_the_first_that_reaches_it(bucket):
    rollout = Rollout("r", "m", "c", RELEASE, BASELINE, "s", Plan(stages=(1.0, 10.0, 50.0, 100.0)))
    stage = stage_of(rollout, bucket)
    assert bucket < bound_of(rollout.plan.stages[stage])
    assert stage == 0 or bucket >= bound_of(rollout.plan.stages[stage - 1])


def test_labels_with_many_values_are_no_parts_of_the_fleet():
    found = values_of([{"region": "eu", "site": str(number)} for number in range(MOST_VALUES + 1)])
    assert found == {"region"}


@given(st.floats(0, 1), st.one_of(st.floats(0.1, 10), st.just(math.nan)), st.integers(0, 10**9))
def test_what_is_kept_of_an_observation_comes_back(share, ratio, samples):
    one = Observation(share, share, share, ratio, samples)
    back = Judged.from_tree(Judged(3, one, one).to_tree())
    assert repr(back) == repr(Judged(3, one, one))


@given(st.lists(st.sampled_from(["pair", "serving", "before"]), max_size=6))
def test_what_a_device_shows_comes_back_from_bytes(parts):
    shown = Shown()
    figures = Figures(
        counts=Counts(seen=10, compared=5, agreed=4), live=Side(Sketch.of(1.0)), confusion={("a", "ü"): 1}
    )
    for part in parts:
        shown.add(part, tree(figures))
    back = Shown.from_bytes(shown.to_bytes())
    for part in ("pair", "serving", "before"):
        assert getattr(back, part).to_figures() == getattr(shown, part).to_figures().shortened(0)
    assert repr(back.observations()) == repr(shown.observations())
    assert back.counts.compared == 5 * parts.count("pair")
    assert back.before.to_figures().counts == Counts()


# Sums

COUNT = st.one_of(st.integers(0, 20), st.integers(MAX_COUNT - 2, MAX_COUNT))
SOME = st.one_of(st.integers(1, 20), st.integers(MAX_COUNT - 2, MAX_COUNT))
BINS = st.dictionaries(
    st.one_of(st.integers(-3, 3), st.sampled_from([FIRST_BIN, LAST_BIN])), SOME, max_size=4
)
SKETCHES = st.builds(Sketch, BINS, COUNT, BINS)
SIDES = st.builds(Side, SKETCHES, SKETCHES)
LABELS = st.sampled_from(["a", "b", "ü", ""])
NUMBERS = st.floats(-1e6, 1e6)
MOMENTS = st.just(Moments()) | st.builds(
    Moments, st.integers(1, 50), NUMBERS, st.floats(0, 1e9), NUMBERS, NUMBERS
)


@st.composite
def drawn_figures(draw: Any) -> Figures:
    compared, agreed = sorted((draw(COUNT), draw(COUNT)), reverse=True)
    tried, same = sorted((draw(COUNT), draw(COUNT)), reverse=True)
    return Figures(
        Counts(seen=draw(COUNT), compared=compared, agreed=agreed, died=draw(COUNT)),
        draw(SKETCHES),
        draw(st.dictionaries(st.tuples(LABELS, LABELS), SOME, max_size=4)),
        draw(COUNT),
        draw(SIDES),
        draw(SIDES),
        Noise(tried, same, draw(SKETCHES), draw(SKETCHES)),
        draw(st.dictionaries(st.sampled_from(["image", "sound"]), st.builds(Drift, MOMENTS, SKETCHES))),
    )


def tree(figures: Figures, seconds: float = 1.0) -> Any:
    """As a device posts it."""
    window = Window("0" * 32, BASELINE, RELEASE, "classification", 1, seconds, figures)
    return json.loads(window.to_json())


@settings(max_examples=25)
@given(st.lists(drawn_figures(), max_size=5))
def test_a_sum_is_what_its_figures_merge_to(several):
    found, merged = Sum(), Figures()
    for each in several:
        found.add(tree(each))
        merged = merged.merged(each)
    assert found.to_figures() == merged
    assert (found.windows, found.seconds) == (len(several), float(len(several)))


@settings(max_examples=25)
@given(drawn_figures(), drawn_figures(), st.integers(1, 9))
def test_a_sum_adds_sums_in_any_order_and_changes_none_of_them(one, other, windows):
    sums = []
    for each in ((one, other), (other, one)):
        found = Sum()
        for figures in each:
            part = Sum()
            part.add(tree(figures), windows)
            found.add(part.tree(), part.windows)
            assert part.to_figures() == figures
        sums.append(found)
    assert sums[0].to_figures() == sums[1].to_figures() == one.merged(other)
    assert sums[0].windows == 2 * windows


@settings(max_examples=25)
@given(st.lists(drawn_figures(), min_size=1, max_size=4))
def test_a_sum_is_kept_as_a_window_that_keeps_the_contract(several):
    found = Sum()
    for each in several:
        found.add(tree(each))
    window = unpacked(found.to_bytes(live=BASELINE, candidate=RELEASE, began_s=60))
    assert window.figures == found.to_figures()
    assert (window.live, window.candidate, window.began_s) == (BASELINE, RELEASE, 60)


def test_a_device_that_makes_up_names_and_counts_leaves_a_sum_that_can_be_read():
    wide = Sketch(dict.fromkeys(range(FIRST_BIN, LAST_BIN + 1), MAX_COUNT), MAX_COUNT)
    found = Sum()
    for number in range(100):
        figures = Figures(
            confusion={(chr(0x10000 + number) * 4096, f"{label}"): MAX_COUNT for label in range(8)}
            | {(f"{number}", f"{label}"): MAX_COUNT for label in range(8)},
            other_pairs=MAX_COUNT,
            inputs={f"{number} " + chr(0x10000) * 4000: Drift(Moments(1), wide)},
        )
        found.add(tree(figures, 1e150))
    window = unpacked(found.to_bytes(live=BASELINE, candidate=RELEASE, began_s=0))
    assert len(window.figures.confusion) == MAX_PAIRS
    assert len(window.figures.inputs) == MAX_INPUTS
    assert window.figures.other_pairs == MAX_COUNT
    shown = Shown()
    shown.add("pair", found.tree())
    assert Shown.from_bytes(shown.to_bytes()).counts == Counts()
