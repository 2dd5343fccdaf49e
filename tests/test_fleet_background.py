"""Rounds of what a server does by itself: nothing ends them but their end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edgekit.fleet import background
from edgekit.fleet.background import Repeated
from edgekit.fleet.context import Fleet
from edgekit.fleet.errors import UnavailableError
from support.served_fleet import a_fleet

LEASE = "rounds"


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    with a_fleet(tmp_path) as found:
        yield found


def done(fleet: Fleet, act: Callable[[Callable[[], bool]], float], enough: threading.Event) -> None:
    """Do rounds until they are enough."""
    rounds = Repeated(fleet, "me", LEASE, act)
    rounds.start()
    assert enough.wait(20)
    rounds.stop()


@pytest.mark.parametrize(
    "failure", [UnavailableError("away", expected="a", way_out="b", code="c"), ValueError("a slip")]
)
def test_a_round_that_fails_is_followed_by_the_next(
    fleet: Fleet, failure: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background, "FAILED_S", 0.01)
    count, enough = 0, threading.Event()

    def act(is_ending: Callable[[], bool]) -> float:
        nonlocal count
        count += 1
        if count == 3:
            enough.set()
        if count < 3:
            raise failure
        return 60.0

    done(fleet, act, enough)
    assert count == 3


def test_the_end_waits_for_the_round_and_gives_its_lease_back(fleet: Fleet) -> None:
    began, ended = threading.Event(), []

    def act(is_ending: Callable[[], bool]) -> float:
        assert fleet.database.lease(LEASE, "me", 600)
        began.set()
        while not is_ending():
            time.sleep(0.01)
        ended.append("round")
        return 0.0

    rounds = Repeated(fleet, "me", LEASE, act, at_end=lambda: ended.append("end"))
    rounds.start()
    assert began.wait(20)
    assert not fleet.database.lease(LEASE, "another", 600)
    rounds.stop()
    assert ended == ["round", "end"]
    assert fleet.database.lease(LEASE, "another", 600)


def test_the_next_round_comes_after_as_long_as_the_one_before_said(fleet: Fleet) -> None:
    times, enough = [], threading.Event()

    def act(is_ending: Callable[[], bool]) -> float:
        times.append(time.monotonic())
        if len(times) == 4:
            enough.set()
        return 0.1

    done(fleet, act, enough)
    assert times[3] - times[0] >= 0.3
