"""Gates: what passes, fails and holds; few devices, many looks, and columns with holes."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.fleet.errors import InvalidError
from edgekit.fleet.rules.evidence import Columns, Evidence, Observation, Slice
from edgekit.fleet.rules.gates import FAIL, HOLD, PASS, Limits, Verdict, judged
from edgekit.fleet.statistics import means, parts
from edgekit_runtime.sketches import Sketch, bin_of
from edgekit_runtime.windows import Counts, Figures, Noise, Side

SHARES = st.lists(st.floats(0, 1), min_size=1, max_size=60)
SURE = Sketch(above={bin_of(0.95): 9000, bin_of(0.7): 1000})
UNSURE = Sketch(above={bin_of(0.95): 1000, bin_of(0.4): 9000})


def evidence(
    agreement: list[float], *, meant: int = 0, errors: float = 0.0, nans: float = 0.0, latency: float = 0.9
) -> Evidence:
    n = len(agreement)
    columns = Columns(np.array(agreement), np.full(n, errors), np.full(n, nans), np.full(n, latency))
    meant = max(meant, n)
    return Evidence(
        meant=meant, taken=meant, outcomes=np.zeros(meant, dtype=bool), first=columns, now=columns,
        samples=100 * n, live_confidence=SURE, confidence=SURE, heard=(meant, 0),
    )  # fmt: skip


def asked(
    of: Evidence, limits: Limits | None = None, mode: str = "shadow", phase: str = "shadow"
) -> dict[str, Verdict]:
    return {each.gate: each for each in judged(of, limits or Limits(), mode=mode, phase=phase)}


def outcomes(found: dict[str, Verdict]) -> dict[str, str]:
    return {name: each.outcome for name, each in found.items()}


def test_twenty_good_devices_pass_every_gate() -> None:
    assert set(outcomes(asked(evidence([0.99] * 20))).values()) == {PASS}


@pytest.mark.parametrize(("ratio", "outcome"), [(2.4, PASS), (2.6, HOLD), (5.0, FAIL), (50.0, FAIL)])
def test_few_devices_that_are_far_too_slow_stop_a_release_under_a_generous_limit_too(
    ratio: float, outcome: str
) -> None:
    found = asked(evidence([1.0] * 5, latency=ratio), Limits(latency_ratio=2.5))
    assert found["latency_ratio"].outcome == outcome


def test_where_no_device_is_meant_every_gate_passes() -> None:
    assert set(outcomes(asked(Evidence(heard=(0, 20)))).values()) == {PASS}


@pytest.mark.parametrize("mode", ["shadow", "canary", "ab"])
def test_where_the_cohort_has_no_device_every_gate_holds(mode: str) -> None:
    found = asked(Evidence(), mode=mode, phase="shadow" if mode == "shadow" else "live")
    assert set(outcomes(found).values()) == {HOLD}
    assert {each.why for each in found.values()} == {"no device fits the cohort, or none was heard of lately"}


def test_where_nobody_told_yet_needed_gates_hold() -> None:
    found = outcomes(asked(Evidence(meant=20)))
    assert {name for name, each in found.items() if each == PASS} == {"sample_ratio"}
    assert FAIL not in found.values()


@pytest.mark.parametrize(
    ("agreement", "outcome"), [(0.99, PASS), (0.95, PASS), (0.93, HOLD), (0.1, FAIL), (0.0, FAIL)]
)
def test_the_only_device_of_a_stage_decides_where_it_is_good_or_far_off(
    agreement: float, outcome: str
) -> None:
    assert asked(evidence([agreement]))["agreement"].outcome == outcome


def test_one_device_far_off_among_many_that_have_not_told_decides_nothing() -> None:
    assert asked(evidence([0.0], meant=20))["agreement"].outcome == HOLD


def test_nine_of_ten_devices_are_enough_and_eight_are_not() -> None:
    assert asked(evidence([0.98] * 18, meant=20))["agreement"].outcome == PASS
    assert asked(evidence([0.98] * 16, meant=20))["agreement"].outcome == HOLD


def test_a_device_on_which_it_does_not_run_is_not_waited_for_by_the_other_gates() -> None:
    of = replace(evidence([0.98] * 8, meant=9), outcomes=np.arange(9) == 0)
    found = asked(of, Limits(failures=0.2))
    assert (found["agreement"].outcome, found["agreement"].meant) == (PASS, 8)
    assert asked(replace(Evidence(meant=3), outcomes=np.ones(3, dtype=bool)))["agreement"].outcome == HOLD


def test_many_of_very_many_devices_pass_by_their_bound() -> None:
    found = asked(evidence([0.99, 0.97] * 150, meant=100_000))["agreement"]
    assert found.outcome == PASS
    assert found.lower is not None
    assert found.lower >= 0.95


def test_what_all_devices_show_by_now_counts_for_a_pass() -> None:
    first, now = evidence([0.99] * 300), evidence([0.9] * 300)
    assert asked(replace(first, now=now.first))["agreement"].outcome == HOLD


@pytest.mark.parametrize(
    ("change", "gate"),
    [({"errors": 0.1}, "errors"), ({"nans": 0.05}, "nans"), ({"latency": 5.0}, "latency_ratio")],
)
@pytest.mark.parametrize("devices", [1, 2, 20, 500])
def test_a_release_that_breaks_one_limit_is_stopped_by_that_gate(
    change: dict[str, float], gate: str, devices: int
) -> None:
    found = outcomes(asked(evidence([0.99] * devices, **change)))
    assert {name for name, each in found.items() if each == FAIL} == {gate}


def test_a_slice_that_is_bad_stops_a_release_whose_mean_is_good() -> None:
    values = [0.99] * 900 + [0.8] * 60
    members = np.arange(960) >= 900
    of = replace(
        evidence(values), slices={"region=eu": Slice(60, members), "region=us": Slice(900, ~members)}
    )
    found = asked(of, Limits(agreement=0.9))["agreement"]
    assert (found.outcome, found.slice, found.meant) == (FAIL, "region=eu", 60)
    assert "region=eu" in found.why


def test_a_slice_of_two_devices_is_not_looked_at() -> None:
    values = [0.99] * 98 + [0.0] * 2
    of = replace(evidence(values), slices={"region=eu": Slice(2, np.arange(100) >= 98)})
    assert asked(of)["agreement"].outcome == PASS


def test_devices_without_a_latency_are_left_out_of_that_gate_alone() -> None:
    of = evidence([0.99] * 20)
    holes = replace(of.first, latency_ratio=np.where(np.arange(20) < 5, np.nan, 0.9))
    found = asked(replace(of, first=holes, now=holes))
    assert found["latency_ratio"].devices == 15
    assert found["agreement"].devices == 20
    nothing = replace(of.first, latency_ratio=np.full(20, np.nan))
    assert asked(replace(of, first=nothing, now=nothing))["latency_ratio"].outcome == HOLD


@pytest.mark.parametrize(
    ("failed", "told", "meant", "outcome"),
    [
        (0, 0, 20, HOLD), (0, 20, 20, PASS), (1, 20, 20, PASS), (2, 20, 20, HOLD), (20, 20, 20, FAIL), (1, 1, 1, FAIL),
        (1, 2, 2, FAIL), (1, 5, 5, HOLD), (8, 8, 48, FAIL), (0, 300, 10_000, PASS), (40, 300, 10_000, FAIL),
    ],
)  # fmt: skip
def test_failures_are_counted_over_the_devices_that_are_meant(
    failed: int, told: int, meant: int, outcome: str
) -> None:
    flags = np.arange(told) < failed
    of = Evidence(meant=meant, taken=told, outcomes=flags, reasons={"self_test": failed} if failed else {})
    found = asked(of)["failures"]
    assert found.outcome == outcome
    assert ("self_test" in found.why) == bool(failed)


def test_failures_that_are_known_before_the_others_told_stop_nothing() -> None:
    of = Evidence(meant=1000, taken=1000, outcomes=np.ones(8, dtype=bool), reasons={"self_test": 8})
    assert asked(of)["failures"].outcome == HOLD
    assert asked(replace(of, outcomes=np.ones(120, dtype=bool)))["failures"].outcome == FAIL


@pytest.mark.parametrize(("limit", "failed", "outcome"), [(0.0, 0, PASS), (0.0, 1, FAIL), (1.0, 20, PASS)])
def test_limits_of_nothing_and_of_everything_are_kept(limit: float, failed: int, outcome: str) -> None:
    of = Evidence(meant=20, taken=20, outcomes=np.arange(20) < failed)
    assert asked(of, Limits(failures=limit))["failures"].outcome == outcome


def test_a_confidence_that_moved_fails_and_one_that_is_missing_passes_once_devices_told() -> None:
    of = evidence([0.99] * 20)
    assert asked(replace(of, confidence=UNSURE))["drift"].outcome == FAIL
    none = Sketch()
    assert asked(replace(of, live_confidence=none, confidence=none))["drift"].outcome == PASS
    assert asked(Evidence(meant=20))["drift"].outcome == HOLD


def test_devices_that_fall_silent_within_the_bound_are_missed() -> None:
    of = evidence([0.99] * 20)
    assert asked(replace(of, heard=(100, 2000), share=0.5))["sample_ratio"].outcome == FAIL
    assert asked(replace(of, heard=(1004, 996), share=0.5))["sample_ratio"].outcome == PASS


@pytest.mark.parametrize("mode", ["canary", "ab", "shadow"])
def test_while_it_serves_nothing_is_compared(mode: str) -> None:
    found = asked(evidence([0.0] * 20), mode=mode, phase="live")
    assert not {"agreement", "drift"} & set(found)
    assert set(outcomes(found).values()) == {PASS}


def test_gates_that_only_watch_never_hold() -> None:
    found = outcomes(
        asked(Evidence(meant=20, outcomes=np.zeros(20, dtype=bool)), mode="shadow", phase="live")
    )
    assert set(found.values()) == {PASS}
    assert asked(evidence([1.0] * 20, nans=0.3), mode="shadow", phase="live")["nans"].outcome == FAIL


@given(SHARES, st.integers(0, 200), st.floats(0.01, 0.99), st.randoms())
@settings(max_examples=60, deadline=None)
def test_a_verdict_depends_neither_on_the_order_of_devices_nor_on_whether_bounds_are_shown(
    values: list[float], more: int, limit: float, random: object
) -> None:
    of, limits = evidence(values, meant=len(values) + more), Limits(agreement=limit)
    shuffled = list(values)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    other = evidence(shuffled, meant=len(values) + more)
    found = outcomes(asked(of, limits))
    assert outcomes(asked(other, limits)) == found
    brief = judged(of, limits, mode="shadow", phase="shadow", bounds=False)
    assert {each.gate: each.outcome for each in brief} == found
    assert all(each.lower is None for each in brief if each.gate != "drift")


@given(SHARES, st.floats(0.01, 1))
@settings(max_examples=60, deadline=None)
def test_the_capital_is_that_of_the_confidence_sequence(values: list[float], mean: float) -> None:
    x = np.array(values)
    ours = parts.log_capital(x, [np.ones(len(x), dtype=bool)], mean)[0]
    theirs = means.log_capital(values, mean)[-1]
    assert math.isclose(ours, theirs, rel_tol=1e-9, abs_tol=1e-9) or ours == theirs


def test_numbers_of_very_many_devices_are_counted_and_claim_a_little_less() -> None:
    x = np.random.default_rng(0).beta(40, 2, 3 * parts.COUNTED)
    members = [np.ones(len(x), dtype=bool), np.arange(len(x)) % 3 == 0]
    counted = parts.log_capital(x, members, 0.9)
    alone = [means.log_capital(x[each], 0.9)[-1] for each in members]
    assert np.all(counted <= alone)
    assert counted == pytest.approx(alone, rel=0.01)


@given(SHARES)
@settings(max_examples=30, deadline=None)
def test_shown_bounds_are_those_of_the_statistics(values: list[float]) -> None:
    found = asked(evidence(values, meant=10_000), Limits(agreement=0.5))["agreement"]
    exact = means.betting(values, 0.05, side="lower").lower
    assert found.lower is not None
    assert found.upper is not None
    assert exact - 2 / parts.COUNTED <= found.lower <= exact + 2 / parts.COUNTED
    assert found.lower <= found.upper


def test_a_release_at_its_limits_is_seldom_stopped_however_often_it_is_looked_at() -> None:
    random, stopped, runs = np.random.default_rng(7), 0, 60
    for _ in range(runs):
        values = random.beta(19, 1, 400).tolist()
        looks = (evidence(values[:n], meant=100_000) for n in range(10, 400, 26))
        found = (
            judged(each, Limits(agreement=0.95), mode="shadow", phase="shadow", bounds=False)
            for each in looks
        )
        stopped += any(verdict.outcome == FAIL for verdicts in found for verdict in verdicts)
    assert stopped <= 3


@pytest.mark.parametrize(
    "wrong",
    [
        {"agreement": 1.1}, {"agreement": math.nan}, {"errors": -0.1}, {"latency_ratio": 0.0}, {"latency_ratio": 9.0},
        {"devices": 0}, {"samples": 0}, {"alpha": 0.0}, {"alpha": 0.9}, {"drift": -1.0},
    ],
)  # fmt: skip
def test_limits_that_make_no_sense_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InvalidError, match=next(iter(wrong))):
        Limits(**wrong)


def test_a_verdict_is_plain_json() -> None:
    tree = asked(evidence([0.99] * 20))["agreement"].to_tree()
    assert tree["gate"] == "agreement"
    assert all(isinstance(each, (str, int, float, type(None))) for each in tree.values())


def test_what_the_live_version_differs_from_itself_is_no_fault_of_the_candidate() -> None:
    latency = Side(latency_ms=Sketch.of(8.0)), Side(latency_ms=Sketch.of(4.0))
    counts = Counts(seen=200, compared=100, agreed=90, nans=5, live_nans=3, errors=10)
    found = Observation.of_pair(
        Figures(counts, live=latency[0], candidate=latency[1], noise=Noise(compared=50, agreed=47))
    )
    assert found.agreement == pytest.approx(0.96)
    assert (found.nans, found.samples) == (pytest.approx(0.02), 110)
    assert found.errors == pytest.approx(10 / 110)
    assert found.latency_ratio == pytest.approx(0.5, rel=0.05)


def test_a_device_that_showed_nothing_has_no_latency_and_no_fault() -> None:
    found = Observation.of_pair(Figures())
    assert (found.agreement, found.errors, found.nans, found.samples) == (1.0, 0.0, 0.0, 0)
    assert math.isnan(found.latency_ratio)
    serving = Observation.of_serving(Figures(Counts(seen=10, live_nans=1, errors=2)), Sketch())
    assert (serving.errors, serving.nans, serving.agreement) == (0.2, 0.1, 1.0)
    assert len(Columns.of([found, serving])) == 2
