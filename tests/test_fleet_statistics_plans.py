"""Planning, corrections, drift and ratios: against simulation, closed forms and their own symmetries."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.spatial.distance import jensenshannon

from edgekit.errors import EdgekitError
from edgekit.fleet.statistics import rare
from edgekit.fleet.statistics.corrections import bonferroni
from edgekit.fleet.statistics.drift import (
    bins_for,
    jensen_shannon,
    psi,
    psi_critical,
    psi_noise,
    rebin,
)
from edgekit.fleet.statistics.intervals import Interval
from edgekit.fleet.statistics.means import betting, log_capital
from edgekit.fleet.statistics.planning import (
    Outcomes,
    always,
    devices_needed,
    devices_without_failure,
    paired,
    smallest,
    spread,
)
from edgekit.fleet.statistics.ratios import clipping_bias, from_interval, from_unit, to_unit
from edgekit_runtime.sketches import Sketch

COUNTS = st.lists(st.integers(0, 1000), min_size=2, max_size=12).filter(any)


@pytest.mark.parametrize(
    ("outcomes", "limit", "alpha"),
    [
        (spread(0.97, 0.03), 0.95, 0.05), (spread(0.93, 0.06).mirrored(), 0.05, 0.01),
        (paired(0.2, 0.3, 1.2), 0.5, 0.01), (paired(0.0, 0.3, 1.2).mirrored(), 5 / 12, 0.05),
    ],
)  # fmt: skip
def test_the_planned_number_of_devices_shows_it_with_the_planned_power(
    outcomes: Outcomes, limit: float, alpha: float
) -> None:
    n = devices_needed(outcomes, limit, alpha, 0.8)
    assert n is not None
    rng = np.random.default_rng(0)
    drawn = rng.choice(outcomes.values, (400, n), p=outcomes.chances)
    capital = np.array([log_capital(each, limit) for each in drawn])
    shown = (capital[:, -1] >= -math.log(alpha)).mean()
    assert 0.7 <= shown <= 0.92
    # It may show it at any look, so it is shown a little more often than planned.
    assert (capital.max(axis=1) >= -math.log(alpha)).mean() >= shown


def test_the_planned_numbers_are_those_that_the_pages_name() -> None:
    assert devices_needed(spread(0.97, 0.03), 0.95, 0.025, 0.5) == pytest.approx(250, rel=0.05)
    assert devices_without_failure(0.01, 0.05) == pytest.approx(380, rel=0.05)
    n = devices_without_failure(0.05, 0.01)
    assert (
        rare.interval(0, n, 0.01, side="upper").upper
        <= 0.05
        < rare.interval(0, n - 1, 0.01, side="upper").upper
    )


@given(st.floats(0.5, 0.99), st.floats(0.001, 0.1), st.floats(0.2, 0.95))
def test_more_power_and_a_smaller_gap_take_more_devices(mean: float, sd: float, power: float) -> None:
    sd = min(sd, 0.5 * math.sqrt(mean * (1 - mean)))
    found = [devices_needed(spread(mean, sd), mean - gap, 0.05, power) for gap in (0.05, 0.1, 0.2)]
    assert all(each is not None for each in found)
    assert sorted(found, reverse=True) == found  # type: ignore[type-var]
    more = devices_needed(spread(mean, sd), mean - 0.05, 0.05, (1 + power) / 2)
    assert more >= found[0]  # type: ignore[operator]


def test_what_no_number_of_devices_shows_has_no_plan() -> None:
    assert devices_needed(always(0.5), 0.6, 0.05, 0.8) is None
    assert devices_needed(always(0.5), 0.5, 0.05, 0.8) is None
    assert smallest(3, 0.9, lambda effect: devices_needed(always(0.05 + effect), 0.05, 1e-9, 0.8)) is None


def test_the_smallest_effect_is_the_plan_read_backwards() -> None:
    def needed(effect: float) -> int | None:
        return devices_needed(spread(0.95 - effect, 0.03).mirrored(), 0.05, 0.01, 0.8)

    found = smallest(100, 0.9, needed)
    assert found is not None
    assert needed(found) <= 100 < needed(0.99 * found)  # type: ignore[operator]


def test_plans_of_nothing_are_refused() -> None:
    for wrong in (-0.1, 1.1, math.nan):
        with pytest.raises(EdgekitError):
            spread(wrong, 0.1)
    with pytest.raises(EdgekitError, match="deviation"):
        spread(0.9, 0.4)
    for wrong in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(EdgekitError, match="span"):
            paired(0.0, 0.1, wrong)
    with pytest.raises(EdgekitError, match="power"):
        devices_needed(always(0.5), 0.4, 0.05, 1.0)
    for wrong in (0.0, 1.0, math.nan):
        with pytest.raises(EdgekitError, match="limit"):
            devices_needed(always(0.5), wrong, 0.05, 0.8)


def test_equal_parts_of_a_level() -> None:
    assert bonferroni(0.05) == 0.05
    assert bonferroni(0.05, 5, 2) == pytest.approx(0.005)
    for wrong in (0, -1, 1.5):
        with pytest.raises(EdgekitError):
            bonferroni(0.05, wrong)  # type: ignore[arg-type]


def test_passing_all_gates_errs_no_more_than_one_gate() -> None:
    rng = np.random.default_rng(2)
    p = rng.random((20_000, 5))
    p[:, 1:] **= 8  # The others are good and mostly accept.
    assert (p < 0.05).all(axis=1).mean() <= 0.05
    # Stopping at any of five gates needs the correction that accepting does not.
    alarms = rng.random((20_000, 5))
    assert (alarms < 0.05).any(axis=1).mean() > 0.2
    assert (alarms < bonferroni(0.05, 5)).any(axis=1).mean() == pytest.approx(0.05, abs=0.006)


@given(
    st.integers(2, 10).flatmap(
        lambda n: st.tuples(*[st.lists(st.integers(0, 999), min_size=n, max_size=n)] * 2)
    )
)
def test_divergences_are_symmetric_and_bounded(both: tuple[list[int], list[int]]) -> None:
    one, other = both
    if not any(one) or not any(other):
        return
    assert psi(one, other) == pytest.approx(psi(other, one))
    assert psi(one, one) == 0
    assert psi(one, other) >= 0
    found = jensen_shannon(one, other)
    assert 0 <= found <= 1
    assert found == pytest.approx(float(jensenshannon(one, other, base=2)) ** 2, abs=1e-7)


def test_divergences_on_examples_by_hand() -> None:
    assert jensen_shannon([5, 0], [0, 7]) == 1
    expected = (0.5 - 0.6) * math.log(0.5 / 0.6) + (0.5 - 0.4) * math.log(0.5 / 0.4)
    assert psi([500_000, 500_000], [600_000, 400_000]) == pytest.approx(expected, rel=1e-4)
    assert math.isfinite(psi([10, 0], [0, 10]))


@pytest.mark.parametrize(("n", "m"), [(1000, 1000), (5000, 50), (50, 50)])
def test_noise_without_drift_is_as_expected_and_raises_few_alarms(n: int, m: int) -> None:
    rng, bins = np.random.default_rng(3), 10
    p = np.full(bins, 1 / bins)
    found = np.array([psi(rng.multinomial(n, p), rng.multinomial(m, p)) for _ in range(2000)])
    assert found.mean() == pytest.approx(psi_noise(n, m, bins), rel=0.15)
    assert (found > psi_critical(n, m, bins, 0.05)).mean() <= 0.05 + 3.1 * math.sqrt(0.05 * 0.95 / 2000)
    assert (found > psi_critical(n, m, bins, 0.5)).mean() > 0.2


def test_few_numbers_raise_no_alarm_and_many_show_a_real_drift() -> None:
    rng = np.random.default_rng(4)
    reference, same, moved = (
        Sketch.of(*rng.lognormal(mu, 1, n)) for mu, n in ((0, 2000), (0, 20), (0.5, 1000))
    )
    bins = bins_for(reference.n, same.n)
    assert bins == 4
    found = psi(*rebin(reference, same, bins))
    assert found < psi_critical(reference.n, same.n, bins, 0.001)
    assert psi(*rebin(reference, moved)) > 2 * psi_critical(reference.n, moved.n, 10, 0.001)
    assert psi_critical(10, 10, 1, 0.05) == math.inf


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=80), st.lists(st.floats(-1e6, 1e6), max_size=40))
def test_rebinning_loses_no_number(reference: list[float], current: list[float]) -> None:
    before, after = rebin(Sketch.of(*reference), Sketch.of(*current))
    assert before.shape == after.shape
    assert 1 <= len(before) <= 21
    assert (before.sum(), after.sum()) == (len(reference), len(current))


def test_bins_are_deciles_of_the_reference() -> None:
    rng = np.random.default_rng(5)
    before, after = rebin(Sketch.of(*rng.normal(0, 1, 2000)), Sketch.of(*rng.normal(0, 1, 1000)))
    assert len(before) == 10
    # A bin of a sketch holds up to 4% of the value, so a decile may be off by some.
    assert np.abs(before - 200).max() < 60
    assert np.abs(after - 100).max() < 60


def test_leaving_a_single_value_is_a_drift_on_either_side() -> None:
    zeros = Sketch(zeros=100)
    for moved in (5.0, -5.0):
        before, after = rebin(zeros, Sketch.of(*[moved] * 100))
        assert jensen_shannon(before, after) == 1


def test_histograms_that_do_not_fit_are_refused() -> None:
    for one, other in (([1, 2], [1, 2, 3]), ([1, -1], [1, 1]), ([0, 0], [1, 1]), ([1, math.nan], [1, 1])):
        with pytest.raises(EdgekitError):
            psi(one, other)  # type: ignore[arg-type]
        with pytest.raises(EdgekitError):
            jensen_shannon(one, other)  # type: ignore[arg-type]
    with pytest.raises(EdgekitError, match="reference"):
        rebin(Sketch(), Sketch.of(1.0))
    with pytest.raises(EdgekitError, match="smoothing"):
        psi([1, 1], [1, 1], smoothing=0)


@given(st.floats(0.25, 4))
def test_ratios_come_back(ratio: float) -> None:
    assert from_unit(float(to_unit([ratio])[0])) == pytest.approx(ratio)


def test_ratios_at_and_beyond_the_ends() -> None:
    assert to_unit([0.25, 1, 4]).tolist() == pytest.approx([0, 0.5, 1])
    assert to_unit([1e-9, 100, math.inf]).tolist() == [0, 1, 1]
    for wrong in (0.0, -1.0, math.nan):
        with pytest.raises(EdgekitError, match="ratio"):
            to_unit([1.0, wrong])
    with pytest.raises(EdgekitError, match=r"\[0, 1\]"):
        from_unit(math.nan)


def test_cutting_off_moves_the_mean_towards_one_by_what_sticks_out() -> None:
    assert clipping_bias([0.5, 2, 3.9]) == 1
    assert clipping_bias([]) == 1
    assert clipping_bias([1, 16]) == pytest.approx(0.5)
    assert clipping_bias([1, 1 / 16]) == pytest.approx(2)
    assert clipping_bias([1, math.inf]) == 0


def test_an_interval_of_latency_holds_the_geometric_mean() -> None:
    ratios = np.random.default_rng(6).lognormal(math.log(1.1), 0.1, 300)
    found = from_interval(betting(to_unit(ratios), 0.05))
    assert found.lower < 1.1 < found.upper
    assert found.width < 0.1
    assert found.estimate == pytest.approx(stats.gmean(ratios))
    assert from_interval(Interval(0, 1, None, 0, 0.05)) == Interval(0.25, 4, None, 0, 0.05)
