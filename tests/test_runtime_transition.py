"""The version manager's decisions: a table of what each event does, and what holds over random histories."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit_runtime.events import (
    DISK,
    FAULTS,
    MEMORY,
    PROCESS,
    RELEASE,
    Action,
    Activated,
    Begun,
    Done,
    Failed,
    Health,
    Left,
    Limits,
    LoadFailed,
    Loading,
    MarkedGood,
    Offered,
    Pinned,
    Recovered,
    RolledBack,
    Sent,
)
from edgekit_runtime.state import (
    COMMIT,
    FETCH,
    IDLE,
    MAX_FAILED,
    MAX_REPORTS,
    PHASES,
    PROBATION,
    ROLLBACK,
    SHADOW,
    STAGE,
    UNKNOWN,
    VERIFY,
    Process,
    Report,
    State,
    from_json,
    to_json,
)
from edgekit_runtime.transition import pending, transition

OLD, LIVE, NEW, OTHER = ("0" * 64, "1" * 64, "2" * 64, "3" * 64)
SERVING = State(live=LIVE, last_good=OLD)
ON_TRIAL = State(phase=PROBATION, live=NEW, last_good=LIVE)
P1, P2, P3, P4 = (Process(pid, 5, "boot") for pid in (1, 2, 3, 4))


def after(state: State, *events: Any, limits: Limits | None = None) -> State:
    for event in events:
        state = transition(state, event, 1000, limits or Limits()).state
    return state


def coming(phase: str, *, shadow: bool = False) -> State:
    return replace(SERVING, phase=phase, candidate=NEW, shadow=shadow)


def test_an_update_goes_through_its_phases_to_probation_and_is_committed_when_it_serves_well() -> None:
    state, seen = SERVING, []
    for event in (Offered(NEW), Done(FETCH), Done(VERIFY), Begun(STAGE), Done(STAGE)):
        step = transition(state, event, 0)
        state = step.state
        seen.append((state.phase, [action.phase for action in step.actions], state.live == LIVE))
    assert seen == [
        (FETCH, [FETCH], True),
        (VERIFY, [VERIFY], True),
        (STAGE, [STAGE], True),
        (STAGE, [STAGE], True),
        (PROBATION, [], False),
    ]
    assert (state.live, state.last_good, state.candidate) == (NEW, LIVE, None)
    state = after(state, Loading(P1), Health(NEW, 299.0, 1000))
    assert state.phase == PROBATION
    state = after(state, Health(NEW, 300.0, 1000))
    assert (state.phase, state.live, state.last_good) == (COMMIT, NEW, LIVE)
    assert state.reports == (Report("committed", NEW, "", 1000),)
    assert after(state, Done(COMMIT)).phase == IDLE


def test_with_a_shadow_the_candidate_runs_beside_until_it_is_activated() -> None:
    state = after(SERVING, Offered(NEW, shadow=True), Done(FETCH), Done(VERIFY), Done(STAGE))
    assert (state.phase, state.live, state.candidate) == (SHADOW, LIVE, NEW)
    assert pending(state) == (Action(SHADOW, NEW),)
    for event in (Activated(), Done(SHADOW)):
        assert (after(state, event).phase, after(state, event).live) == (PROBATION, NEW)


def test_without_a_live_version_there_is_nothing_to_run_beside() -> None:
    state = after(State(), Offered(NEW, shadow=True), Done(FETCH), Done(VERIFY), Done(STAGE))
    assert (state.phase, state.live, state.last_good) == (PROBATION, NEW, None)


@pytest.mark.parametrize(
    ("state", "event", "refused"),
    [
        (coming(FETCH), Offered(OTHER), "busy"),
        (ON_TRIAL, Offered(OTHER), "busy"),
        (SERVING, Offered(LIVE), "already_live"),
        (replace(SERVING, pinned=True), Offered(NEW), "pinned"),
        (replace(SERVING, failed={NEW: "nan"}), Offered(NEW), "failed_before"),
        (replace(SERVING, rollbacks=5), Offered(NEW), "rolled_back_too_often"),
        (SERVING, Done(FETCH), "not_now"),
        (SERVING, Done(IDLE), "not_now"),
        (ON_TRIAL, Done(PROBATION), "not_now"),
        (coming(STAGE), Done(FETCH), "not_now"),
        (coming(STAGE), Failed(VERIFY, "damaged"), "not_now"),
        (ON_TRIAL, Failed(PROBATION, "damaged"), "not_now"),
        (SERVING, Begun(STAGE), "not_now"),
        (coming(STAGE), Activated(), "not_now"),
        (SERVING, Loading(P1), "not_now"),
        (ON_TRIAL, Left(P1), "not_now"),
        (SERVING, LoadFailed(OTHER, "load"), "not_now"),
        (SERVING, Health(LIVE, 1e9, 10**9, errors=10**9), "not_now"),
        (ON_TRIAL, Health(LIVE, 1e9, 10**9, errors=10**9), "not_now"),
        (ON_TRIAL, Health(NEW, 1e9, 19, errors=19), "not_yet"),
        (ON_TRIAL, Health(NEW, 1.0, 20, errors=1, nans=1), "not_yet"),
        (ON_TRIAL, Health(NEW, 1e9, 99), "not_yet"),
        (ON_TRIAL, Health(NEW, 299.9, 10**9), "not_yet"),
        (SERVING, MarkedGood(LIVE), "not_now"),
        (ON_TRIAL, MarkedGood(LIVE), "not_now"),
        (State(live=LIVE), RolledBack(), "nothing_to_return_to"),
        (State(), RolledBack(), "nothing_to_return_to"),
    ],
)
def test_what_does_not_fit_changes_nothing_and_says_why(state: State, event: Any, refused: str) -> None:
    step = transition(state, event, 0)
    assert (step.state, step.refused) == (state, refused)


@pytest.mark.parametrize("phase", [FETCH, VERIFY, STAGE, SHADOW])
def test_a_candidate_that_fails_on_its_way_never_touches_what_is_live(phase: str) -> None:
    state = after(coming(phase), Failed(phase, "golden"))
    assert (state.phase, state.live, state.last_good, state.candidate) == (IDLE, LIVE, OLD, None)
    assert state.failed == {NEW: "golden"}
    assert state.reports == (Report("refused", NEW, "golden", 1000),)
    state = after(coming(phase), Failed(phase, "network", passing=True))
    assert state.failed == {}
    assert after(state, Offered(NEW)).phase == FETCH


def test_a_candidate_that_takes_the_device_down_again_and_again_is_dropped() -> None:
    state = coming(STAGE)
    for tries in (1, 2, 3):
        state = after(state, Recovered(), Begun(STAGE))
        assert (state.phase, state.tries) == (STAGE, tries)
    state = after(state, Recovered(), Begun(STAGE))
    assert (state.phase, state.live, state.failed) == (IDLE, LIVE, {NEW: "stage_never_ended"})


def test_processes_that_die_of_a_version_in_probation_take_it_back_and_those_that_live_do_not() -> None:
    alive = after(ON_TRIAL, *(Loading(each) for each in (P1, P2, P3, P4)))
    assert (alive.phase, alive.crashes, len(alive.attempts)) == (PROBATION, 0, 4)
    state = after(ON_TRIAL, Loading(P1), Loading(P2, frozenset({P1})), Loading(P3, frozenset({P1, P2})))
    assert (state.phase, state.crashes, state.attempts) == (PROBATION, 2, (P3,))
    state = after(state, Loading(P4, frozenset({P3})))
    assert (state.phase, state.live, state.failed) == (ROLLBACK, LIVE, {NEW: "crash_loop"})
    assert state.reports == (Report("rolled_back", NEW, "crash_loop", 1000),)


def test_a_process_that_ended_as_it_should_did_not_die_of_the_version() -> None:
    state = after(ON_TRIAL, Loading(P1), Left(P1), Loading(P2, frozenset({P1})))
    assert (state.crashes, state.attempts) == (0, (P2,))


@pytest.mark.parametrize(
    ("health", "reason"),
    [
        (Health(NEW, 1.0, 20, errors=2), "errors"),
        (Health(NEW, 1.0, 1000, nans=11), "nan"),
        (Health(NEW, 1e9, 1000, slow=501), "slow"),
    ],
)
def test_a_version_that_does_badly_is_taken_back(health: Health, reason: str) -> None:
    state = after(ON_TRIAL, health)
    assert (state.phase, state.live, state.failed) == (ROLLBACK, LIVE, {NEW: reason})
    state = after(state, Done(ROLLBACK))
    assert (state.phase, state.live, state.rollbacks) == (IDLE, LIVE, 1)
    assert transition(state, Offered(NEW), 0).refused == "failed_before"
    assert after(state, Offered(NEW, forced=True)).phase == FETCH


def test_the_first_version_of_all_has_nothing_to_return_to_and_is_given_up() -> None:
    state = after(State(phase=PROBATION, live=NEW), Health(NEW, 1.0, 20, errors=20))
    assert (state.phase, state.live, state.failed) == (ROLLBACK, None, {NEW: "errors"})


def test_after_a_commit_only_a_word_from_outside_or_damage_takes_a_version_back() -> None:
    done = after(ON_TRIAL, MarkedGood(NEW), Done(COMMIT))
    for event in (Health(NEW, 1.0, 100, errors=100), Failed(COMMIT, "report"), Loading(P1), Sent(())):
        assert after(done, event).live == NEW
    state = after(done, RolledBack())
    assert (state.phase, state.live, state.failed) == (ROLLBACK, LIVE, {NEW: "asked_for"})


def test_a_damaged_file_says_nothing_of_the_release() -> None:
    state = after(SERVING, LoadFailed(LIVE, "damaged", DISK))
    assert (state.live, state.failed) == (OLD, {})
    state = after(coming(STAGE), LoadFailed(NEW, "damaged", DISK))
    assert (state.phase, state.candidate, state.failed) == (IDLE, None, {})
    state = after(SERVING, LoadFailed(OLD, "damaged", DISK))
    assert (state.live, state.last_good) == (LIVE, None)


@pytest.mark.parametrize(
    ("state", "fault", "live", "failed"),
    [
        (ON_TRIAL, RELEASE, LIVE, {NEW: "code"}),
        (ON_TRIAL, DISK, LIVE, {}),
        (ON_TRIAL, MEMORY, LIVE, {}),
        (ON_TRIAL, PROCESS, NEW, {}),
        (SERVING, RELEASE, LIVE, {}),
        (SERVING, DISK, OLD, {}),
        (SERVING, MEMORY, LIVE, {}),
        (SERVING, PROCESS, LIVE, {}),
        (State(phase=PROBATION, live=NEW), RELEASE, None, {NEW: "code"}),
        (State(phase=PROBATION, live=NEW), DISK, NEW, {}),
        (State(phase=PROBATION, live=NEW), MEMORY, NEW, {}),
        (State(phase=PROBATION, live=NEW), PROCESS, NEW, {}),
        (State(live=LIVE), RELEASE, LIVE, {}),
        (State(live=LIVE), DISK, LIVE, {}),
    ],
)
def test_what_one_process_cannot_load_is_taken_from_all_only_where_it_is_to_blame(
    state: State, fault: str, live: str | None, failed: dict[str, str]
) -> None:
    assert state.live is not None
    found = after(state, LoadFailed(state.live, "code", fault))
    assert (found.live, found.failed) == (live, failed)
    kind = "not_loaded" if live == state.live else "rolled_back"
    assert found.reports == (Report(kind, state.live, "code", 1000),)
    assert after(found, LoadFailed(state.live, "code", fault)) == found, "it is told once"


def test_a_version_that_was_kept_can_be_rolled_back_before_the_rest_is_cleared_away() -> None:
    kept = after(ON_TRIAL, MarkedGood(NEW))
    assert kept.phase == COMMIT
    state = after(kept, RolledBack())
    assert (state.phase, state.live) == (ROLLBACK, LIVE)


def test_pinned_takes_nothing_but_what_is_forced() -> None:
    state = after(SERVING, Pinned(on=True))
    assert transition(state, Offered(NEW), 0).refused == "pinned"
    assert after(state, Offered(NEW, forced=True)).phase == FETCH
    assert after(state, Pinned(on=False), Offered(NEW)).phase == FETCH


def test_reports_that_the_server_has_are_forgotten_and_no_others() -> None:
    reports = tuple(Report("refused", NEW, "nan", at) for at in range(3))
    state = replace(SERVING, reports=reports)
    sent = Sent((reports[0], reports[2], Report("refused", OTHER, "nan", 1)))
    assert after(state, sent).reports == (reports[1],)
    assert after(state, Sent(())).reports == reports


def test_what_happens_again_and_again_is_reported_once() -> None:
    state = SERVING
    for at in range(5):
        state = state.told(Report("refused", NEW, "no_room", at))
    assert [(each.reason, each.at_s) for each in state.reports] == [("no_room", 0)]
    assert len(state.told(Report("refused", NEW, "golden", 9)).reports) == 2


def test_a_version_that_the_fleet_withdraws_may_come_again() -> None:
    state = after(ON_TRIAL, RolledBack("withdrawn", passing=True))
    assert (state.phase, state.live, state.failed) == (ROLLBACK, LIVE, {})
    assert state.reports[-1].reason == "withdrawn"
    state = after(coming(SHADOW), RolledBack("withdrawn", passing=True))
    assert (state.phase, state.candidate, state.failed) == (IDLE, None, {})


@pytest.mark.parametrize("event", [Recovered(), Offered(OTHER), Loading(P1), Done("some day")])
def test_a_phase_of_another_version_of_this_package_is_rolled_back(event: Any) -> None:
    state = after(State(phase=UNKNOWN, live=NEW, candidate=OTHER, last_good=LIVE), event)
    assert (state.phase, state.live, state.candidate) == (ROLLBACK, LIVE, None)
    only = after(State(phase=UNKNOWN, live=NEW, candidate=OTHER), event)
    assert (only.phase, only.live, only.candidate) == (ROLLBACK, NEW, None)


@pytest.mark.parametrize("now", [0, 1, 2**31, 2**40, -5])
def test_no_decision_hangs_on_the_clock(now: int) -> None:
    for state in (SERVING, ON_TRIAL, *map(coming, (FETCH, VERIFY, STAGE, SHADOW))):
        for event in (Offered(OTHER), Health(NEW, 300, 100), Failed(state.phase, "nan"), RolledBack()):
            there, here = transition(state, event, now).state, transition(state, event, 1000).state
            assert replace(there, reports=()) == replace(here, reports=())


RELEASES = st.sampled_from([OLD, LIVE, NEW, OTHER])
PROCESSES = st.sampled_from([P1, P2, P3, P4])
COUNTS = st.integers(0, 200)
CODES = st.sampled_from(["nan", "load", "golden"])
EVENTS = st.one_of(
    st.builds(Offered, RELEASES, st.booleans(), st.booleans()),
    st.builds(Done, st.sampled_from(PHASES)),
    st.builds(Done, st.sampled_from(PHASES)),
    st.builds(Failed, st.sampled_from(PHASES), CODES, st.booleans()),
    st.builds(Begun, st.sampled_from(PHASES)),
    st.just(Activated()),
    st.builds(Loading, PROCESSES, st.frozensets(PROCESSES)),
    st.builds(Left, PROCESSES),
    st.builds(LoadFailed, RELEASES, CODES, st.sampled_from(FAULTS)),
    st.builds(Health, RELEASES, st.sampled_from([1.0, 1000.0]), COUNTS, COUNTS, COUNTS, COUNTS),
    st.builds(MarkedGood, RELEASES),
    st.builds(RolledBack, st.just("asked_for"), st.booleans()),
    st.builds(Pinned, st.booleans()),
    st.builds(Sent, st.builds(lambda each: (Report("refused", *each, 7),), st.tuples(RELEASES, CODES))),
    st.just(Recovered()),
)


@settings(max_examples=400, deadline=None)
@given(st.lists(EVENTS, max_size=80))
def test_over_any_history_what_serves_has_served_well_or_is_on_trial_with_a_way_back(
    history: list[Any],
) -> None:
    state, good, forced = State(), set[str](), set[str]()
    for event in history:
        step = transition(state, event, 7)
        after_it = step.state
        if step.refused and state.phase != UNKNOWN:
            assert after_it == state
        if isinstance(event, Offered) and event.forced:
            forced.add(event.release)
        if after_it.phase == COMMIT:
            assert after_it.live is not None
            good.add(after_it.live)
        if after_it.phase == PROBATION:
            assert after_it.live is not None
            assert after_it.last_good in good or state.live is None or after_it.last_good is None
        elif after_it.live is not None:
            assert after_it.live in good
        # Something that is good is not lost but by damage to its last copy.
        if state.live in good and after_it.phase == PROBATION and state.phase != PROBATION:
            assert after_it.last_good == state.live
        if after_it.candidate is not None and after_it.candidate in after_it.failed:
            raise AssertionError("a candidate that failed before")
        assert (after_it.candidate is not None) == (after_it.phase in {FETCH, VERIFY, STAGE, SHADOW})
        assert len(after_it.failed) <= MAX_FAILED
        assert len(after_it.reports) <= MAX_REPORTS
        assert after_it.phase in PHASES
        assert len(step.actions) == int(after_it.phase not in {IDLE, PROBATION})
        assert from_json(to_json(after_it)) == after_it
        state = after_it


@settings(max_examples=200, deadline=None)
@given(st.lists(EVENTS, max_size=40))
def test_from_any_state_the_phase_s_own_events_lead_to_rest(history: list[Any]) -> None:
    state = after(State(), *history)
    for _ in range(8):
        if not pending(state):
            break
        state = after(state, Done(state.phase))
    assert state.phase in {IDLE, PROBATION}
