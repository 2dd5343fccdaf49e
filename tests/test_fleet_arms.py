"""Two arms of an A/B comparison: verdicts that hold at every look, and what devices tell of themselves."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.errors import EdgekitError
from edgekit.fleet.conduct import conductor
from edgekit.fleet.rules import arms
from edgekit.fleet.rules.arms import BETTER, NO_WORSE, SAME, UNEVEN, UNKNOWN, WORSE, Compared, compare
from edgekit.fleet.rules.evidence import Arm, Arms, Evidence
from edgekit.fleet.rules.gates import FAIL, HOLD, PASS, Limits, judged
from edgekit.fleet.rules.planning import Expected, at_creation, foreseen
from edgekit.fleet.rules.rollouts import Plan, bound_of
from edgekit.fleet.statistics import differences
from edgekit.fleet.windows import views
from edgekit.fleet.windows.ingest import take
from edgekit.fleet.windows.merging import evidence_of, merge
from edgekit_runtime.policies import BUCKETS, bucket_of
from edgekit_runtime.sketches import Sketch
from support.served_fleet import BASELINE, RELEASE, a_body, a_fleet, a_window, add_rollout, enrolled

LIMITS = {"errors": 0.01, "nans": 0.005, "latency_ratio": 1.25}


def arm(
    n: int, seed: int, *, errors: float = 0.003, latency_ms: float = 8.0, spread: float = 0.2, meant: int = 0
) -> Arm:
    rng = np.random.default_rng(seed)
    return Arm(
        meant or n, rng.binomial(100, errors, n) / 100, np.zeros(n), latency_ms * rng.lognormal(0, spread, n),
        rng.beta(9, 2, n), Sketch.of(*rng.beta(9, 2, 50)),
    )  # fmt: skip


def found(candidate: Arm, control: Arm, *, bounds: bool = True) -> Compared:
    return compare(Arms(candidate, control), LIMITS, stop_alpha=0.05 / 6, alpha=0.05, bounds=bounds)


def verdict(of: Compared, name: str) -> str:
    return next(each.verdict for each in of.measures if each.name == name)


def test_arms_that_do_not_differ_have_no_difference() -> None:
    same = found(arm(400, 1), arm(400, 2))
    assert same.verdict == SAME
    assert [each.verdict for each in same.measures[:3]] == [SAME] * 3
    assert (same.candidate, same.control, same.ratio_p) == (400, 400, 1.0)
    assert same.psi is not None
    assert same.jensen_shannon is not None
    assert 0 <= same.jensen_shannon < 0.3


@pytest.mark.parametrize(
    ("candidate", "name", "word"),
    [
        (arm(400, 1, errors=0.03), "errors", WORSE), (arm(400, 1, latency_ms=11.0), "latency_ms", WORSE),
        (arm(400, 1, latency_ms=5.0), "latency_ms", BETTER), (arm(400, 1, errors=0.0), "errors", SAME),
        (arm(12, 1), "errors", UNKNOWN),
    ],
)  # fmt: skip
def test_a_difference_that_matters_is_named(candidate: Arm, name: str, word: str) -> None:
    assert verdict(found(candidate, arm(400, 2)), name) == word


def test_the_worst_measure_counts_for_all() -> None:
    assert found(arm(400, 1, errors=0.03, latency_ms=5.0), arm(400, 2)).verdict == WORSE
    assert found(arm(400, 1, latency_ms=5.0), arm(400, 2)).verdict == BETTER
    assert found(arm(20, 1), arm(20, 2)).verdict == UNKNOWN
    wide = found(arm(70, 1, latency_ms=7.6, spread=0.3), arm(70, 2, spread=0.3))
    assert verdict(wide, "latency_ms") == NO_WORSE


def test_arms_that_did_not_get_the_devices_they_were_drawn_say_nothing_else() -> None:
    uneven = found(arm(300, 1), arm(300, 2, meant=450))
    assert (uneven.verdict, uneven.ratio_p < uneven.ratio_alpha) == (UNEVEN, True)
    assert "300 devices against 450" in arms.told(uneven)


def test_estimates_lie_in_their_intervals_and_verdicts_are_the_same_without_them() -> None:
    for seed in range(5):
        pair = arm(60 * seed, seed, errors=0.01 * seed), arm(150, 50 + seed)
        both = found(*pair)
        assert [each.verdict for each in found(*pair, bounds=False).measures] == [
            each.verdict for each in both.measures
        ]
        for each in both.measures:
            for of in (each.candidate, each.control):
                assert of.mean is None or of.lower <= of.mean <= of.upper  # type: ignore[operator]
        json.dumps(both.to_tree(), allow_nan=False)


def test_nothing_known_is_inconclusive() -> None:
    none = found(Arm(), Arm())
    assert (none.verdict, none.ratio_p, none.psi) == (UNKNOWN, 1.0, None)
    assert "nothing is known" in arms.told(none)
    silent = replace(arm(50, 1), latency_ms=np.full(50, math.nan))
    assert verdict(found(silent, arm(50, 2)), "latency_ms") == UNKNOWN


def test_looking_after_each_pair_seldom_tells_equal_arms_apart() -> None:
    worse = 0
    for seed in range(120):
        a, b = (arm(240, 1000 * side + seed, errors=0.02, spread=0.4) for side in (1, 2))
        looks = [
            found(*(replace(each, errors=each.errors[:n], nans=each.nans[:n], latency_ms=each.latency_ms[:n],
                            confidence=each.confidence[:n]) for each in (a, b)), bounds=False)
            for n in range(20, 241, 20)
        ]  # fmt: skip
        worse += any(each.verdict == WORSE for each in looks)
    assert worse <= 4


@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=40), st.lists(st.floats(0, 1), min_size=1, max_size=40),
    st.floats(0.01, 2),
)  # fmt: skip
def test_a_difference_is_the_other_one_turned_round(
    one: list[float], other: list[float], span: float
) -> None:
    x = differences.pairs(np.array(one), np.array(other), span)
    turned = differences.pairs(np.array(other), np.array(one), span)
    ahead, back = (differences.interval(each, below=0.05, above=0.05, span=span) for each in (x, turned))
    assert len(x) == min(len(one), len(other))
    assert (ahead.lower, ahead.upper) == pytest.approx((-back.upper, -back.lower), abs=1e-3 * span)
    assert ahead.lower - 1e-3 * span <= ahead.estimate <= ahead.upper + 1e-3 * span  # type: ignore[operator]


def test_what_is_no_difference_is_refused() -> None:
    for wrong in (np.array([math.nan]), np.array([[0.1]])):
        with pytest.raises(EdgekitError, match="finite numbers"):
            differences.pairs(wrong, np.array([0.1]), 1.0)
    with pytest.raises(EdgekitError, match="span"):
        differences.pairs(np.array([0.1]), np.array([0.1]), 0.0)


# The gate


def judged_arms(of: Arms | None) -> str:
    evidence = Evidence(meant=400, taken=400, outcomes=np.zeros(400, dtype=bool), heard=(400, 0), arms=of)
    return next(
        each for each in judged(evidence, Limits(), mode="ab", phase="live") if each.gate == "arms"
    ).outcome


@pytest.mark.parametrize(
    ("both", "decides", "outcome"),
    [
        ((arm(400, 1), arm(400, 2)), True, PASS), ((arm(400, 1, latency_ms=12.0), arm(400, 2)), False, FAIL),
        ((arm(300, 1), arm(300, 2, meant=450)), False, FAIL), ((arm(9, 1), arm(9, 2)), True, HOLD),
        ((arm(9, 1), arm(9, 2)), False, PASS),
    ],
)  # fmt: skip
def test_the_gate_stops_what_is_worse_and_holds_only_where_no_larger_control_follows(
    both: tuple[Arm, Arm], decides: bool, outcome: str
) -> None:
    assert judged_arms(Arms(*both, decides=decides)) == outcome


def test_the_first_version_of_a_channel_has_no_control_and_passes() -> None:
    assert judged_arms(None) == PASS


# What devices tell


def test_the_control_tells_how_the_version_before_does_and_only_while_it_is_the_control(tmp_path) -> None:  # type: ignore[no-untyped-def]
    with a_fleet(tmp_path) as fleet:
        plan = Plan(stages=(10, 50, 100), mode="ab", limits=Limits(samples=100))
        rollout = add_rollout(fleet, plan, shadow_bound=0, live_bound=bound_of(10), phase="live")
        names = [f"d{number}" for number in range(60)]
        ends = {name: bucket_of("salt", name) for name in names}
        for number, name in enumerate(names):
            serves = ends[name] < rollout.arm_bound
            release = RELEASE if serves else BASELINE
            window = a_window(
                number, live=release, candidate=release, errors=5 if serves else 10, live_nans=1
            )
            take(fleet, enrolled(fleet, name)[0], a_body(name, window, live=release))
        while merge(fleet, "me"):
            pass
        with fleet.database.reading() as connection:
            both = evidence_of(connection, rollout, fleet.now(), fleet.settings).arms
        conductor.look(fleet, rollout.id)
        with fleet.database.reading() as connection:
            kept = views.arms(connection, rollout.id)
    assert both is not None
    assert (kept["candidate"], kept["control"]) == (both.candidate.meant, both.control.meant)
    inside = [sum(each < rollout.arm_bound for each in ends.values())]
    inside.append(sum(each >= rollout.control_bound for each in ends.values()))
    assert min(inside) > 0
    assert [len(both.candidate), len(both.control)] == inside
    assert [both.candidate.meant, both.control.meant] == inside
    assert both.candidate.errors.tolist() == [0.01] * inside[0]
    assert both.control.errors.tolist() == [0.02] * inside[1]
    assert both.control.nans.tolist() == [0.002] * inside[1]
    assert both.control.latency_ms == pytest.approx(2.5, rel=0.05)
    assert both.candidate.confidence == pytest.approx(0.8, rel=0.05)
    assert (both.control.spoken.n, both.decides) == (2 * inside[1], False)


def test_other_modes_have_no_arms(tmp_path) -> None:  # type: ignore[no-untyped-def]
    with a_fleet(tmp_path) as fleet:
        rollout = add_rollout(fleet, Plan(mode="canary"), phase="live")
        take(fleet, enrolled(fleet, "d1")[0], a_body("d1", a_window(1, live=BASELINE, candidate=BASELINE)))
        while merge(fleet, "me"):
            pass
        with fleet.database.reading() as connection:
            assert evidence_of(connection, rollout, fleet.now(), fleet.settings).arms is None
    assert rollout.control_bound == BUCKETS


# Planning


def test_a_plan_names_each_gate_of_each_step_and_what_the_fleet_can_see() -> None:
    plan = Plan(limits=Limits(agreement=0.96))
    large, small = foreseen(plan, Expected(5000)), foreseen(plan, Expected(50))
    assert (large.warnings, len(large.steps)) == ((), 8)
    assert large.smallest_drop is not None
    assert small.smallest_drop is not None
    assert 0.01 < large.smallest_drop < 0.02 < small.smallest_drop
    assert any("agreement" in each and "there are 50" in each for each in small.warnings)
    assert {need.gate for need in large.steps[0].needs} == {"failures", "agreement", "errors", "nans"}
    assert large.days == pytest.approx(8 * 0.1)
    json.dumps(large.to_tree(), allow_nan=False)


def test_an_a_b_plan_takes_pairs_at_its_last_stage_with_a_control() -> None:
    plan = Plan(mode="ab")
    assert foreseen(plan, Expected(2000)).warnings == ()
    few = foreseen(plan, Expected(100))
    assert [each.percent for each in few.steps if not each.decides] == [50]
    assert any("arms: latency at 50%" in each and "in each arm" in each for each in few.warnings)


def test_a_plan_whose_devices_tell_too_little_in_time_says_so() -> None:
    slow = foreseen(Plan(timeout_s=86_400), Expected(5000, samples_per_day=20))
    assert any("longer time-out" in each for each in slow.warnings)
    assert not any(each.decides for each in slow.steps)


@pytest.mark.parametrize(
    ("plan", "devices", "says"),
    [
        (Plan(), 5000, ""), (Plan(), 5, "agreement"), (Plan(), 0, "no device fits the cohort"),
        (Plan(mode="ab"), 20, "in each arm"), (Plan(mode="ab"), 5000, ""), (Plan(mode="canary"), 3, ""),
        (Plan(limits=Limits(agreement=1.0, errors=0.0, nans=0.0, failures=0.0)), 3, ""),
        (Plan(limits=Limits(agreement=0.0, latency_ratio=0.5)), 3, ""),
    ],
)  # fmt: skip
def test_a_rollout_that_may_end_without_a_verdict_is_warned_of(plan: Plan, devices: int, says: str) -> None:
    found = at_creation(plan, devices)
    assert (says in " ".join(found), bool(found)) == (True, bool(says))


def test_the_first_version_of_a_channel_is_compared_with_nothing_so_nothing_is_warned_of() -> None:
    for mode in ("shadow", "ab"):
        assert at_creation(Plan(mode=mode), 5, baseline=False) == ()


@pytest.mark.parametrize(
    "wrong",
    [
        {"devices": 0},
        {"drop": 0.0},
        {"drop": 0.98},
        {"power": 1.0},
        {"agreement": math.nan},
        {"spread": -1.0},
    ],
)
def test_expectations_that_make_no_sense_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(EdgekitError):
        Expected(**{"devices": 100, **wrong})  # type: ignore[arg-type]
