"""Means of numbers in [0, 1]: the capital is fair, the intervals hold at every look, and odd input has an answer."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.errors import EdgekitError
from edgekit.fleet.statistics.intervals import Floats, Interval, Side
from edgekit.fleet.statistics.means import (
    GRID,
    Betting,
    betting,
    certain,
    empirical_bernstein,
    log_capital,
)

UNIT = st.floats(0, 1)
VALUES = st.lists(UNIT, max_size=60)
ALPHAS = st.sampled_from([0.001, 0.01, 0.05, 0.2, 0.5])

Draw = Callable[[np.random.Generator, int], Floats]
DISTRIBUTIONS: dict[str, tuple[float, Draw]] = {
    "bernoulli, rare": (0.05, lambda rng, n: (rng.random(n) < 0.05).astype(float)),
    "bernoulli, even": (0.5, lambda rng, n: (rng.random(n) < 0.5).astype(float)),
    "beta, near one": (0.95, lambda rng, n: rng.beta(19, 1, n)),
    "constant": (0.7, lambda _, n: np.full(n, 0.7)),
    "two points": (0.9 * 0.8 + 0.1 * 0.1, lambda rng, n: np.where(rng.random(n) < 0.9, 0.8, 0.1)),
}


def margin(alpha: float, runs: int) -> float:
    """What a rate of `runs` may exceed alpha by: a chance of about one in a thousand."""
    return 3.1 * math.sqrt(alpha * (1 - alpha) / runs)


def ever_wrong(values: Floats, mean: float, alpha: float, population: int | None = None) -> bool:
    target = math.log(2 / alpha)
    sides: tuple[Side, ...] = ("lower", "upper")
    return any(log_capital(values, mean, population=population, side=s).max() >= target for s in sides)


@pytest.mark.parametrize("mean", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("side", ["lower", "upper"])
def test_capital_against_the_truth_is_fair_over_all_sequences(mean: float, side: Side) -> None:
    n, total = 9, 0.0
    for sequence in itertools.product((0.0, 1.0), repeat=n):
        ones = int(sum(sequence))
        total += mean**ones * (1 - mean) ** (n - ones) * math.exp(log_capital(sequence, mean, side=side)[-1])
    assert total == pytest.approx(1)


@pytest.mark.parametrize("side", ["lower", "upper"])
@pytest.mark.parametrize("seen", [3, 6])
def test_capital_is_fair_without_replacement(side: Side, seen: int) -> None:
    everybody = (0.0, 0.1, 0.5, 0.7, 0.9, 0.95, 1.0)
    mean = sum(everybody) / 7
    capital = [
        math.exp(log_capital(order[:seen], mean, population=7, side=side)[-1])
        for order in itertools.permutations(everybody)
    ]
    assert np.mean(capital) == pytest.approx(1)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_intervals_hold_at_every_look(name: str) -> None:
    mean, draw = DISTRIBUTIONS[name]
    rng, runs, alpha = np.random.default_rng(5), 400, 0.1
    wrong = sum(ever_wrong(draw(rng, 1000), mean, alpha) for _ in range(runs))
    assert wrong / runs <= alpha + margin(alpha, runs)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_intervals_hold_at_every_look_until_everybody_was_seen(name: str) -> None:
    rng, runs, alpha = np.random.default_rng(6), 400, 0.1
    everybody = DISTRIBUTIONS[name][1](rng, 300)
    mean = float(everybody.mean())
    wrong = sum(ever_wrong(rng.permutation(everybody)[:299], mean, alpha, 300) for _ in range(runs))
    assert wrong / runs <= alpha + margin(alpha, runs)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_empirical_bernstein_holds_at_every_look(name: str) -> None:
    mean, draw = DISTRIBUTIONS[name]
    rng, runs, alpha, wrong = np.random.default_rng(7), 150, 0.1, 0
    for _ in range(runs):
        values = draw(rng, 400)
        looks = [empirical_bernstein(values[:n], alpha) for n in range(5, 401, 15)]
        wrong += any(not look.lower <= mean + 1e-12 or not look.upper >= mean - 1e-12 for look in looks)
    assert wrong / runs <= alpha + margin(alpha, runs)


def test_a_fixed_interval_that_is_looked_at_often_would_fail_the_same_check() -> None:
    rng, runs, wrong = np.random.default_rng(8), 400, 0
    for _ in range(runs):
        values = (rng.random(1000) < 0.5).astype(float)
        n = np.arange(1, 1001)
        means = np.cumsum(values) / n
        spread = 1.645 * np.sqrt(means * (1 - means) / n)
        wrong += bool((np.abs(means - 0.5) > spread)[30:].any())
    assert wrong / runs > 0.1 + margin(0.1, runs)


@given(st.lists(UNIT, min_size=1, max_size=80), ALPHAS, st.none() | st.integers(80, 200))
def test_the_bound_is_the_last_candidate_that_fell(
    values: list[float], alpha: float, population: int | None
) -> None:
    found = betting(values, alpha, population=population, side="lower").lower
    at_least, at_most = certain(values, population)
    target = -math.log(alpha)
    if found > at_least:
        assert log_capital(values, found, population=population)[-1] >= target - 1e-9
    after = math.floor(found * GRID + 1) / GRID
    if after < at_most:
        assert log_capital(values, after, population=population)[-1] < target + 1e-9


@given(VALUES, ALPHAS)
def test_the_interval_holds_the_mean_of_what_was_seen(values: list[float], alpha: float) -> None:
    found = betting(values, alpha)
    assert 0 <= found.lower <= found.upper <= 1
    if found.estimate is not None:
        assert found.lower <= found.estimate + 1e-12
        assert found.upper >= found.estimate - 1e-12


@given(VALUES, st.none() | st.integers(60, 100))
def test_less_alpha_never_gives_a_narrower_interval(values: list[float], population: int | None) -> None:
    wide, narrow = (betting(values, alpha, population=population) for alpha in (0.01, 0.2))
    if population is None or wide.lower > narrow.lower or wide.upper < narrow.upper:
        # Without replacement both bets can win against everything; then only what is certain is claimed.
        assert (wide.lower <= narrow.lower and wide.upper >= narrow.upper) or (
            (narrow.lower, narrow.upper) == certain(values, population)
        )


@given(st.lists(UNIT, min_size=1, max_size=40), st.randoms(use_true_random=False))
def test_the_order_of_devices_does_not_matter(values: list[float], random: object) -> None:
    shuffled = sorted(values)
    one, other = betting(values, 0.05), betting(shuffled, 0.05)
    assert one.lower == pytest.approx(other.lower, abs=1.5 / GRID)
    assert one.upper == pytest.approx(other.upper, abs=1.5 / GRID)


@given(VALUES, ALPHAS)
def test_swapping_zero_and_one_mirrors_the_interval(values: list[float], alpha: float) -> None:
    one, other = betting(values, alpha), betting([1 - x for x in values], alpha)
    assert one.lower == pytest.approx(1 - other.upper, abs=1.5 / GRID)


@settings(max_examples=40)
@given(st.lists(st.lists(UNIT, max_size=30), max_size=6), st.none() | st.just(200))
def test_bit_by_bit_is_the_same_as_at_once(parts: list[list[float]], population: int | None) -> None:
    state = Betting(0.05, population=population)
    for part in parts:
        state.update(part)
        state.interval()
    assert state.interval() == betting([x for part in parts for x in part], 0.05, population=population)


def test_long_sequences_are_the_same_in_parts() -> None:
    values = np.random.default_rng(0).beta(9, 1, 40_000)
    found = betting(values, 0.05, population=90_000)
    for population, bound in ((90_000, found.lower), (None, betting(values, 0.05).lower)):
        assert log_capital(values, bound, population=population)[-1] >= math.log(40)
        assert log_capital(values, bound + 1 / GRID, population=population)[-1] < math.log(40)


def test_running_intervals_never_widen_and_begin_anew_when_the_mean_moved() -> None:
    rng = np.random.default_rng(1)
    state, widths = Betting(0.05, running=True), []
    for _ in range(20):
        state.update(rng.beta(9, 1, 10))
        widths.append(state.interval().width)
    assert widths == sorted(widths, reverse=True)
    before = state.interval()
    state.update(np.zeros(2000))
    after = state.interval()
    assert after.upper < before.lower
    assert not before.lower <= 0.1 <= before.upper


def test_who_has_seen_everybody_knows_the_mean() -> None:
    values = np.random.default_rng(2).random(77)
    found = betting(values, 0.05, population=77)
    assert found.lower == found.upper == found.estimate == float(values.mean())


@given(VALUES, st.integers(0, 40))
def test_what_is_certain_is_never_left(values: list[float], unseen: int) -> None:
    population = max(1, len(values) + unseen)
    at_least, at_most = certain(values, population)
    for found in (betting(values, 0.05, population=population), Interval(at_least, at_most, None, 0, 0.05)):
        # Two ways to the same number differ in its last digit.
        assert at_least - 1e-12 <= found.lower <= found.upper <= at_most + 1e-12
    assert at_most - at_least <= (population - len(values)) / population + 1e-12


def test_a_known_population_narrows_the_interval() -> None:
    values = np.random.default_rng(3).beta(9, 1, 150)
    assert betting(values, 0.05, population=200).width < 0.7 * betting(values, 0.05).width


def test_one_side_gets_all_of_alpha() -> None:
    values = np.random.default_rng(4).beta(9, 1, 100)
    both = betting(values, 0.1)
    assert betting(values, 0.05, side="lower").lower == both.lower
    assert betting(values, 0.05, side="lower").upper == 1
    assert betting(values, 0.05, side="upper").upper == both.upper
    assert empirical_bernstein(values, 0.05, side="upper").upper == empirical_bernstein(values, 0.1).upper


def test_a_drop_of_two_points_shows_within_some_hundred_devices() -> None:
    rng, looks = np.random.default_rng(9), []
    for _ in range(50):
        capital = log_capital(rng.beta(30.4, 1.6, 2000), 0.97, side="upper")
        looks.append(int(np.argmax(capital >= math.log(20))) + 1 if capital.max() >= math.log(20) else 2000)
    assert np.median(looks) < 150
    assert max(looks) < 500


def test_betting_is_narrower_than_the_closed_form() -> None:
    for _, draw in DISTRIBUTIONS.values():
        values = draw(np.random.default_rng(10), 300)
        assert betting(values, 0.05).width < empirical_bernstein(values, 0.05).width


@pytest.mark.parametrize("estimate", [betting, empirical_bernstein])
def test_nothing_seen_is_everything_possible(estimate: Callable[[list[float], float], Interval]) -> None:
    assert estimate([], 0.05) == Interval(0.0, 1.0, None, 0, 0.05)


@pytest.mark.parametrize("estimate", [betting, empirical_bernstein])
@pytest.mark.parametrize("value", [0.0, 1.0, 0.5])
def test_one_or_equal_values(estimate: Callable[[list[float], float], Interval], value: float) -> None:
    one, many = estimate([value], 0.05), estimate([value] * 500, 0.05)
    assert one.width > 0.4
    assert many.lower <= value <= many.upper
    assert many.width < 0.08


@pytest.mark.parametrize("wrong", [[1.1], [-0.1], [0.5, math.nan], [math.inf], [[0.5, 0.5]]])
@pytest.mark.parametrize("estimate", [betting, empirical_bernstein, log_capital])
def test_what_is_no_number_of_the_unit_interval_is_refused(
    estimate: Callable[..., object], wrong: list[float]
) -> None:
    with pytest.raises(EdgekitError, match=r"\[0, 1\]|one number per device"):
        estimate(wrong, 0.5)


def test_senseless_settings_are_refused() -> None:
    for alpha in (0.0, 1.0, -1.0, math.nan):
        with pytest.raises(EdgekitError, match="alpha"):
            betting([0.5], alpha)
    with pytest.raises(EdgekitError, match="population of 1"):
        betting([0.5, 0.5], 0.05, population=1)
    with pytest.raises(EdgekitError, match="side"):
        betting([0.5], 0.05, side="left")  # type: ignore[arg-type]
    with pytest.raises(EdgekitError, match="mean"):
        log_capital([0.5], 1.5)
    with pytest.raises(EdgekitError, match="largest_bet"):
        empirical_bernstein([0.5], 0.05, largest_bet=1.0)
    state = Betting(0.05, population=3)
    state.update([0.5, 0.5])
    with pytest.raises(EdgekitError, match="once"):
        state.update([0.5, 0.5])
    assert state.n == 2
