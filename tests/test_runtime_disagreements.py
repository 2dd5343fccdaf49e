"""Inputs whose answers differ: none leaves a device but where a signed policy asks for it and the device lets it."""

from __future__ import annotations

import base64
import io
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit_runtime import Runtime, Shadow, payloads
from edgekit_runtime.cli import main
from edgekit_runtime.contract import ContractError
from edgekit_runtime.disk import Disk
from edgekit_runtime.payloads import Allowance
from edgekit_runtime.policies import BUCKETS, MAX_DISAGREEMENTS, Policy, Rule
from edgekit_runtime.shadow.comparators import Difference
from edgekit_runtime.shadow.samples import SMALL_BYTES, Keeper, Reservoir, Sample, Sampler, document
from edgekit_runtime.spool import Spool
from edgekit_runtime.store import Store
from support.adders import adder
from support.device import Device
from support.fleet import Fleet
from test_runtime_agent import Board
from test_runtime_shadow import EAGER, X, compared, until, windows

LIVE, NEW, OTHER = (letter * 64 for letter in "abc")
APART = Difference(agreed=False, distance=1.0, labels=(0, 1), confidence=(0.9, 0.6))


# What a policy says


def test_a_policy_that_asks_for_none_reads_as_before_there_were_any() -> None:
    rule = Rule(NEW, "salt", BUCKETS, "shadow")
    assert "disagreements" not in Policy((rule,)).to_json()
    asking = Policy((replace(rule, disagreements=5),))
    assert Policy.from_json(asking.to_json()) == asking
    old = json.loads(Policy((rule,)).to_json())
    assert Policy.from_json(json.dumps(old)).rules == (rule,)


@pytest.mark.parametrize(("count", "mode"), [(-1, "shadow"), (MAX_DISAGREEMENTS + 1, "shadow"), (1, "live")])
def test_a_policy_asks_for_a_sensible_number_and_in_the_shadow_alone(count: int, mode: str) -> None:
    with pytest.raises(ContractError, match="disagreements"):
        Rule(NEW, "salt", BUCKETS, mode, disagreements=count)


# Which of them are kept


def test_each_input_is_kept_with_the_same_chance() -> None:
    seen, size = 6, 2
    kept = Counter[int]()
    # Every way in which chance may fall, each as likely as the others.
    for drawn in itertools.product(*(range(number) for number in range(size + 1, seen + 1))):
        chances = iter(drawn)
        reservoir = Reservoir[int](size, lambda _, chances=chances: next(chances))  # type: ignore[misc]
        for number in range(seen):
            reservoir.offer(lambda number=number: number)  # type: ignore[misc]
        kept.update(reservoir.kept)
    assert len(set(kept.values())) == 1
    assert set(kept) == set(range(seen))


@given(st.integers(0, 20), st.integers(0, 200))
def test_no_more_are_kept_than_were_asked_for_and_none_twice(size: int, seen: int) -> None:
    reservoir, made = Reservoir[int](size), list[int]()
    for number in range(seen):
        reservoir.offer(lambda number=number: made.append(number) or number)  # type: ignore[func-returns-value, misc]
    assert len(reservoir.kept) == len(set(reservoir.kept)) == min(size, seen)
    assert set(reservoir.kept) <= set(made)


@given(st.integers(1, 20), st.integers(1, 400), st.integers(1, 4000), st.integers(1, 4000))
def test_samples_stay_within_their_bytes(wanted: int, width: int, one: int, together: int) -> None:
    sampler = Sampler(wanted, one, together, str)
    x = {"x": np.zeros((1, width), np.uint8)}
    for _ in range(30):
        sampler.differed(x, {}, {}, APART)
    held = sum(value.nbytes for sample in sampler.samples for value in sample.inputs.values())
    assert held <= together
    assert len(sampler.samples) == (0 if width > one else min(wanted, together // width))


def test_a_sample_outlives_the_slot_that_it_came_in_and_large_answers_are_left_out() -> None:
    sampler = Sampler(5, 1 << 20, 1 << 22, ("cat", "dog").__getitem__)
    slot, small = {"x": np.ones((1, 3), np.float32)}, {"y": np.zeros((1, 2), np.float32)}
    large = {"y": np.zeros((1, SMALL_BYTES), np.uint8)}
    sampler.differed(slot, small, small, APART)
    sampler.differed(slot, large, large, None)
    slot["x"][:] = 7
    first, second = sampler.samples
    assert (first.labels, first.confidence, set(first.live)) == (("cat", "dog"), (0.9, 0.6), {"y"})
    assert (second.labels, second.confidence, second.live, second.candidate) == (("", ""), None, {}, {})
    assert np.all(first.inputs["x"] == 1)


# In the shadow


@pytest.fixture
def device(tmp_path: Path) -> Device:
    made = Device(tmp_path / "store")
    made.install(adder(1.0), good=True)
    return made


@pytest.fixture
def serve(device: Device) -> Iterator[Callable[..., Runtime]]:
    made: list[Runtime] = []

    def start(**settings: Any) -> Runtime:
        made.append(Runtime(device.store.path, poll_s=3600, **settings))
        return made[-1]

    yield start
    for each in made:
        each.close()


def waiting(store: Store) -> list[dict[str, Any]]:
    if not store.payloads.exists():
        return []
    spool = Spool(store.payloads, max_bytes=0)
    return [json.loads(spool.read(entry)) for entry in spool]


def allow(store: Store, release: str, per_window: int = 3) -> None:
    payloads.keep(Disk(), store.path, Allowance(release, per_window))


def test_inputs_whose_answers_differ_wait_beside_the_window(
    device: Device, serve: Callable[..., Runtime]
) -> None:
    candidate = device.install(adder(2.0), shadow=True)
    allow(device.store, candidate)
    runtime = serve(shadow=EAGER)
    until(runtime, compared(20))
    runtime.close()
    found = waiting(device.store)
    assert len(found) == 3
    assert len({each["key"] for each in found}) == 3
    for each in found:
        assert (each["candidate"], each["labels"]) == (candidate, ["", ""])
        with np.load(io.BytesIO(base64.b64decode(each["payload"])), allow_pickle=False) as arrays:
            assert np.array_equal(arrays["input/x"], X)
            assert np.array_equal(arrays["live/y"], X + 1)
            assert np.array_equal(arrays["candidate/y"], X + 2)
    (window,) = windows(device)
    assert window.figures.counts.compared >= 20


@pytest.mark.parametrize(
    "why", ["nobody asks", "another is asked for", "application", "environment", "agrees"]
)
def test_nothing_is_kept_where_it_is_not_asked_for_or_not_let(
    why: str, device: Device, serve: Callable[..., Runtime], monkeypatch: pytest.MonkeyPatch
) -> None:
    same = adder(1.0, weight_bytes=1 << 16)
    candidate = device.install(same if why == "agrees" else adder(2.0), shadow=True)
    if why != "nobody asks":
        allow(device.store, OTHER if why == "another is asked for" else candidate)
    if why == "environment":
        monkeypatch.setenv(payloads.VETO, "1")
    runtime = serve(shadow=replace(EAGER, payload=why != "application"))
    until(runtime, compared(5))
    runtime.close()
    assert windows(device)
    assert not device.store.payloads.exists()


def test_what_is_no_longer_let_when_the_window_ends_is_not_kept(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    store.make()
    allow(store, NEW)
    keeper = Keeper(store, (LIVE, NEW), Shadow())
    assert keeper.wanted() == 3
    allow(store, "", 0)
    keeper.put([a_sample()])
    assert waiting(store) == []
    assert keeper.wanted() == 0


def test_inputs_give_way_among_themselves_and_never_push_a_window_out(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    store.make()
    allow(store, NEW)
    held = Spool(store.spool, max_bytes=1 << 20)
    held.put("a" * 32, b"{}")
    size = len(document(a_sample(), LIVE, NEW))
    keeper = Keeper(store, (LIVE, NEW), Shadow(payloads_bytes=max(1 << 10, 3 * size + size // 2)))
    for _ in range(4):
        keeper.put([a_sample(), a_sample()])
    most = max(1 << 10, 3 * size + size // 2) // size
    assert len(waiting(store)) == most
    assert len(list(held)) == 1
    assert payloads.give_way(store.path)
    assert waiting(store) == []
    assert not payloads.give_way(store.path)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b'{"schema":1}', b'{"schema":1,"release":"x","per_window":0}', b"\xff" * 9000],
)
def test_an_allowance_that_cannot_be_read_allows_nothing(content: bytes, tmp_path: Path) -> None:
    (tmp_path / payloads.FILE).write_bytes(content)
    assert payloads.load(tmp_path) == payloads.NOTHING


@pytest.mark.parametrize(
    ("name", "value"), [("payload", 1), ("payload_bytes", 0), ("payloads_bytes", True), ("payload", "no")]
)
def test_a_budget_that_is_none_is_refused(name: str, value: Any) -> None:
    with pytest.raises(ContractError, match=name):
        Shadow(**{name: value})


# On the way to the server


def a_sample(size: int = 16) -> Sample:
    zeros = np.zeros((1, size), np.float32)
    return Sample({"x": zeros}, {"y": zeros}, {"y": zeros}, ("cat", "dog"), (0.9, 0.6), 1_700_000_000)


@pytest.fixture
def board(tmp_path: Path) -> Board:
    """In the shadow of a rollout, with two inputs that wait."""
    fleet = Fleet()
    board = Board(tmp_path, fleet)
    old, new = fleet.publish(adder(1.0)), fleet.publish(adder(2.0))
    settled = Rule(old, "s", BUCKETS)
    fleet.rule(settled)
    board.poll()
    board.good()
    board.poll()
    asking = Rule(new, "salt", BUCKETS, "shadow", disagreements=2)
    fleet.rule(asking, settled)
    board.poll()
    assert board.store.state().phase == "shadow"
    assert payloads.load(board.store.path) == Allowance(new, 2)
    Keeper(board.store, (old, new), Shadow()).put([a_sample(), a_sample()])
    return board


def rules(board: Board, disagreements: int) -> tuple[Rule, ...]:
    state = board.store.state()
    assert state.live is not None
    assert state.candidate is not None
    return (
        Rule(state.candidate, "salt", BUCKETS, "shadow", disagreements=disagreements),
        Rule(state.live, "s", BUCKETS),
    )


def test_what_waits_is_sent_once_the_answer_came(board: Board) -> None:
    board.fleet.deaf = True
    assert board.poll().errors
    assert len(waiting(board.store)) == 2
    board.fleet.deaf = False
    assert not board.poll().errors
    assert waiting(board.store) == []
    assert sorted(board.fleet.known[each["key"]] for each in board.fleet.samples) == [1, 2, 2]
    assert {each["device"] for each in board.fleet.samples} == {"device-17"}
    board.poll()
    assert len(board.fleet.samples) == 3


def test_what_a_policy_no_longer_asks_for_is_removed_and_not_sent(board: Board) -> None:
    board.fleet.rule(*rules(board, 0))
    board.poll()
    assert board.fleet.samples == []
    assert waiting(board.store) == []
    assert not (board.store.path / payloads.FILE).exists()


def test_a_veto_removes_what_waits_even_without_a_network(board: Board) -> None:
    board.fleet.offline = True
    board.restarted(payload=False).poll()
    assert waiting(board.store) == []
    board.fleet.offline = False
    board.poll()
    assert board.fleet.samples == []
    assert payloads.load(board.store.path) == payloads.NOTHING


def test_inputs_of_another_candidate_and_what_cannot_be_read_are_removed(board: Board) -> None:
    allowed = payloads.load(board.store.path)
    allow(board.store, OTHER)
    Keeper(board.store, (LIVE, OTHER), Shadow()).put([a_sample()])
    Spool(board.store.payloads, max_bytes=1 << 20).put("f" * 32, b"{")
    payloads.keep(Disk(), board.store.path, allowed)
    board.poll()
    assert {each["candidate"] for each in board.fleet.samples} == {allowed.release}
    assert len(board.fleet.samples) == 2
    assert waiting(board.store) == []


def test_an_input_that_the_server_refuses_for_good_does_not_hold_up_the_others(board: Board) -> None:
    board.fleet.refuses = waiting(board.store)[0]["key"]
    assert not board.poll().errors
    assert len(board.fleet.samples) == 1
    assert waiting(board.store) == []


def test_a_device_that_is_asked_for_none_writes_and_sends_nothing(tmp_path: Path) -> None:
    fleet = Fleet()
    board = Board(tmp_path, fleet)
    fleet.select(fleet.publish(adder(1.0)))
    board.poll()
    board.good()
    board.poll()
    assert fleet.samples == []
    assert not board.store.payloads.exists()
    assert not (board.store.path / payloads.FILE).exists()


@pytest.mark.parametrize(
    ("arguments", "environment", "lets"),
    [((), "", True), (("--no-payload",), "", False), ((), "1", False), ((), "0", True)],
)
def test_the_command_line_and_the_environment_veto(
    arguments: tuple[str, ...], environment: str, lets: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[bool] = []

    def serve(store: Store, **options: Any) -> dict[str, Any]:
        heard.append(options["payload"])
        return {"store": str(store.path)}

    monkeypatch.setattr("edgekit_runtime.agent.start.serve", serve)
    monkeypatch.setenv(payloads.VETO, environment)
    assert main(["--store", str(tmp_path), "agent", "--once", *arguments]) == 0
    assert heard == [lets]
