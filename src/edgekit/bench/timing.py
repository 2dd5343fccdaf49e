"""Interleaved timing: every contender runs once a round, so that drift of the machine falls on all alike."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgekit_devices.harness import turn, without_collector

Samples = NDArray[np.float64]

# A slice long enough that reading the clock (about 0.1 µs) and one interrupt do not decide a round.
SLICE_NS = 200_000
MAX_BATCH = 256
# Rounds beyond `min_rounds` are bought until the standard error of every median is below this share of it.
TARGET_ERROR = 0.01
# What a slow contender gets even when the time is over: below this a median says nothing.
LEAST_ROUNDS = 5
MAX_ROUNDS = 5_000
# Blocks that the rounds are resampled in: the state of a machine lasts for seconds, so rounds are not independent.
BLOCKS = 10


@dataclass(frozen=True, slots=True)
class LatencyStats:
    """Latency of one call in milliseconds, over `n` rounds.

    A round of a very small network is the mean over a batch of calls, so p90 and p99 are those of means.
    """

    p50_ms: float
    p90_ms: float
    p99_ms: float
    n: int


@dataclass(frozen=True, slots=True)
class Ratio:
    """Median of the per-round ratios with its 95% confidence interval; below 1 the first is faster."""

    value: float
    low: float
    high: float


def interleave(
    runners: Mapping[str, Callable[[], None]],
    *,
    min_rounds: int = 50,
    warmup: int = 10,
    max_seconds: float = 10.0,
) -> dict[str, LatencyStats]:
    """Time callables side by side; `sample` with its rounds summed up."""
    rounds = sample(runners, min_rounds=min_rounds, warmup=warmup, max_seconds=max_seconds)
    return {name: stats(values) for name, values in rounds.items()}


def sample(
    runners: Mapping[str, Callable[[], None]],
    *,
    min_rounds: int = 50,
    warmup: int = 10,
    max_seconds: float = 10.0,
) -> dict[str, Samples]:
    """Time callables side by side, round by round, with the garbage collector off.

    Args:
        runners: name to a call without arguments; inputs are set before.
        min_rounds: rounds to run; more follow while time is left and a median is uncertain by more than 1%.
        warmup: calls of each runner before the first round.
        max_seconds: no round starts after this many seconds, except the first `LEAST_ROUNDS`.

    Returns:
        Milliseconds of one call, shape (rounds,), for each runner; row i of all of them is the same round.

    Raises:
        ValueError: `min_rounds` or `warmup` is below 1, or `max_seconds` is not above 0.
    """
    if min_rounds < 1 or warmup < 1 or not max_seconds > 0:
        raise ValueError(
            f"min_rounds={min_rounds} and warmup={warmup} must be at least 1, {max_seconds=} above 0"
        )
    names = list(runners)
    collected: dict[str, list[float]] = {name: [] for name in names}
    if not names:
        return {}
    with without_collector():
        started = time.perf_counter_ns()
        batches = {name: _batch(runners[name], warmup) for name in names}
        for index in range(MAX_ROUNDS):
            elapsed = (time.perf_counter_ns() - started) / 1e9
            if _is_enough(collected, index, min_rounds=min_rounds, seconds_left=max_seconds - elapsed):
                break
            for name in turn(names, index):
                collected[name].append(_time(runners[name], batches[name]) / 1e6)
    return {name: np.asarray(values, dtype=np.float64) for name, values in collected.items()}


def stats(values: Samples) -> LatencyStats:
    """Sum up the rounds of one runner.

    Args:
        values: milliseconds, shape (rounds,), at least one.
    """
    p50, p90, p99 = (float(each) for each in np.percentile(values, (50, 90, 99)))
    return LatencyStats(p50, p90, p99, len(values))


def ratio(first: Samples, second: Samples, *, seed: int = 0, resamples: int = 2000) -> Ratio:
    """Compare two runners of the same `sample` call.

    Each round is a pair that shared the state of the machine, so the ratio is taken inside the round. The
    interval is the percentile bootstrap of the median with a fixed seed, over moving blocks of rounds (Künsch, 1989):
    what a clock or a neighbour does to one file and not to the other widens it.

    Args:
        first: milliseconds, shape (rounds,).
        second: milliseconds, shape (rounds,), the same rounds.
        seed: of the bootstrap.
        resamples: of the bootstrap.

    Raises:
        ValueError: the shapes differ or are empty.
    """
    if first.shape != second.shape or first.ndim != 1 or not len(first):
        raise ValueError(f"shapes {first.shape} and {second.shape}: expected the rounds of one `sample` call")
    ratios = first / second
    generator = np.random.default_rng(seed)
    length = max(1, len(ratios) // BLOCKS)
    within, blocks = np.arange(length), math.ceil(len(ratios) / length)
    # One resample at a time keeps the memory small for thousands of rounds.
    medians = []
    for _ in range(resamples):
        starts = generator.integers(0, len(ratios) - length + 1, blocks)
        medians.append(float(np.median(ratios[(starts[:, None] + within).ravel()])))
    low, high = (float(each) for each in np.percentile(medians, (2.5, 97.5)))
    return Ratio(float(np.median(ratios)), low, high)


def _batch(runner: Callable[[], None], warmup: int) -> int:
    """Warm a runner up and return how many of its calls make one slice."""
    took = [_time(runner, 1) for _ in range(warmup)]
    fastest = max(min(took), 1.0)
    return min(MAX_BATCH, max(1, math.ceil(SLICE_NS / fastest)))


def _time(runner: Callable[[], None], calls: int) -> float:
    """Return the nanoseconds of one call."""
    started = time.perf_counter_ns()
    for _ in range(calls):
        runner()
    return (time.perf_counter_ns() - started) / calls


def _is_enough(
    collected: Mapping[str, list[float]], done: int, *, min_rounds: int, seconds_left: float
) -> bool:
    if seconds_left <= 0:
        return done >= min(LEAST_ROUNDS, min_rounds)
    # The spread is looked at every tenth round only: it costs as much as a small network.
    if done < min_rounds or (done - min_rounds) % 10:
        return False
    return all(_error(np.asarray(values)) <= TARGET_ERROR for values in collected.values())


def _error(values: Samples) -> float:
    """Standard error of the median relative to it: 1.2533 σ / √n, with σ = 1.4826 median |x − median|."""
    middle = float(np.median(values))
    deviation = 1.4826 * float(np.median(np.abs(values - middle)))
    return 1.2533 * deviation / math.sqrt(len(values)) / middle if middle else 0.0
