"""Interleaved timing: fair order, paired ratios, bounded time, and nothing left switched off."""

from __future__ import annotations

import gc
import time
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.bench import LatencyStats, interleave, ratio, sample, stats
from edgekit_devices.harness import turn


def spinning(seconds: float) -> Callable[[], None]:
    def spin() -> None:
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            pass

    return spin


def test_a_runner_twice_as_slow_is_twice_as_slow() -> None:
    rounds = sample(
        {"slow": spinning(0.001), "fast": spinning(0.0005)}, min_rounds=30, warmup=2, max_seconds=3
    )
    compared = ratio(rounds["slow"], rounds["fast"])
    assert compared.low <= compared.value <= compared.high
    assert compared.value == pytest.approx(2, rel=0.2)
    assert stats(rounds["fast"]).p50_ms == pytest.approx(0.5, rel=0.2)


def test_the_rounds_of_all_runners_are_the_same_rounds() -> None:
    found = interleave(
        {"a": spinning(0.0001), "b": spinning(0.0001)}, min_rounds=20, warmup=1, max_seconds=0.3
    )
    assert found["a"].n == found["b"].n >= 20


def test_a_tiny_runner_is_called_many_times_a_round() -> None:
    calls = Counter[str]()

    def tiny() -> None:
        calls["tiny"] += 1

    found = interleave({"tiny": tiny}, min_rounds=10, warmup=3, max_seconds=0.2)
    assert calls["tiny"] > 20 * found["tiny"].n
    assert 0 < found["tiny"].p50_ms < 0.05


def test_time_is_bounded_but_a_median_still_means_something() -> None:
    started = time.perf_counter()
    found = interleave({"slow": spinning(0.02)}, min_rounds=1000, warmup=1, max_seconds=0.05)
    assert time.perf_counter() - started < 2
    assert found["slow"].n == 5


def test_the_garbage_collector_is_off_while_timing_and_on_again_after() -> None:
    seen: list[bool] = []
    interleave({"x": lambda: seen.append(gc.isenabled())}, min_rounds=1, warmup=1, max_seconds=0.1)
    assert set(seen) == {False}
    assert gc.isenabled()


def test_the_garbage_collector_comes_back_after_a_failure() -> None:
    def fail() -> None:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        interleave({"x": fail}, min_rounds=1, warmup=1, max_seconds=1)
    assert gc.isenabled()


def test_nobody_to_time_gives_nothing() -> None:
    assert interleave({}, min_rounds=1, warmup=1, max_seconds=1) == {}


@pytest.mark.parametrize(
    "options", [{"min_rounds": 0}, {"warmup": 0}, {"max_seconds": 0}, {"max_seconds": float("nan")}]
)
def test_options_that_measure_nothing_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        interleave({"x": lambda: None}, **{"min_rounds": 1, "warmup": 1, "max_seconds": 1, **options})  # type: ignore[arg-type]


@given(st.integers(1, 6))
def test_the_order_gives_everybody_every_place(count: int) -> None:
    names = [str(index) for index in range(count)]
    orders = [turn(names, index) for index in range(2 * count)]
    assert all(sorted(order) == names for order in orders)
    assert all({order[place] for order in orders} == set(names) for place in range(count))


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=60), st.floats(0.1, 10))
@settings(max_examples=25)
def test_a_constant_factor_is_found_exactly(values: list[float], factor: float) -> None:
    second = np.asarray(values)
    found = ratio(second * factor, second, resamples=50)
    assert found.value == pytest.approx(factor)
    assert found.low == pytest.approx(factor)
    assert found.high == pytest.approx(factor)


def test_what_lasts_for_many_rounds_widens_the_interval_and_what_lasts_for_one_does_not() -> None:
    generator = np.random.default_rng(0)
    noise = 1 + 0.01 * generator.standard_normal(1000)
    disturbed = np.repeat([1.0, 1.06, 1.0, 1.06, 1.0, 1.0, 1.06, 1.06, 1.0, 1.06], 100)
    lasting = ratio(disturbed * noise, np.ones(1000))
    shuffled = ratio(generator.permutation(disturbed) * noise, np.ones(1000))
    assert lasting.high - lasting.low > 1.5 * (shuffled.high - shuffled.low)


def test_one_disturbed_round_does_not_move_the_ratio() -> None:
    first, second = np.full(51, 2.0), np.full(51, 1.0)
    first[7] = 500
    assert ratio(first, second).value == 2


def test_the_interval_is_the_same_for_the_same_seed() -> None:
    rng = np.random.default_rng(1)
    first, second = rng.uniform(1, 2, 40), rng.uniform(1, 2, 40)
    assert ratio(first, second) == ratio(first, second)
    assert ratio(first, second).low < ratio(first, second).high


@pytest.mark.parametrize("shapes", [((3,), (4,)), ((0,), (0,)), ((2, 2), (2, 2))])
def test_rounds_that_are_not_pairs_are_refused(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    with pytest.raises(ValueError, match="shapes"):
        ratio(np.ones(shapes[0]), np.ones(shapes[1]))


def test_one_round_has_statistics_too() -> None:
    assert stats(np.asarray([3.0])) == LatencyStats(3.0, 3.0, 3.0, 1)
