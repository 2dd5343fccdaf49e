"""The agent: does what a signed policy says, whatever the network does, and tells each thing once."""

from __future__ import annotations

import errno
import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit_runtime.agent import loop
from edgekit_runtime.agent.decide import Activate, Decision, GoOn, Install, Leave, Withdraw, decide
from edgekit_runtime.agent.fetcher import METADATA, TARGETS, Fetcher
from edgekit_runtime.agent.loop import Agent, Polled, pause_s
from edgekit_runtime.agent.transport import unreachable
from edgekit_runtime.agent.upload import MOST_REFUSED
from edgekit_runtime.contract import ContractError
from edgekit_runtime.errors import ArtifactError, NetworkError, StoreError
from edgekit_runtime.events import Activated, Done, MarkedGood, Offered, Pinned, RolledBack
from edgekit_runtime.policies import BUCKETS, MAX_POLICY_BYTES, MAX_RULES, Policy, Rule, bucket_of
from edgekit_runtime.runtime import Runtime
from edgekit_runtime.spool import Spool
from edgekit_runtime.state import (
    COMMIT,
    FETCH,
    IDLE,
    PROBATION,
    ROLLBACK,
    SHADOW,
    STAGE,
    VERIFY,
    State,
)
from edgekit_runtime.store import Store
from edgekit_runtime.transition import transition
from edgekit_runtime.trust import Trust
from edgekit_runtime.windows import Counts, Figures, Window
from support.adders import WIDTH, add, adder
from support.fleet import Fleet
from support.releases import Published, publish

DEVICE = "device-17"
OLD, LIVE, NEW, OTHER = (letter * 64 for letter in "abcd")


class Board:
    """A device with an agent, and what it is asked."""

    def __init__(self, path: Path, fleet: Fleet, **settings: Any) -> None:
        self.store = Store(path / "store", quota_bytes=settings.pop("quota_bytes", None))
        self.store.make()
        self.fleet, self.staged = fleet, list[str]()
        self.trust = Trust(
            self.store.trust, metadata_url=METADATA, targets_url=TARGETS, fetcher=Fetcher(fleet),
            **settings,
        )  # fmt: skip
        self.trust.init(fleet.repository.first_root())
        self.refused: dict[str, str] = {}
        self.agent = self.restarted()

    def restarted(self, **more: Any) -> Agent:
        self.agent = Agent(
            self.store, self.trust, self.fleet, device=DEVICE, channel="stable", stage=self._stage, **more
        )
        return self.agent

    def poll(self) -> Polled:
        return self.agent.poll()

    def good(self) -> None:
        self.agent._manager.tell(MarkedGood(self.store.state().live or ""))

    def _stage(self, release: str) -> None:
        self.staged.append(release)
        if release in self.refused:
            raise ArtifactError("no", expected="yes", way_out="none", code=self.refused[release])


@pytest.fixture
def fleet() -> Fleet:
    return Fleet()


@pytest.fixture
def board(tmp_path: Path, fleet: Fleet) -> Board:
    return Board(tmp_path, fleet)


def codes(polled: Polled) -> list[str]:
    return [error.code for error in polled.errors]


def slots(board: Board) -> tuple[str, str | None, str | None]:
    state = board.store.state()
    return state.phase, state.live, state.candidate


# What a policy asks for

BACK, SETTLED, ROLLOUT, BESIDE = (
    Rule(OLD, "s", BUCKETS),
    Rule(LIVE, "s", BUCKETS),
    Rule(NEW, "salt", BUCKETS),
    Rule(NEW, "salt", BUCKETS, "shadow"),
)
AT_REST = State(live=LIVE, last_good=OLD)
COMING = replace(AT_REST, candidate=NEW)
TRIED = State(phase=PROBATION, live=NEW, last_good=LIVE)
FAILED = replace(AT_REST, failed={NEW: "golden"})


@pytest.mark.parametrize(
    ("state", "rules", "decision"),
    [
        # At rest
        (AT_REST, (ROLLOUT, SETTLED), Install(NEW, shadow=False)),
        (AT_REST, (BESIDE, SETTLED), Install(NEW, shadow=True)),
        (AT_REST, (BESIDE,), Install(NEW, shadow=True)),
        (AT_REST, (SETTLED,), Leave("serves")),
        (AT_REST, (SETTLED, ROLLOUT), Leave("serves")),
        (AT_REST, (BACK,), Withdraw()),
        (AT_REST, (replace(BACK, mode="shadow"), SETTLED), Install(OLD, shadow=True)),
        (AT_REST, (), Leave("not_meant")),
        (AT_REST, (replace(ROLLOUT, bound=0), SETTLED), Leave("serves")),
        (AT_REST, (replace(ROLLOUT, cohort='region == "eu"'), SETTLED), Leave("serves")),
        (AT_REST, (replace(ROLLOUT, cohort='region == "us"'), SETTLED), Install(NEW, shadow=False)),
        (FAILED, (ROLLOUT, SETTLED), Leave("failed_before")),
        (FAILED, (BESIDE, SETTLED), Leave("failed_before")),
        (replace(AT_REST, pinned=True), (ROLLOUT,), Leave("pinned")),
        # A halted rollout: its rule is gone, and what it brought serves
        (State(live=NEW, last_good=LIVE), (SETTLED,), Withdraw()),
        (State(live=NEW, last_good=LIVE), (replace(ROLLOUT, bound=0), SETTLED), Withdraw()),
        (State(live=NEW), (SETTLED,), Install(LIVE, shadow=False)),
        (State(live=NEW, last_good=LIVE), (replace(BESIDE, release=OTHER), SETTLED), Withdraw()),
        (State(live=NEW, last_good=LIVE), (BESIDE, SETTLED), Leave("serves")),
        (State(live=NEW, last_good=LIVE), (ROLLOUT, SETTLED), Leave("serves")),
        # A device that comes late: what is settled first, then the shadow
        (State(live=OLD), (BESIDE, SETTLED), Install(LIVE, shadow=False)),
        (State(live=OLD, failed={LIVE: "golden"}), (BESIDE, SETTLED), Install(NEW, shadow=True)),
        # Nothing serves
        (State(), (ROLLOUT, SETTLED), Install(NEW, shadow=False)),
        (State(), (BESIDE, SETTLED), Install(LIVE, shadow=False)),
        (State(), (BESIDE,), Leave("nothing_to_run_beside")),
        (State(phase=FETCH, candidate=LIVE), (BESIDE, SETTLED), GoOn()),
        (State(phase=FETCH, candidate=NEW), (BESIDE, SETTLED), Withdraw()),
        # On its way
        *((replace(COMING, phase=phase), (ROLLOUT, SETTLED), GoOn()) for phase in (FETCH, VERIFY, STAGE)),
        *(
            (replace(COMING, phase=phase), rules, Withdraw())
            for phase in (FETCH, VERIFY, STAGE)
            for rules in ((SETTLED,), (BESIDE, SETTLED), (), (replace(ROLLOUT, release=OTHER),))
        ),
        (replace(COMING, phase=FETCH, shadow=True), (BESIDE, SETTLED), GoOn()),
        (replace(COMING, phase=FETCH, shadow=True), (ROLLOUT, SETTLED), GoOn()),
        (replace(COMING, phase=FETCH, shadow=True, live=OLD, last_good=None), (BESIDE, SETTLED), Withdraw()),
        # In the shadow
        (replace(COMING, phase=SHADOW), (ROLLOUT, SETTLED), Activate()),
        (replace(COMING, phase=SHADOW), (BESIDE, SETTLED), Leave("in_the_shadow")),
        (replace(COMING, phase=SHADOW), (SETTLED,), Withdraw()),
        (replace(COMING, phase=SHADOW), (BACK,), Withdraw()),
        (replace(COMING, phase=SHADOW), (replace(BESIDE, release=OTHER), SETTLED), Withdraw()),
        (replace(COMING, phase=SHADOW), (), Withdraw()),
        (replace(COMING, phase=SHADOW, live=OLD, last_good=None), (BESIDE, SETTLED), Withdraw()),
        # On probation
        (TRIED, (ROLLOUT, SETTLED), Leave("on_probation")),
        (TRIED, (BESIDE, SETTLED), Leave("on_probation")),
        (TRIED, (SETTLED,), Withdraw()),
        (TRIED, (replace(ROLLOUT, bound=0), SETTLED), Withdraw()),
        (TRIED, (replace(BESIDE, release=OTHER), SETTLED), Withdraw()),
        (TRIED, (replace(ROLLOUT, release=OTHER),), Withdraw()),
        (TRIED, (replace(ROLLOUT, release=OTHER), ROLLOUT), Leave("on_probation")),
        (TRIED, (), Leave("not_meant")),
        (replace(TRIED, last_good=None), (SETTLED,), Leave("on_probation")),
        # Decided already
        *((replace(AT_REST, phase=phase), (ROLLOUT,), GoOn()) for phase in (COMMIT, ROLLBACK)),
    ],
)
def test_a_policy_asks_for_one_step(state: State, rules: tuple[Rule, ...], decision: Decision) -> None:
    assert decide(state, Policy(rules), DEVICE, {"region": "us"}) == decision


PLACES = st.sampled_from((None, OLD, LIVE, NEW))
PHASE = st.sampled_from((IDLE, FETCH, VERIFY, STAGE, SHADOW, PROBATION, COMMIT, ROLLBACK))
ANY_RULE = st.builds(
    Rule,
    st.sampled_from((OLD, LIVE, NEW, OTHER)),
    st.just("salt"),
    st.sampled_from((0, BUCKETS)),
    st.sampled_from(("live", "shadow")),
)


@given(
    st.builds(State, PHASE, PLACES, PLACES, PLACES, shadow=st.booleans()),
    st.lists(ANY_RULE, max_size=4).map(tuple),
)
def test_whatever_the_state_no_step_serves_what_no_rule_lets_serve(
    state: State, rules: tuple[Rule, ...]
) -> None:
    decided = decide(state, Policy(rules), DEVICE, {})
    open_ = [rule for rule in rules if rule.bound]
    if isinstance(decided, Activate):
        assert Rule(state.candidate or "", "salt", BUCKETS) in open_
    if isinstance(decided, Install):
        assert (decided.release, "shadow" if decided.shadow else "live") in [
            (rule.release, rule.mode) for rule in open_
        ]
        assert not decided.shadow or state.live is not None
        assert decided.release != state.live
    if not open_:
        assert isinstance(decided, Withdraw | Leave)


@given(st.lists(ANY_RULE, min_size=1, max_size=4).map(tuple), st.sampled_from((None, OLD, LIVE, NEW, OTHER)))
def test_the_steps_of_a_policy_come_to_an_end(rules: tuple[Rule, ...], live: str | None) -> None:
    """Each install ends well, each candidate that may serve does: then there is nothing more to do."""
    state = State(live=live, last_good=OLD if live not in (None, OLD) else None)
    for now_s in range(12):
        decided = decide(state, Policy(rules), DEVICE, {})
        if isinstance(decided, Leave) and state.phase != PROBATION:
            break
        state = carried_out(state, decided, now_s)
    else:
        raise AssertionError(f"no end: {decided}")


def carried_out(state: State, decided: Decision, now_s: int) -> State:
    if isinstance(decided, Install):
        state = transition(state, Offered(decided.release, decided.shadow), now_s).state
    elif isinstance(decided, Activate):
        state = transition(state, Activated(), now_s).state
    elif isinstance(decided, Withdraw):
        state = transition(state, RolledBack("withdrawn", passing=True), now_s).state
    elif state.phase == PROBATION:
        state = transition(state, MarkedGood(state.live or ""), now_s).state
    while state.phase not in {IDLE, SHADOW, PROBATION}:
        state = transition(state, Done(state.phase), now_s).state
    return state


@given(st.text(min_size=1, max_size=20), st.text(max_size=20), st.integers(0, BUCKETS))
def test_who_is_meant_stays_meant_when_the_bound_rises(salt: str, device: str, bound: int) -> None:
    bucket = bucket_of(salt, device)
    assert 0 <= bucket < BUCKETS
    assert (bucket < bound) <= (bucket < BUCKETS)


def test_devices_fall_evenly_and_by_another_salt_elsewhere() -> None:
    devices = [f"device-{n}" for n in range(20_000)]
    first, second = ({d for d in devices if bucket_of(salt, d) < 100_000} for salt in ("a", "b"))
    assert len(first) == pytest.approx(2000, abs=200)
    assert len(first & second) == pytest.approx(200, abs=70)
    # As design and server compute it.
    assert bucket_of("salt", "device-17") == 69_734


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("bound", -1),
        ("bound", BUCKETS + 1),
        ("mode", "perhaps"),
        ("release", "x"),
        ("salt", " "),
        ("salt", "s" * 129),
        ("cohort", "region = eu"),
        ("cohort", None),
    ],
)
def test_a_rule_that_breaks_the_contract_is_refused_by_name(key: str, value: Any) -> None:
    policy = Policy((replace(ROLLOUT, cohort='region != "us"'), SETTLED))
    assert Policy.from_json(policy.to_json()) == policy
    tree = json.loads(policy.to_json())
    tree["rules"][1][key] = value
    with pytest.raises(ContractError) as caught:
        Policy.from_json(json.dumps(tree))
    assert caught.value.key == f"rules[1].{key}"


@pytest.mark.parametrize(
    ("tree", "key"),
    [
        ({"schema": 9, "rules": []}, "schema"),
        ({"schema": 1, "rules": {}}, "rules"),
        ({"schema": 1, "rules": [{"release": NEW}]}, "rules[0].salt"),
        ({"schema": 1, "rules": [], "release": NEW}, "release"),
        ({"schema": 1, "rules": [json.loads(Policy((ROLLOUT,)).to_json())["rules"][0]] * 65}, "rules"),
    ],
)
def test_a_policy_that_breaks_the_contract_is_refused_by_name(tree: Any, key: str) -> None:
    with pytest.raises(ContractError) as caught:
        Policy.from_json(json.dumps(tree))
    assert caught.value.key == key


def test_the_longest_policy_fits() -> None:
    rule = Rule(NEW, "é" * 128, BUCKETS, "shadow", " " * 1011 + 'a == "eeeee"')
    policy = Policy((rule,) * MAX_RULES)
    assert len(policy.to_json().encode()) < MAX_POLICY_BYTES
    assert Policy.from_json(policy.to_json()) == policy


def test_the_first_rule_that_includes_a_device_holds() -> None:
    eu = replace(ROLLOUT, cohort='region == "eu"')
    policy = Policy((replace(ROLLOUT, bound=0), eu, SETTLED))
    assert policy.rule_for(DEVICE, {"region": "eu"}) == eu
    assert policy.rule_for(DEVICE, {}) == SETTLED
    assert Policy((eu,)).rule_for(DEVICE, {}) is None
    assert Policy(()).rule_for(DEVICE, {"region": "eu"}) is None


@given(st.floats(1, 1e6), st.integers(0, 10_000), st.floats(0, 1))
def test_pauses_grow_with_failures_and_never_beyond_an_hour_or_the_interval(
    interval_s: float, failures: int, chance: float
) -> None:
    pause = pause_s(interval_s, failures, chance)
    assert 0 < pause <= 1.2 * max(interval_s, 3600)
    assert failures == 0 or pause_s(interval_s, failures + 1, chance) >= pause


# Polls


def test_a_release_that_is_signed_and_selected_is_fetched_tried_and_serves(
    board: Board, fleet: Fleet
) -> None:
    release = fleet.publish(adder(1.0))
    fleet.select(release)
    polled = board.poll()
    assert (codes(polled), polled.decided) == ([], Install(release, shadow=False))
    assert slots(board) == (PROBATION, release, None)
    assert board.staged == [release]
    with Runtime(board.store.path, poll_s=3600) as runtime:
        import numpy as np

        assert runtime.predict(np.zeros((1, WIDTH), np.float32))[0, 0] == 1.0
        runtime.mark_good()
    assert board.poll().decided == Leave("serves")
    (report,) = (each for post in fleet.posts for each in post["reports"])
    assert (report["kind"], report["release"]) == ("committed", release)
    assert board.store.state().reports == ()
    status = fleet.posts[-1]["status"]
    assert (status["live"], status["phase"], status["dropped"]) == (release, IDLE, 0)


def test_nothing_is_sent_twice_that_did_not_change(board: Board, fleet: Fleet) -> None:
    fleet.select(fleet.publish(adder(1.0)))
    board.poll()
    fleet.asked.clear()
    board.poll()
    # A new root is asked for by name, and the one file that changes under its own.
    asked = [path for path, _ in fleet.asked]
    assert [path for path in asked if not path.startswith("metadata/")] == []
    assert "metadata/timestamp.json" in asked
    assert len(asked) == 2


def test_a_transfer_that_breaks_off_goes_on_from_the_byte_it_came_to(board: Board, fleet: Fleet) -> None:
    published = adder(1.0, weight_bytes=64 << 10)
    release, size = fleet.publish(published), published.release.size_bytes
    fleet.select(release)
    fleet.break_after = 10_000
    for number in itertools.count(1):
        polled = board.restarted().poll()
        if not polled.errors:
            break
        assert codes(polled) == ["network"]
        assert board.store.state().phase == FETCH
        assert number < 20
    assert slots(board)[:2] == (PROBATION, release)
    assert number > 5
    assert fleet.sent_bytes == size
    starts = [at for path, at in fleet.asked if path.startswith("blobs/")]
    assert 10_000 in starts


def test_a_device_that_is_not_meant_does_nothing(board: Board, fleet: Fleet) -> None:
    fleet.select(fleet.publish(adder(1.0)), bound=bucket_of("salt", DEVICE))
    assert board.poll().decided == Leave("not_meant")
    fleet.select(adder(1.0).release.id, bound=bucket_of("salt", DEVICE) + 1)
    assert isinstance(board.poll().decided, Install)


def serving(board: Board, fleet: Fleet, published: Published) -> str:
    release = fleet.publish(published)
    fleet.select(release)
    board.poll()
    board.good()
    board.poll()
    assert slots(board) == (IDLE, release, None)
    return release


def test_a_rollout_goes_through_the_shadow_to_life(board: Board, fleet: Fleet) -> None:
    first = serving(board, fleet, adder(1.0))
    second = fleet.publish(adder(2.0))
    fleet.select(second, mode="shadow")
    board.poll()
    assert slots(board) == (SHADOW, first, second)
    assert board.poll().decided == Leave("in_the_shadow")
    fleet.select(second)
    assert board.poll().decided == Activate()
    assert slots(board) == (PROBATION, second, None)


def test_a_rollout_that_is_stopped_leaves_the_shadow_and_may_come_again(board: Board, fleet: Fleet) -> None:
    first = serving(board, fleet, adder(1.0))
    second = fleet.publish(adder(2.0))
    fleet.select(second, mode="shadow")
    board.poll()
    fleet.select(second, mode="shadow", bound=0)
    board.poll()
    assert slots(board) == (IDLE, first, None)
    fleet.select(second, mode="shadow")
    board.poll()
    assert slots(board) == (SHADOW, first, second)


def test_a_policy_that_names_the_version_before_brings_it_back_at_once(board: Board, fleet: Fleet) -> None:
    first = serving(board, fleet, adder(1.0))
    second = serving(board, fleet, adder(2.0))
    blobs = sum(path.startswith("blobs/") for path, _ in fleet.asked)
    fleet.select(first)
    board.poll()
    state = board.store.state()
    assert (state.phase, state.live, second in state.failed) == (IDLE, first, False)
    assert sum(path.startswith("blobs/") for path, _ in fleet.asked) == blobs, "nothing is fetched for that"
    assert fleet.posts[-1]["reports"][-1]["reason"] == "withdrawn"


def test_another_release_takes_the_place_of_one_that_is_coming_in(board: Board, fleet: Fleet) -> None:
    first, second = fleet.publish(adder(1.0, weight_bytes=64 << 10)), fleet.publish(adder(2.0))
    fleet.select(first)
    fleet.break_after = 5000
    board.poll()
    assert slots(board) == (FETCH, None, first)
    fleet.select(second)
    fleet.break_after = None
    board.poll()
    assert slots(board)[:2] == (PROBATION, second)


def test_a_release_that_is_refused_here_is_told_of_and_not_tried_again(board: Board, fleet: Fleet) -> None:
    first = serving(board, fleet, adder(1.0))
    second = fleet.publish(adder(2.0))
    board.refused[second] = "golden"
    fleet.select(second)
    board.poll()
    assert slots(board) == (IDLE, first, None)
    assert board.poll().decided == Leave("failed_before")
    assert board.staged.count(second) == 1
    assert [r["reason"] for post in fleet.posts for r in post["reports"]].count("golden") == 1


def test_a_pinned_device_only_tells(board: Board, fleet: Fleet) -> None:
    first = serving(board, fleet, adder(1.0))
    board.agent._manager.tell(Pinned(on=True))
    fleet.select(fleet.publish(adder(2.0)))
    assert board.poll().decided == Leave("pinned")
    assert slots(board) == (IDLE, first, None)
    assert fleet.posts[-1]["status"]["pinned"] is True


# Rollouts and labels


def test_a_rollout_that_is_halted_leaves_nothing_behind(board: Board, fleet: Fleet) -> None:
    first = serving(board, fleet, adder(1.0))
    second = fleet.publish(adder(2.0))
    settled = Rule(first, "settled", BUCKETS)
    fleet.rule(Rule(second, "salt", BUCKETS), settled)
    board.poll()
    assert slots(board) == (PROBATION, second, None)
    fleet.rule(settled)
    board.poll()
    assert slots(board) == (IDLE, first, None)
    assert board.store.state().failed == {}
    assert board.poll().decided == Leave("serves")


def test_a_new_device_gets_what_is_settled_before_a_candidate_beside_it(board: Board, fleet: Fleet) -> None:
    first, second = fleet.publish(adder(1.0)), fleet.publish(adder(2.0))
    fleet.rule(Rule(second, "salt", BUCKETS, "shadow"), Rule(first, "settled", BUCKETS))
    board.poll()
    assert slots(board) == (PROBATION, first, None)
    board.good()
    board.poll()
    assert slots(board) == (SHADOW, first, second)


def told_labels(fleet: Fleet) -> Any:
    return fleet.posts[-1]["status"]["labels"]


def test_labels_of_the_server_hold_from_the_next_decision_and_after_a_restart(
    board: Board, fleet: Fleet
) -> None:
    first = serving(board, fleet, adder(1.0))
    second = fleet.publish(adder(2.0))
    fleet.rule(Rule(second, "salt", BUCKETS, cohort='region == "eu"'), Rule(first, "settled", BUCKETS))
    board.restarted(labels={"region": "us", "site": "9"})
    fleet.labels = {"region": "eu", "customer": "größe"}
    assert board.poll().decided == Leave("serves")
    assert told_labels(fleet) == {"region": "us", "site": "9"}
    fleet.labels = None
    board.restarted(labels={"region": "us", "site": "9"})
    assert board.poll().decided == Install(second, shadow=False)
    assert told_labels(fleet) == {"region": "eu", "site": "9", "customer": "größe"}
    fleet.labels = {}
    board.poll()
    board.poll()
    assert told_labels(fleet) == {"region": "us", "site": "9"}


@pytest.mark.parametrize(
    "labels",
    [
        [],
        {"Region": "eu"},
        {"region": 1},
        {"region": "x" * 129},
        {"region": "a\nb"},
        {"class": "x"},
        {f"l{n}": "" for n in range(33)},
    ],
)
def test_labels_that_cannot_be_used_cost_nothing_and_those_known_stay(
    board: Board, fleet: Fleet, labels: Any
) -> None:
    fleet.labels = {"region": "eu"}
    board.poll()
    spool = keep(board.store, range(2))
    fleet.labels = labels
    assert board.poll().uploaded is not None
    assert list(spool) == []
    board.restarted().poll()
    assert told_labels(fleet) == {"region": "eu"}


@pytest.mark.parametrize(
    "content", [b"", b"rot", b'{"schema": 2, "labels": {}}', b'{"schema": 1, "labels": []}']
)
def test_labels_that_rotted_on_the_disk_are_none_until_they_come_again(
    board: Board, fleet: Fleet, content: bytes
) -> None:
    fleet.labels = {"region": "eu"}
    (board.store.path / "labels.json").write_bytes(content)
    board.poll()
    assert told_labels(fleet) == {}
    board.restarted().poll()
    assert told_labels(fleet) == {"region": "eu"}


def test_labels_that_cannot_be_kept_hold_while_the_agent_runs(
    board: Board, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet.labels = {"region": "eu"}

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr("edgekit_runtime.labels.replace", full)
    assert board.poll().uploaded is not None
    board.poll()
    assert told_labels(fleet) == {"region": "eu"}


# What cannot be trusted, and what does not come


def test_a_policy_cannot_bring_what_only_the_online_key_vouches_for(board: Board, fleet: Fleet) -> None:
    first = serving(board, fleet, adder(1.0))
    stolen = adder(6.66)
    fleet.upload(stolen)
    fleet.repository.add(
        f"releases/{stolen.release.id}.json", stolen.release.to_json().encode(), role="rollout"
    )
    fleet.select(stolen.release.id)
    polled = board.poll()
    assert slots(board) == (IDLE, first, None)
    assert [each["reason"] for each in fleet.posts[-1]["reports"]] == ["tuf_untrusted"]
    assert polled.errors == ()


def test_metadata_that_expired_stop_installs_and_nothing_else(tmp_path: Path, fleet: Fleet) -> None:
    clock = [fleet.repository.now.timestamp()]
    board = Board(tmp_path, fleet, now=lambda: clock[0])
    first = serving(board, fleet, adder(1.0))
    fleet.select(fleet.publish(adder(2.0)))
    clock[0] += 10 * 365 * 86400
    polled = board.poll()
    assert codes(polled) == ["tuf_expired"]
    assert slots(board) == (IDLE, first, None)
    assert polled.uploaded is not None, "and the server hears of it all the same"
    clock[0] -= 10 * 365 * 86400
    assert isinstance(board.poll().decided, Install)


def test_a_device_that_wakes_up_in_1970_is_kept_up_to_date(tmp_path: Path, fleet: Fleet) -> None:
    board = Board(tmp_path, fleet, now=lambda: 0.0)
    release = fleet.publish(adder(1.0))
    fleet.select(release)
    assert codes(board.poll()) == []
    assert slots(board)[:2] == (PROBATION, release)


def test_bytes_that_were_changed_on_the_way_are_fetched_again(board: Board, fleet: Fleet) -> None:
    published = adder(1.0)
    release = fleet.publish(published)
    fleet.select(release)
    sha256 = published.release.files["model.onnx"].sha256
    whole = fleet.blobs[sha256]
    fleet.blobs[sha256] = whole[:-1] + bytes([whole[-1] ^ 1])
    board.poll()
    assert slots(board) == (IDLE, None, None)
    assert fleet.posts[-1]["reports"][-1]["reason"] == "damaged"
    fleet.blobs[sha256] = whole
    board.poll()
    assert slots(board)[:2] == (PROBATION, release)


def test_endless_data_fill_no_disk(board: Board, fleet: Fleet) -> None:
    published = publish("1.0.0", b"model")
    fleet.select(fleet.publish(published))
    fleet.blobs[published.release.files["model.tflite"].sha256] = bytes(1 << 20)
    board.poll()
    assert slots(board) == (IDLE, None, None)
    assert fleet.sent_bytes < 8 * 1024


def test_a_file_that_the_server_lost_is_asked_for_again_and_told_of_once(board: Board, fleet: Fleet) -> None:
    published = adder(1.0)
    fleet.select(fleet.publish(published))
    del fleet.blobs[published.release.files["model.onnx"].sha256]
    for _ in range(3):
        board.poll()
    assert slots(board) == (IDLE, None, None)
    fleet.upload(published)
    board.poll()
    assert slots(board)[:2] == (PROBATION, published.release.id)


def test_what_does_not_fit_is_refused_before_it_is_fetched(tmp_path: Path, fleet: Fleet) -> None:
    board = Board(tmp_path, fleet, quota_bytes=1000)
    fleet.select(fleet.publish(adder(1.0, weight_bytes=64 << 10)))
    board.poll()
    assert slots(board) == (IDLE, None, None)
    assert fleet.posts[-1]["reports"][-1]["reason"] == "quota"
    assert not any(path.startswith("blobs/") for path, _ in fleet.asked)


def test_without_a_network_an_update_that_is_here_is_carried_out(board: Board, fleet: Fleet) -> None:
    release = fleet.publish(adder(1.0))
    fleet.select(release)
    board.poll()
    board.good()
    assert board.store.state().phase == COMMIT
    fleet.offline = True
    assert codes(board.poll()) == ["network", "network"]
    assert slots(board) == (IDLE, release, None)


# What is told


def window(number: int) -> Window:
    return Window(
        f"{number:032x}", LIVE, NEW, "regression", number, 300.0, Figures(Counts(compared=number + 1))
    )


def keep(store: Store, numbers: Iterator[int] | range, max_bytes: int = 8 << 20) -> Spool:
    spool = Spool(store.spool, max_bytes=max_bytes)
    for number in numbers:
        made = window(number)
        spool.put(made.key, made.to_json().encode())
    return spool


def test_after_thirty_days_without_a_network_every_window_that_is_left_comes_once(
    board: Board, fleet: Fleet
) -> None:
    fleet.offline = True
    days, each_day, limit = 30, 24, 300_000
    for day in range(days):
        spool = keep(board.store, range(day * each_day, (day + 1) * each_day), limit)
        assert codes(board.poll()) == ["network", "network"]
    assert sum(len(spool.read(entry)) for entry in spool) <= limit
    left = {entry.key for entry in spool}
    assert len(left) + spool.dropped == days * each_day
    fleet.offline = False
    polled = board.poll()
    assert polled.uploaded is not None
    assert polled.uploaded.windows == len(left)
    assert fleet.known == dict.fromkeys(left, 1)
    assert list(spool) == []
    assert fleet.posts[-1]["status"]["dropped"] == spool.dropped
    assert polled.uploaded.posts > 1
    board.poll()
    assert set(fleet.known.values()) == {1}


def test_an_answer_that_is_lost_brings_a_window_again_under_the_same_key(board: Board, fleet: Fleet) -> None:
    spool = keep(board.store, range(3))
    fleet.deaf = True
    assert "network" in codes(board.poll())
    assert len(list(spool)) == 3
    fleet.deaf = False
    board.poll()
    assert fleet.known == {window(n).key: 2 for n in range(3)}
    assert list(spool) == []


def test_a_window_that_nobody_can_read_does_not_stand_in_the_way(board: Board, fleet: Fleet) -> None:
    spool = keep(board.store, range(2))
    first = next(iter(spool))
    (spool.path / first.name).write_bytes(b"rot")
    board.poll()
    assert list(spool) == []
    assert list(fleet.known) == [window(1).key]


def test_a_server_that_takes_nothing_is_an_error_and_everything_is_kept(board: Board, fleet: Fleet) -> None:
    keep(board.store, range(2))
    fleet.post = lambda path, body: b'{"have": []}'  # type: ignore[method-assign]
    assert "network" in codes(board.poll())
    fleet.post = lambda path, body: b"<html>"  # type: ignore[method-assign]
    assert "network" in codes(board.poll())
    assert len(list(Spool(board.store.spool, max_bytes=1 << 20))) == 2


# Alone, and until it is told to stop


def test_a_device_has_one_agent(board: Board) -> None:
    with board.store.tended():
        with pytest.raises(StoreError) as caught, board.store.tended():
            pass
        assert caught.value.code == "store_busy"


def test_a_transfer_is_cut_off_when_it_is_told_to_stop(board: Board, fleet: Fleet) -> None:
    release = fleet.publish(adder(1.0, weight_bytes=64 << 10))
    fleet.select(release)
    board.agent.stop()
    assert codes(board.poll()) == ["stopped"]
    assert slots(board) == (FETCH, None, release)
    board.restarted().poll()
    assert slots(board)[:2] == (PROBATION, release)


def test_it_polls_until_it_is_told_to_stop_whatever_goes_wrong(
    board: Board, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "RETRY_S", 0.001)
    monkeypatch.setattr(loop, "FIRST_S", 0.0)
    polls = itertools.count()
    release = fleet.publish(adder(1.0))
    fleet.select(release)
    get: Callable[..., Any] = fleet.get

    def flaky(path: str, **more: Any) -> Any:
        if path.endswith("timestamp.json") and next(polls) < 3:
            raise NetworkError("down", expected="up", way_out="wait", code="network")
        return get(path, **more)

    fleet.get = flaky  # type: ignore[method-assign]
    thread = threading.Thread(target=board.agent.run)
    thread.start()
    try:
        for _ in range(2000):
            if board.store.state().phase == PROBATION:
                break
            time.sleep(0.01)
    finally:
        board.agent.stop()
        thread.join(10)
    assert not thread.is_alive()
    assert slots(board)[:2] == (PROBATION, release)


# What a review found


@pytest.mark.parametrize("phase", [VERIFY, STAGE])
def test_a_release_that_is_no_longer_wanted_does_not_go_live_after_a_power_cut(
    board: Board, fleet: Fleet, phase: str
) -> None:
    first, second = fleet.publish(adder(1.0)), fleet.publish(adder(2.0))
    fleet.select(first)
    board.poll()
    board.good()
    board.poll()
    board.store.save(replace(board.store.state(), phase=phase, candidate=second, shadow=False))
    fleet.select(second, bound=0)
    polled = board.poll()
    assert isinstance(polled.decided, Withdraw | Leave)
    assert slots(board) == (IDLE, first, None)
    assert board.store.state().failed == {}


def test_what_has_come_in_is_tried_out_though_no_server_answers(board: Board, fleet: Fleet) -> None:
    first, second = fleet.publish(adder(1.0)), fleet.publish(adder(2.0))
    fleet.select(first)
    board.poll()
    board.good()
    board.poll()
    add(board.store, adder(2.0))
    board.store.save(replace(board.store.state(), phase=VERIFY, candidate=second, shadow=False))
    fleet.offline = True
    board.poll()
    assert board.store.state().live == second


def test_a_fresh_device_does_not_go_live_with_what_is_meant_for_the_shadow(
    board: Board, fleet: Fleet
) -> None:
    fleet.select(fleet.publish(adder(1.0)), mode="shadow")
    assert board.poll().decided == Leave("nothing_to_run_beside")
    assert slots(board) == (IDLE, None, None)


def test_a_window_that_the_server_will_never_take_is_dropped_and_counted_and_no_other_is(
    board: Board, fleet: Fleet
) -> None:
    spool = keep(board.store, range(7))
    fleet.refuses = f"{3:032x}"
    polled = board.poll()
    assert polled.uploaded is not None
    assert polled.uploaded.windows == 6
    again = Spool(board.store.spool, max_bytes=8 << 20)
    assert (list(again), again.dropped - spool.dropped) == ([], 1)
    assert fleet.refuses not in fleet.known


def test_a_server_that_takes_nothing_of_anybody_costs_no_window(board: Board, fleet: Fleet) -> None:
    keep(board.store, range(3))
    fleet.refuses = "schema"
    assert "not_taken" in codes(board.poll())
    assert len(list(Spool(board.store.spool, max_bytes=8 << 20))) == 3


def test_a_window_that_cannot_be_read_just_now_is_kept(
    board: Board, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(board.store, range(3))

    def busy(*_: object) -> bytes:
        raise OSError(errno.EMFILE, "too many open files")

    with monkeypatch.context() as short:
        short.setattr(Spool, "read", busy)
        assert "disk" in codes(board.poll())
    assert len(list(Spool(board.store.spool, max_bytes=8 << 20))) == 3
    board.poll()
    assert len(fleet.known) >= 3


def test_a_label_that_is_half_a_character_is_told_all_the_same(board: Board, fleet: Fleet) -> None:
    spool = Spool(board.store.spool, max_bytes=8 << 20)
    spool.put("ab" * 16, json.dumps({"key": "ab" * 16, "label": "\ud800"}).encode())
    board.poll()
    assert fleet.known.get("ab" * 16) == 1


def test_a_fault_of_our_own_ends_a_poll_and_not_the_agent(
    board: Board, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "decide", lambda *_: 1 / 0)
    fleet.select(fleet.publish(adder(1.0)))
    assert codes(board.poll()) == ["unexpected"]


def test_an_answer_that_ends_early_is_gone_on_with(board: Board, fleet: Fleet) -> None:
    published = adder(1.0, weight_bytes=1 << 16)
    release = fleet.publish(published)
    fleet.select(release)
    whole = fleet._parts

    def short(path: str, content: bytes) -> Iterator[bytes]:
        return whole(path, content[: max(1, len(content) // 2)])

    fleet._parts = short  # type: ignore[method-assign]
    assert "network" in codes(board.poll())
    assert board.store.state().phase == FETCH
    fleet._parts = whole  # type: ignore[method-assign]
    board.poll()
    assert board.store.state().live == release


def test_files_of_what_serves_that_rotted_come_again_from_the_server(board: Board, fleet: Fleet) -> None:
    published = adder(1.0)
    release = fleet.publish(published)
    fleet.select(release)
    board.poll()
    board.good()
    board.poll()
    blob = board.store.blob(published.release.files["model.onnx"].sha256)
    blob.write_bytes(b"rotten")
    board.agent._mend_s = -1e9
    board.poll()
    board.store.check(board.store.release(release))


def test_a_rollout_that_is_stopped_during_a_long_transfer_does_not_go_live(
    board: Board, fleet: Fleet
) -> None:
    first = serving(board, fleet, adder(1.0))
    second = fleet.publish(adder(2.0))
    fleet.select(second)
    whole = fleet._parts

    def stopped(path: str, content: bytes) -> Iterator[bytes]:
        fleet.select(second, bound=0)
        return whole(path, content)

    fleet._parts = stopped  # type: ignore[method-assign]
    board.restarted(interval_s=1e-9).poll()
    assert slots(board) == (IDLE, first, None)
    assert board.staged == [first]
    assert fleet.posts[-1]["reports"][-1]["reason"] == "withdrawn"
    assert board.store.state().failed == {}


def test_a_rollout_that_goes_back_to_the_shadow_does_not_go_live_with_what_is_on_its_way(
    board: Board, fleet: Fleet
) -> None:
    first = serving(board, fleet, adder(1.0))
    second = fleet.publish(adder(2.0, weight_bytes=64 << 10))
    fleet.select(second)
    fleet.break_after = 5000
    board.poll()
    assert slots(board) == (FETCH, first, second)
    fleet.break_after = None
    fleet.select(second, mode="shadow")
    board.poll()
    assert slots(board) == (SHADOW, first, second)


def test_a_policy_that_names_another_model_brings_nothing_and_costs_nothing(
    board: Board, fleet: Fleet
) -> None:
    first = serving(board, fleet, adder(1.0))
    other = fleet.publish(publish("1.0.0", b"model"))
    fleet.select(other)
    asked = len(fleet.asked)
    board.poll()
    assert slots(board) == (IDLE, first, None)
    assert board.store.state().failed == {other: "other_model"}
    assert not [path for path, _ in fleet.asked[asked:] if path.startswith("blobs/")]
    fleet.select(fleet.publish(adder(2.0)))
    board.poll()
    assert board.store.state().phase == PROBATION


def test_where_the_document_of_what_serves_rotted_it_comes_again_and_then_the_next_version(
    board: Board, fleet: Fleet
) -> None:
    first = serving(board, fleet, adder(1.0))
    board.store.blob(first).write_bytes(b"rotten")
    second = fleet.publish(adder(2.0))
    fleet.select(second)
    board.agent._mend_s = -1e9
    board.poll()
    assert slots(board) == (IDLE, first, None)
    assert board.store.release(first).id == first
    board.poll()
    assert board.store.state().live == second


def test_a_report_arrives_though_the_windows_do_not(board: Board, fleet: Fleet) -> None:
    keep(board.store, range(3))
    fleet.takes_windows = False
    fleet.select(fleet.publish(adder(1.0)))
    board.poll()
    board.good()
    assert codes(board.poll()) == ["network"]
    assert [each["kind"] for each in fleet.posts[-1]["reports"]] == ["committed"]
    assert board.store.state().reports == ()
    assert len(list(Spool(board.store.spool, max_bytes=8 << 20))) == 3


def test_a_report_that_the_server_will_never_take_stands_in_nobodys_way(board: Board, fleet: Fleet) -> None:
    keep(board.store, range(2))
    fleet.select(fleet.publish(adder(1.0)))
    board.poll()
    board.good()
    fleet.refuses = "committed"
    keep(board.store, range(2, 4))
    assert codes(board.poll()) == []
    assert board.store.state().reports == ()
    assert set(fleet.known) == {window(n).key for n in range(4)}


def test_a_server_that_is_older_than_its_devices_is_not_flooded(board: Board, fleet: Fleet) -> None:
    keep(board.store, range(200))
    fleet.select(adder(1.0).release.id, bound=0)
    fleet.refuses = LIVE
    assert codes(board.poll()) == ["not_taken"]
    left = Spool(board.store.spool, max_bytes=8 << 20)
    assert (len(list(left)), left.dropped) == (200 - MOST_REFUSED, MOST_REFUSED)
    assert len(fleet.posts) < 3 * MOST_REFUSED


def test_a_server_without_posts_is_asked_for_its_policy_as_often_as_any(
    board: Board, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "RETRY_S", 3600.0)
    release = fleet.publish(adder(1.0))

    def post(path: str, body: bytes) -> bytes:
        raise unreachable(path, "status 405")

    fleet.post = post  # type: ignore[method-assign]
    fleet.select(release, bound=0)
    agent = board.restarted(interval_s=0.01)
    thread = threading.Thread(target=agent.run)
    thread.start()
    try:
        time.sleep(0.2)
        fleet.select(release)
        for _ in range(2000):
            if board.store.state().phase == PROBATION:
                break
            time.sleep(0.01)
    finally:
        agent.stop()
        thread.join(10)
    assert slots(board)[:2] == (PROBATION, release)


def test_devices_that_start_together_do_not_come_together(
    board: Board, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    # At random; so long that it never ends within this test.
    monkeypatch.setattr(loop, "FIRST_S", 1e6)
    fleet.select(fleet.publish(adder(1.0)))
    agent = board.restarted(interval_s=1e6)
    thread = threading.Thread(target=agent.run)
    thread.start()
    try:
        time.sleep(0.05)
        assert fleet.asked == []
    finally:
        agent.stop()
        thread.join(10)
    assert not thread.is_alive()
