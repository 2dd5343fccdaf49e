"""What a search came to, in values and in words that name the limit, by how much, and the way out."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.search_world import QUICK, THOROUGH, World, everything

from edgekit.errors import UsageError
from edgekit.recipe import Budget, Quantize, Recipe
from edgekit.search import (
    Calibration,
    Measured,
    Outcome,
    Setting,
    Trial,
    chosen,
    nearest_miss,
    pareto,
    trial_table,
)
from edgekit.search.verdict import _up


def trial(
    number: int, drop: float | None, latency: float | None = 1.0, size: int = 10**6, **more: Any
) -> Trial:
    setting = Setting(QUICK, prune=number / 100)
    return Trial(number, setting, Outcome({"onnx": Measured(0.9, drop, latency, 3.0, size)}, **more))


def said(trials: list[Trial], budget: Budget) -> list[str]:
    return [str(bind) for bind in nearest_miss(trials, budget).binds]


def test_the_accepted_trial_that_loses_least_is_chosen() -> None:
    trials = [trial(0, 0.009, 0.1), trial(1, 0.001, 0.5), trial(2, 0.001, 0.4), trial(3, 0.0, 9.0)]

    assert chosen(trials, Budget(max_drop=0.01, max_latency_ms=1.0)) == trials[2]


def test_a_refused_or_failed_or_running_trial_is_not_chosen() -> None:
    setting = Setting(QUICK)
    trials = [
        trial(0, 0.0, refused=("onnx: not proven",)),
        Trial(1, setting, failure="broke"),
        Trial(2, setting),
    ]

    assert chosen(trials, Budget()) is None
    assert chosen([], Budget()) is None


def test_every_format_has_to_hold() -> None:
    outcome = Outcome(
        {
            "onnx": Measured(0.9, 0.001, 0.2, 1.0, 900_000),
            "tflite": Measured(0.9, 0.02, 0.5, 1.1, 800_000),
            "coreml": Measured(0.9, 0.0, None, None, 950_000),
        }
    )

    assert (outcome.drop, outcome.latency_ms, outcome.size_bytes) == (0.02, 0.5, 950_000)
    assert chosen([Trial(0, Setting(QUICK), outcome)], Budget(max_drop=0.01)) is None
    assert outcome.float_latency_ms == 1.1


def test_the_binding_limit_is_told_with_the_trial_that_keeps_the_others_and_what_would_hold() -> None:
    trials = [trial(0, 0.002, 0.5), trial(1, 0.004, 0.31), trial(2, 0.0187, 0.19)]

    assert said(trials, Budget(max_drop=0.01, max_latency_ms=0.2)) == [
        "max_drop 0.01: the most accurate trial that holds max_latency_ms loses 0.0187 "
        "(trial 2: prune 0.02, minmax); with max_drop 0.0187 it would hold",
        "max_latency_ms 0.2: the fastest trial that holds max_drop takes 0.31 ms "
        "(trial 1: prune 0.01, minmax); with max_latency_ms 0.31 it would hold",
    ]


def test_what_is_slower_than_float_is_not_chosen_unless_that_is_allowed() -> None:
    trials = [trial(0, 0.0, 3.3), trial(1, 0.005, 3.1)]

    assert chosen(trials, Budget(max_drop=0.01)) == trials[1]
    assert chosen(trials, Budget(max_drop=0.01, allow_slower=True)) == trials[0]
    assert [row["why"] for row in trial_table(trials, Budget(max_drop=0.01))] == [
        "slower than float: takes 1.1 times as long as float",
        "holds the budget",
    ]


def test_where_float_is_faster_than_every_trial_the_option_that_takes_one_is_told() -> None:
    assert said([trial(0, 0.0, 4.5), trial(1, 0.001, 3.6)], Budget(max_drop=0.01)) == [
        "slower than float: the fastest trial that holds max_drop takes 1.2 times as long as float "
        "(trial 1: prune 0.01, minmax); with --allow-slower it would hold"
    ]


def test_a_trial_that_could_not_be_timed_is_not_slower_than_float() -> None:
    untimed = Trial(0, Setting(QUICK), Outcome({"coreml": Measured(0.9, 0.0, None, None, 10)}))

    assert chosen([untimed], Budget(max_drop=0.01)) == untimed


def test_a_single_limit_is_told_without_others() -> None:
    assert said([trial(0, 0.5), trial(1, 0.3)], Budget(max_drop=0.01)) == [
        "max_drop 0.01: the most accurate trial loses 0.3 (trial 1: prune 0.01, minmax); "
        "with max_drop 0.3 it would hold"
    ]


def test_a_limit_that_no_setting_reaches_is_told_as_such() -> None:
    can = replace(everything(), floor_ms=0.12, floor_bytes=10)
    miss = nearest_miss([trial(0, 0.0, 0.5)], Budget(max_drop=0.01, max_latency_ms=0.001), can)

    assert [str(bind) for bind in miss.binds] == [
        "max_latency_ms 0.001: the fastest trial that holds max_drop takes 0.5 ms (trial 0: minmax); "
        "even the heaviest pruning takes 0.12 ms"
    ]


def test_where_no_trial_holds_the_others_the_best_of_all_is_told() -> None:
    trials = [trial(0, 0.1, 0.5), trial(1, 0.2, 0.4)]

    assert said(trials, Budget(max_drop=0.01, max_latency_ms=0.2)) == [
        "max_drop 0.01: the most accurate trial of all loses 0.1 (trial 0: minmax)",
        "max_latency_ms 0.2: the fastest trial of all takes 0.4 ms (trial 1: prune 0.01, minmax)",
    ]


def test_limits_that_hold_one_by_one_but_never_all_but_one_bind_at_the_nearest() -> None:
    trials = [trial(0, 0.0, 3.0, 3_000_000), trial(1, 0.5, 0.1, 3_000_000), trial(2, 0.5, 3.0, 100)]
    budget = Budget(max_drop=0.01, max_latency_ms=1.0, max_size_mb=1.0)

    miss = nearest_miss(trials, budget)

    assert miss.trial == trials[0]
    assert {bind.limit for bind in miss.binds} == {"max_latency_ms", "max_size_mb"}


def test_the_nearest_trial_is_the_one_whose_worst_miss_is_smallest() -> None:
    trials = [trial(0, 0.0, 0.5), trial(1, 0.012, 0.21), trial(2, 0.5, 0.1)]

    assert nearest_miss(trials, Budget(max_drop=0.01, max_latency_ms=0.2)).trial == trials[1]


def test_a_drop_limit_of_nothing_can_be_missed_by_a_little() -> None:
    trials = [trial(0, 0.5, 0.1), trial(1, 0.001, 0.1)]

    assert nearest_miss(trials, Budget(max_drop=0.0)).trial == trials[1]


def test_a_refusal_is_the_reason_where_the_limits_hold() -> None:
    refused = trial(0, 0.0, refused=("onnx: 7 steps off",))

    miss = nearest_miss([refused], Budget(max_drop=0.01))

    assert (miss.trial, miss.binds, miss.reasons) == (refused, (), ("onnx: 7 steps off",))
    assert miss.sentences() == (f"nearest: {refused}", "onnx: 7 steps off")


def test_where_everything_failed_the_failures_are_the_reasons() -> None:
    miss = nearest_miss([Trial(0, Setting(QUICK), failure="no kernel")], Budget())

    assert miss.sentences() == ("no trial could be measured", "trial 0: minmax: no kernel")


def test_a_drop_that_is_no_number_misses() -> None:
    trials = [trial(0, math.nan)]

    assert chosen(trials, Budget(max_drop=100.0)) is None
    assert "loses inf" in said(trials, Budget(max_drop=100.0))[0]


numbers = st.floats(0, 1e6).filter(lambda x: x == 0 or x > 1e-9)


@given(st.lists(st.tuples(numbers, numbers, st.integers(0, 10**9)), max_size=12), numbers, numbers)
def test_relaxing_a_limit_as_told_makes_the_budget_hold(
    rows: list[tuple[float, float, int]], drop: float, latency: float
) -> None:
    trials = [trial(i, *row) for i, row in enumerate(rows)]
    budget = Budget(max_drop=drop, max_latency_ms=latency + 1e-9, max_size_mb=1.0)
    if not trials or chosen(trials, budget) is not None:
        return

    miss = nearest_miss(trials, budget)

    assert miss.trial in trials
    assert miss.binds
    for bind in miss.binds:
        assert bind.reached > bind.allowed
        if bind.alone:
            value = True if bind.limit == "allow_slower" else float(_up(bind.reached))
            relaxed: dict[str, Any] = {bind.limit: value}
            assert chosen(trials, replace(budget, **relaxed)) is not None


@given(st.floats(1e-300, 1e300))
def test_a_rounded_limit_is_never_below_what_was_reached(value: float) -> None:
    assert value <= float(_up(value)) <= value * 1.0101


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(0, 5)), max_size=20))
def test_the_front_is_what_nothing_beats(rows: list[tuple[int, int, int]]) -> None:
    trials = [trial(i, float(d), float(t), s) for i, (d, t, s) in enumerate(rows)]

    front = pareto(trials)

    kept = {rows[t.number] for t in front}
    assert len(kept) == len(front)
    for row in set(rows):
        beaten = any(other != row and all(a <= b for a, b in zip(other, row, strict=True)) for other in rows)
        assert (row in kept) != beaten
    assert [t.outcome.drop for t in front if t.outcome] == sorted(rows[t.number][0] for t in front)


def test_the_front_leaves_out_what_is_refused_and_takes_what_was_not_timed_for_slow() -> None:
    untimed, timed = trial(0, 0.1, None), trial(1, 0.1, 5.0)

    assert pareto([untimed, timed, trial(2, 0.0, 0.0, 0, refused=("no",))]) == (timed,)
    assert pareto([]) == ()


def test_the_table_says_of_every_trial_why() -> None:
    budget = Budget(max_drop=0.01, max_latency_ms=0.2)
    setting = Setting(THOROUGH, 0.5, ("größe",), qat=True)
    trials = [
        Trial(3, setting),
        Trial(2, Setting(QUICK), failure="loss is NaN"),
        trial(1, 0.5, 0.31),
        trial(0, 0.0, 0.1),
    ]

    table = trial_table(trials, budget)

    assert [row["number"] for row in table] == [0, 1, 2, 3]
    assert [row["feasible"] for row in table] == [True, False, False, False]
    assert [row["why"] for row in table] == [
        "holds the budget",
        "max_drop 0.01: loses 0.5; max_latency_ms 0.2: takes 0.31 ms",
        "loss is NaN",
        "not finished",
    ]
    assert table[0]["outcome"]["latency_ms"] == 0.1
    assert table[0]["outcome"]["formats"]["onnx"]["size_bytes"] == 10**6
    assert Setting.from_dict(json.loads(json.dumps(table[3]["setting"]))) == setting


settings = st.builds(
    Setting,
    calibration=st.sampled_from([QUICK, THOROUGH]),
    prune=st.floats(0, 0.95),
    keep_float=st.lists(st.text(min_size=1), max_size=4).map(tuple),
    qat=st.booleans(),
)


@given(settings)
def test_a_setting_is_read_back_from_its_key(setting: Setting) -> None:
    assert Setting.from_dict(json.loads(setting.key())) == setting
    assert hash(Setting.from_dict(setting.to_dict())) == hash(setting)


def test_an_outcome_is_read_back_from_json_infinities_and_all() -> None:
    outcome = Outcome(
        {"onnx": Measured(None, math.nan, None, None, 0), "tflite": Measured(0.5, -0.1, 0.0, 1.0, 7)},
        3.5,
        ("größe",),
    )

    assert Outcome.from_dict(json.loads(json.dumps(outcome.to_dict()))) == outcome


def test_numbers_of_numpy_are_stored_as_numbers() -> None:
    measured = Measured(np.float32(0.5), np.float64(0.25), np.float32(1.5), None, np.int64(7))  # type: ignore[arg-type]

    assert json.loads(json.dumps(Outcome({"onnx": measured}).to_dict()))["formats"]["onnx"]["metric"] == 0.5
    assert measured == Measured(0.5, 0.25, 1.5, None, 7)


def test_settings_with_the_same_layers_are_the_same() -> None:
    assert Setting(QUICK, keep_float=("b", "a", "b")) == Setting(QUICK, keep_float=("a", "b"))


def test_a_setting_reads_as_a_sentence() -> None:
    setting = Setting(Calibration(("minmax", "mse"), True, "try", False), 0.5, ("a", "b"), qat=True)

    assert str(setting) == "prune 0.5, QAT, 2 layers float, minmax/mse, equalized, compensated"
    assert str(Setting(QUICK, keep_float=("a",))) == "1 layer float, minmax"


def test_a_setting_applied_to_a_recipe_leaves_nothing_to_decide() -> None:
    recipe = Recipe(quantize=Quantize(keep_float=("head.*",)))

    done = Setting(THOROUGH, 0.5, ("conv1",), qat=True).applied(recipe)

    assert (done.prune.ratio, done.qat.enabled) == (0.5, True)
    assert done.quantize.keep_float == ("head.*", "conv1")
    assert done.quantize.observers == THOROUGH.observers
    assert Setting(Calibration.of(recipe.quantize)).applied(recipe).qat.enabled is False
    assert recipe.prune.ratio == 0.0


@pytest.mark.parametrize(
    "wrong",
    [
        {"prune": -0.1},
        {"prune": 0.96},
        {"prune": math.nan},
        {"prune": True},
        {"prune": "0.5"},
        {"keep_float": "conv"},
        {"keep_float": (1,)},
        {"keep_float": ("",)},
        {"qat": 1},
        {"calibration": {"observers": ["nobody"]}},
        {"calibration": None},
        {"calibration": {"observers": ["minmax"], "more": 1}},
    ],
)
def test_a_setting_that_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Setting.from_dict(Setting(QUICK).to_dict() | wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"formats": {}, "seconds": 0.0, "refused": []},
        {"formats": {"onnx": {"metric": 1.0}}, "seconds": 0.0, "refused": []},
        {"formats": None, "seconds": 0.0, "refused": []},
    ],
)
def test_an_outcome_that_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Outcome.from_dict(wrong)


def test_measurements_out_of_range_are_refused() -> None:
    with pytest.raises(UsageError, match="latency_ms"):
        Measured(0.9, 0.0, math.nan, None, 1)
    with pytest.raises(UsageError, match="size_bytes"):
        Measured(0.9, 0.0, 1.0, None, -1)


def test_a_whole_search_ends_in_a_verdict() -> None:
    impossible = Budget(max_drop=0.0001, max_latency_ms=0.3)
    world = World()
    trials = world.search(impossible, everything(12))

    miss = nearest_miss(trials, impossible, everything(12))

    assert chosen(trials, impossible) is None
    assert {bind.limit for bind in miss.binds} == {"max_drop"}
    assert len(trial_table(trials, impossible)) == len(trials)
