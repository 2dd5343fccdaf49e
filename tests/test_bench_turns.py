"""Calls that take turns on a machine whose clock is ours: what is waited for, and what does not count."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.bench import turns
from edgekit.bench.turns import Run, undisturbed

QUIET_MS = 0.13


class Machine:
    """A clock that goes on only where something runs or sleeps, and how much slower everything is at its times.

    Attributes:
        ns: since it began.
        slowness: of seconds.
        slept_s: altogether.
    """

    def __init__(self, slowness: Callable[[float], float] = lambda _: 1.0) -> None:
        self.ns, self.slowness, self.slept_s = 0, slowness, 0.0

    def perf_counter_ns(self) -> int:
        return self.ns

    def monotonic(self) -> float:
        return self.ns / 1e9

    def sleep(self, seconds: float) -> None:
        self.ns += round(seconds * 1e9)
        self.slept_s += seconds

    def call(self, ms: float, *, suffers: float = 1.0, every: int = 0, longer_ms: float = 0.0) -> Run:
        """What takes so long where the machine is quiet, and each so often longer.

        Args:
            ms: on a quiet machine.
            suffers: power of the slowness.
            every: so many calls one is interrupted; 0 is never.
            longer_ms: what that takes more.
        """
        count = 0

        def run() -> None:
            nonlocal count
            count += 1
            more = longer_ms if every and not count % every else 0.0
            self.ns += round(1e6 * (ms * self.slowness(self.monotonic()) ** suffers + more))

        return run


def on(monkeypatch: pytest.MonkeyPatch, slowness: Callable[[float], float] = lambda _: 1.0) -> Machine:
    machine = Machine(slowness)
    monkeypatch.setattr(turns, "time", machine)
    return machine


def test_a_quiet_machine_is_not_waited_for_and_gives_what_calls_take(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = on(monkeypatch)
    calls = [machine.call(ms) for ms in (QUIET_MS, 0.002, 0.3, 9.0)]
    found = undisturbed(calls, None)
    assert found.ms == pytest.approx((QUIET_MS, 0.002, 0.3, 9.0), rel=1e-3)
    assert found.yardstick_ms == pytest.approx(QUIET_MS)
    assert machine.slept_s == pytest.approx(turns.TURNS * turns.PAUSE_S)


def test_a_machine_that_is_mostly_busy_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    # Quiet for a fifth of a second of each; what runs suffers more or less than the yardstick.
    machine = on(monkeypatch, lambda s: 1.0 if s % 1.0 < 0.2 else 1.8)
    calls = [machine.call(QUIET_MS), machine.call(0.3, suffers=0.4), machine.call(0.05, suffers=1.2)]
    found = undisturbed(calls, None)
    assert found.ms == pytest.approx((QUIET_MS, 0.3, 0.05), rel=0.02)


def test_where_it_never_becomes_quiet_what_the_yardstick_tells_is_taken_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine = on(monkeypatch, lambda _: 1.7)
    calls = [machine.call(QUIET_MS), machine.call(0.3, suffers=0.7), machine.call(0.05, suffers=0.9)]
    found = undisturbed(calls, QUIET_MS, wait_s=0.5)
    assert found.ms[1:] == pytest.approx((0.3, 0.05), rel=0.06)
    # That it was busy is said.
    assert found.yardstick_ms == pytest.approx(1.7 * QUIET_MS)
    assert 0.4 < machine.slept_s < 0.6


def test_a_clock_that_goes_up_and_down_makes_nothing_quicker_or_slower(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine = on(monkeypatch, lambda s: 1.0 + 0.08 * math.sin(40 * s))
    calls = [machine.call(QUIET_MS), *[machine.call(0.2) for _ in range(8)]]
    found = undisturbed(calls, None)
    assert max(found.ms[1:]) <= 1.03 * min(found.ms[1:])


def test_single_turns_of_the_yardstick_that_are_lucky_do_not_make_the_rest_busy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine = on(monkeypatch)
    # Quicker than it should be, now and then.
    yardstick = machine.call(QUIET_MS, every=61, longer_ms=-0.08)
    calls = [yardstick, *[machine.call(0.2) for _ in range(20)]]
    found = undisturbed(calls, None)
    assert found.yardstick_ms == pytest.approx(QUIET_MS)
    assert found.ms[1:] == pytest.approx([0.2] * 20, rel=0.02)
    assert machine.slept_s < 2 * turns.TURNS * turns.PAUSE_S


@given(ms=st.floats(0.001, 20.0), every=st.integers(5, 50), longer_ms=st.floats(0.1, 50.0))
@settings(max_examples=30, deadline=None)
def test_interruptions_do_not_count(ms: float, every: int, longer_ms: float) -> None:
    with pytest.MonkeyPatch.context() as patch:
        machine = on(patch)
        long = machine.call(max(ms, turns.TURN_NS / 1e6), every=every, longer_ms=longer_ms)
        found = undisturbed([machine.call(QUIET_MS), long], None)
    assert found.ms[1] == pytest.approx(max(ms, turns.TURN_NS / 1e6), rel=1e-3)


def test_one_call_alone_is_its_own_yardstick(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = on(monkeypatch)
    found = undisturbed([machine.call(0.5)], None)
    assert found.ms == pytest.approx((0.5,))
