"""Rare failures and shares of arms: exact fairness, exact rates of false alarms, and reference functions of scipy."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from edgekit.errors import EdgekitError
from edgekit.fleet.statistics.rare import interval, log_evidence_above, log_evidence_below
from edgekit.fleet.statistics.sample_ratio import log_bayes_factor, p_value
from edgekit.fleet.statistics.special import chi_square_quantile, log_beta_above, log_beta_below

Evidence = Callable[[int, int, float], float]


@st.composite
def counts(draw: st.DrawFn, most: int = 400) -> tuple[int, int]:
    n = draw(st.integers(0, most))
    return draw(st.integers(0, n)), n


@given(st.floats(0.3, 1e5), st.floats(0.3, 1e5), st.floats(-6, 6))
def test_incomplete_beta_is_that_of_scipy(a: float, b: float, away: float) -> None:
    sd = math.sqrt(a * b / (a + b) ** 2 / (a + b + 1))
    x = min(max(a / (a + b) + away * sd, 1e-9), 1 - 1e-9)
    below, above = stats.beta.logcdf(x, a, b), stats.beta.logsf(x, a, b)
    for expected, found in ((below, log_beta_below(x, a, b)), (above, log_beta_above(x, a, b))):
        if expected > -300:
            assert found == pytest.approx(expected, rel=1e-7, abs=1e-8)


@pytest.mark.parametrize("degrees", [1, 4, 9, 30])
@pytest.mark.parametrize("share", [0.9, 0.95, 0.99, 0.999])
def test_chi_square_is_near_that_of_scipy(degrees: int, share: float) -> None:
    assert chi_square_quantile(share, degrees) == pytest.approx(stats.chi2.ppf(share, degrees), rel=0.032)


@pytest.mark.parametrize(("failures", "n", "limit"), [(0, 50, 0.1), (3, 50, 0.2), (10, 20, 0.3), (7, 7, 0.4)])
def test_evidence_is_the_ratio_of_the_integrals(failures: int, n: int, limit: float) -> None:
    def likelihood(p: float) -> float:
        return float(p**failures * (1 - p) ** (n - failures))

    below, _ = integrate.quad(lambda p: likelihood(p) / (2 * math.sqrt(limit * p)), 0, limit)
    assert log_evidence_below(failures, n, limit) == pytest.approx(
        math.log(below / likelihood(limit)), abs=1e-6
    )
    above, _ = integrate.quad(lambda p: likelihood(p) / (p * math.log(1 / limit)), limit, 1)
    exact = math.log(above / likelihood(limit))
    if failures:
        assert log_evidence_above(failures, n, limit) == pytest.approx(exact, abs=1e-6)
    else:
        assert log_evidence_above(failures, n, limit) <= exact


@pytest.mark.parametrize("limit", [0.01, 0.1, 0.6])
@pytest.mark.parametrize("n", [1, 5, 40])
def test_evidence_is_fair_at_the_limit_and_loses_beyond_it(limit: float, n: int) -> None:
    def expected(evidence: Evidence, p: float) -> float:
        return sum(float(stats.binom.pmf(k, n, p)) * math.exp(evidence(k, n, limit)) for k in range(n + 1))

    assert expected(log_evidence_below, limit) == pytest.approx(1)
    assert expected(log_evidence_below, limit * 1.3) < 1
    assert expected(log_evidence_above, limit) <= 1 + 1e-9
    assert expected(log_evidence_above, limit * 0.7) < 1


def ever_shown(evidence: Evidence, p: float, limit: float, looks: int, alpha: float) -> float:
    """Exact probability that evidence reaches 1/alpha at any of so many looks, one after each device."""
    alive, stopped = np.array([1.0]), 0.0
    for n in range(1, looks + 1):
        alive = np.r_[alive * (1 - p), 0.0] + np.r_[0.0, alive * p]
        for k in np.flatnonzero(alive > 1e-12):
            if evidence(int(k), n, limit) >= -math.log(alpha):
                stopped += float(alive[k])
                alive[k] = 0.0
    return stopped


@pytest.mark.parametrize("evidence", [log_evidence_above, log_evidence_below])
@pytest.mark.parametrize("limit", [0.03, 0.3])
def test_false_alarms_over_all_looks_are_at_most_alpha(evidence: Evidence, limit: float) -> None:
    rate = ever_shown(evidence, limit, limit, 250, 0.1)
    assert 0.02 < rate <= 0.1


def test_rates_far_from_the_limit_show_within_some_hundred_devices() -> None:
    assert ever_shown(log_evidence_above, 0.06, 0.02, 400, 0.05) > 0.9
    assert ever_shown(log_evidence_below, 0.002, 0.02, 400, 0.05) > 0.85


@given(counts(), st.floats(0.001, 0.3))
def test_bounds_are_where_the_evidence_begins(kn: tuple[int, int], alpha: float) -> None:
    k, n = kn
    found = interval(k, n, alpha)
    target = math.log(2 / alpha)
    if n:
        assert found.lower <= k / n <= found.upper
    if found.lower > 0:
        assert log_evidence_above(k, n, found.lower) == pytest.approx(target, abs=1e-6)
        # It is one crossing: everything beyond is refused as well.
        assert all(log_evidence_above(k, n, found.lower * f) >= target for f in (0.9, 0.5, 0.1, 1e-3))
    if found.upper < 1:
        assert log_evidence_below(k, n, found.upper) == pytest.approx(target, abs=1e-6)
        for share in (0.1, 0.5, 0.9, 0.999):
            assert log_evidence_below(k, n, found.upper + share * (1 - found.upper)) >= target


@given(counts(100), st.integers(0, 60))
def test_less_alpha_is_never_narrower_and_a_population_keeps_to_what_is_certain(
    kn: tuple[int, int], unseen: int
) -> None:
    k, n = kn
    for population in (None, max(1, n + unseen)):
        wide, narrow = (interval(k, n, alpha, population=population) for alpha in (0.01, 0.2))
        assert wide.lower <= narrow.lower <= narrow.upper <= wide.upper
        if population:
            assert k / population <= wide.lower <= wide.upper <= (k + population - n) / population


def test_one_side_gets_all_of_alpha() -> None:
    both = interval(5, 200, 0.1)
    assert interval(5, 200, 0.05, side="lower").lower == both.lower
    assert interval(5, 200, 0.05, side="lower").upper == 1
    assert interval(5, 200, 0.05, side="upper").upper == both.upper
    assert interval(5, 200, 0.05, side="upper", population=1000).lower == 5 / 1000


@pytest.mark.parametrize("bad", [0, 1, 6, 40])
def test_intervals_of_a_population_hold_at_every_look(bad: int) -> None:
    rng, runs, alpha, population, wrong = np.random.default_rng(bad), 120, 0.1, 60, 0
    for _ in range(runs):
        failed = np.cumsum(rng.permutation(np.arange(population) < bad))
        looks = (
            interval(int(failed[n - 1]), n, alpha, population=population) for n in range(1, population + 1)
        )
        wrong += any(not look.lower <= bad / population <= look.upper for look in looks)
    assert wrong / runs <= alpha + 3.1 * math.sqrt(alpha * (1 - alpha) / runs)


def test_a_large_population_is_like_one_without_end() -> None:
    one, other = interval(4, 300, 0.05, population=100_000), interval(4, 300, 0.05)
    assert one.lower == pytest.approx(other.lower, rel=0.02)
    assert one.upper == pytest.approx(other.upper, rel=0.02)


def test_who_has_seen_everybody_knows_the_share() -> None:
    found = interval(3, 50, 0.05, population=50)
    assert found.lower == found.upper == found.estimate == 3 / 50


def test_no_devices_all_failures_and_none() -> None:
    nothing = interval(0, 0, 0.05)
    assert (nothing.lower, nothing.upper, nothing.estimate) == (0, 1, None)
    assert interval(0, 1, 0.05).lower == 0
    assert interval(1, 1, 0.05).upper == 1
    # Seeing it once at one look: the rule of three gives 0.00998.
    assert 0.00998 < interval(0, 300, 0.05, side="upper").upper < 0.0135
    assert interval(300, 300, 0.05).lower > 0.95


def test_impossible_counts_are_refused() -> None:
    for wrong in ((3, 2), (-1, 2), (1.5, 2), (0, -1), (True, 2), (math.nan, 2)):
        with pytest.raises(EdgekitError):
            interval(*wrong, 0.05)  # type: ignore[arg-type]
    with pytest.raises(EdgekitError, match="population"):
        interval(1, 5, 0.05, population=4)
    with pytest.raises(EdgekitError, match="limit"):
        log_evidence_above(1, 5, 0.0)


@pytest.mark.parametrize("shares", [(1, 1), (9, 1), (0.2, 0.3, 0.5)])
def test_the_bayes_factor_is_fair_while_the_promise_holds(shares: tuple[float, ...]) -> None:
    n, total = 6, 0.0
    promised = [share / sum(shares) for share in shares]
    for counts in itertools.product(range(n + 1), repeat=len(shares)):
        if sum(counts) == n:
            chance = float(stats.multinomial.pmf(counts, n, promised))
            total += chance * math.exp(log_bayes_factor(counts, shares))
    assert total == pytest.approx(1)


def test_arms_that_keep_their_shares_raise_few_alarms_at_every_look() -> None:
    rng, runs, alarms = np.random.default_rng(11), 300, 0
    for _ in range(runs):
        first, p = np.cumsum(rng.random(600) < 0.5), 1.0
        for n in range(1, 601, 3):
            p = p_value((int(first[n - 1]), n - int(first[n - 1])), (1, 1), p)
        alarms += p <= 0.1
    assert alarms / runs <= 0.1 + 3.1 * math.sqrt(0.09 / runs)


def test_arms_that_miss_their_shares_are_found() -> None:
    assert p_value((560, 440), (1, 1)) < 0.01
    assert p_value((90_600, 9_400), (9, 1)) < 1e-4
    assert p_value((5, 3), (1, 1)) == 1


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), max_size=10))
def test_the_p_value_never_rises(steps: list[tuple[int, int]]) -> None:
    first = second = 0
    p = 1.0
    for one, other in steps:
        first, second = first + one, second + other
        after = p_value((first, second), (1, 1), p)
        assert 0 <= after <= p
        p = after


def test_shares_that_are_none_are_refused() -> None:
    for counts, shares in (((1,), (1,)), ((1, 2), (1, 2, 3)), ((1, -2), (1, 1)), ((1, 2), (0, 1))):
        with pytest.raises(EdgekitError):
            p_value(counts, shares)
    with pytest.raises(EdgekitError, match="previous"):
        p_value((1, 2), (1, 1), math.nan)
