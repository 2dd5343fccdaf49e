"""The fixture `against`: pytest-benchmark times a hot path, and its reference right before it, round by round."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.guard.verdicts import CALLS, REFERENCE

WARMUP_ROUNDS = 3


class Against(Protocol):
    """See `against`."""

    def __call__(
        self,
        call: Callable[[], Any],
        reference: Callable[[], Any],
        *,
        rounds: int,
        calls: int = 1,
        reference_calls: int = 1,
        before: Callable[[], Any] | None = None,
    ) -> None: ...


@pytest.fixture
def against(benchmark: BenchmarkFixture) -> Against:
    """Measure a hot path and its reference in turns.

    `call` and `reference` run `calls` and `reference_calls` times a round, `before` once, untimed. One slice should
    last a millisecond or more: an interrupt then does not decide a round.
    """

    def measure(
        call: Callable[[], Any],
        reference: Callable[[], Any],
        *,
        rounds: int,
        calls: int = 1,
        reference_calls: int = 1,
        before: Callable[[], Any] | None = None,
    ) -> None:
        took_s: list[float] = []

        def first() -> None:
            if before is not None:
                before()
            began = time.perf_counter()
            for _ in range(reference_calls):
                reference()
            took_s.append((time.perf_counter() - began) / reference_calls)

        def work() -> None:
            for _ in range(calls):
                call()

        # `setup` runs before each round, untimed: that is where the reference of the round belongs.
        benchmark.pedantic(work, setup=first, rounds=rounds, warmup_rounds=WARMUP_ROUNDS)  # type: ignore[no-untyped-call]
        benchmark.extra_info.update({REFERENCE: took_s[-rounds:], CALLS: calls})

    return measure
