"""The walk: cheapest first, both ways between too slow and too inaccurate, and never past what is known."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.search_world import ISLANDS, QUICK, TENTHS, THOROUGH, World, everything

from edgekit.errors import UsageError
from edgekit.recipe import PRESETS, Budget, Prune, Qat, Recipe, Search
from edgekit.search import (
    Calibration,
    Capabilities,
    Island,
    Left,
    Measured,
    Outcome,
    Setting,
    Trial,
    capabilities,
    chosen,
    damage_of,
    next_setting,
)
from edgekit.search.limits import missed

TWENTIETHS = tuple(round(0.05 * i, 2) for i in range(19))


def holds(world: World, setting: Setting, budget: Budget, slack: float = 0.0) -> bool:
    """Does a setting truly hold every limit by that share of it?"""
    values = zip(
        world.truth(setting), (budget.max_drop, budget.max_latency_ms, budget.max_size_mb), strict=True
    )
    return all(limit is None or value * (1 + slack) <= limit for value, limit in values)


def found(world: World, trials: list[Trial], budget: Budget) -> bool:
    return any(t.outcome is not None and not missed(t.outcome, budget) for t in trials)


def words(trials: list[Trial]) -> list[tuple[float, int, str, bool]]:
    """What each trial did: ratio, layers in float, calibration, training on the grid."""
    names = {QUICK: "quick", THOROUGH: "thorough"}
    return [
        (t.setting.prune, len(t.setting.keep_float), names[t.setting.calibration], t.setting.qat)
        for t in trials
    ]


worlds = st.builds(
    World,
    overhead=st.floats(0, 0.6),
    drop=st.sampled_from([0.0, 0.001, 0.005, 0.02, 0.05]),
    steep=st.sampled_from([0.0, 0.02, 0.1, 0.3]),
    bend=st.floats(0.5, 4),
    thorough=st.floats(0.3, 1),
    qat=st.floats(0, 1),
    step=st.sampled_from([0.0, 0.15, 0.3]),
    tells=st.booleans(),
)
budgets = st.builds(
    Budget,
    max_drop=st.one_of(st.none(), st.sampled_from([0.0, 0.002, 0.01, 0.03])),
    max_latency_ms=st.one_of(st.none(), st.floats(0.05, 1.2)),
    max_size_mb=st.one_of(st.none(), st.floats(0.05, 1.2)),
)


@given(world=worlds, budget=budgets)
def test_it_finds_a_setting_wherever_the_grid_has_one(world: World, budget: Budget) -> None:
    can = everything()
    feasible = any(holds(world, setting, budget) for setting in can.grid())

    assert found(world, world.search(budget, can), budget) == feasible


@given(world=worlds, budget=budgets, noise=st.floats(0, 0.05))
def test_with_noise_it_finds_whatever_holds_by_more_than_the_noise(
    world: World, budget: Budget, noise: float
) -> None:
    can, noisy = everything(), replace(world, noise=noise)
    # Between two measurements of the same thing lies at most (1 + noise) / (1 − noise).
    slack = (1 + noise) / (1 - noise) * (1 + noise) - 1

    trials = noisy.search(budget, can)

    if any(holds(world, setting, budget, slack) for setting in can.grid()):
        assert found(noisy, trials, budget)


@given(world=worlds, budget=budgets, most=st.integers(1, 30), noise=st.floats(0, 0.2))
def test_it_ends_repeats_nothing_and_does_the_same_again(
    world: World, budget: Budget, most: int, noise: float
) -> None:
    can, noisy = everything(most), replace(world, noise=noise)

    trials = noisy.search(budget, can)

    tried = [t.setting for t in trials]
    assert len(set(tried)) == len(tried) <= most
    assert set(tried) <= set(can.grid())
    assert noisy.search(budget, can) == trials
    shuffled = random.Random(0).sample(trials, len(trials))
    assert next_setting(shuffled, budget, can) is None


@given(world=worlds, budget=budgets, failing=st.integers(0, 7))
def test_it_ends_when_trials_fail_too(world: World, budget: Budget, failing: int) -> None:
    can, trials = everything(60), list[Trial]()
    while (setting := next_setting(trials, budget, can)) is not None:
        n = len(trials)
        broken = (n * 5 + failing) % 3 == 0
        trials.append(
            Trial(n, setting, failure="broke") if broken else Trial(n, setting, world.measure(setting))
        )

    assert len({t.setting for t in trials}) == len(trials) <= 60


@given(world=worlds, budget=budgets, workers=st.integers(2, 4))
@settings(max_examples=50)
def test_workers_side_by_side_find_what_one_finds(world: World, budget: Budget, workers: int) -> None:
    can = everything()
    trials: list[Trial] = []
    while True:
        for _ in range(workers):
            setting = next_setting(trials, budget, can)
            if setting is not None:
                trials.append(Trial(len(trials), setting))
        running = [i for i, t in enumerate(trials) if t.running]
        if not running:
            break
        # The last that started is done first.
        trials[running[-1]] = replace(trials[running[-1]], outcome=world.measure(trials[running[-1]].setting))

    assert len({t.setting for t in trials}) == len(trials)
    assert found(world, trials, budget) == any(holds(world, s, budget) for s in can.grid())


def test_twelve_trials_are_enough_for_nearly_every_feasible_budget() -> None:
    drawn, few, feasible = random.Random(3), 0, 0
    for _ in range(300):
        world = World(
            overhead=drawn.uniform(0, 0.5),
            drop=drawn.choice([0.001, 0.005, 0.02, 0.05]),
            steep=drawn.choice([0.02, 0.05, 0.1, 0.3]),
            bend=drawn.uniform(1, 4),
            qat=drawn.uniform(0.1, 1),
            step=drawn.choice([0.0, 0.1, 0.25]),
        )
        budget = Budget(
            max_drop=drawn.choice([0.005, 0.01, 0.02]),
            max_latency_ms=drawn.choice([None, 0.9, 0.7, 0.5, 0.3]),
            max_size_mb=drawn.choice([None, 0.8, 0.5, 0.3]),
        )
        if any(holds(world, s, budget) for s in everything(ratios=TWENTIETHS).grid()):
            feasible += 1
            few += found(world, world.search(budget, everything(12, TWENTIETHS)), budget)

    assert feasible > 80
    assert few / feasible > 0.95


def test_calibration_alone_is_tried_first_and_ends_the_search_where_it_holds() -> None:
    trials = World(drop=0.001).search(Budget(max_drop=0.01, max_latency_ms=2.0), everything())

    assert words(trials) == [(0.0, 0, "quick", False)]


def test_accuracy_is_bought_with_calibration_then_layers_in_float_then_training() -> None:
    world = World(drop=0.1, thorough=0.9, qat=0.05)

    trials = world.search(Budget(max_drop=0.01), everything())

    assert words(trials) == [
        (0.0, 0, "quick", False),
        (0.0, 0, "thorough", False),
        (0.0, 1, "thorough", False),
        (0.0, 2, "thorough", False),
        (0.0, 0, "quick", True),
    ]


def test_layers_go_float_by_damage_per_millisecond() -> None:
    trials = World(drop=0.1, thorough=0.9, qat=0.9).search(Budget(max_drop=0.01), everything())

    # "head" mends a fourth of what "first" mends, for a fifth of its time.
    kept = [t.setting.keep_float for t in trials if t.setting.keep_float]
    assert kept[:2] == [("head",), ("first", "head")]


def test_a_calibration_that_was_worse_is_not_built_upon() -> None:
    trials = World(drop=0.1, thorough=1.2, qat=0.9).search(Budget(max_drop=0.01), everything())

    assert words(trials)[:4] == [
        (0.0, 0, "quick", False),
        (0.0, 0, "thorough", False),
        (0.0, 1, "quick", False),
        (0.0, 2, "quick", False),
    ]


def test_latency_is_bought_with_the_ratio_that_is_predicted_to_do() -> None:
    world = World(drop=0.001, overhead=0.0, steep=0.001)

    trials = world.search(Budget(max_drop=0.01, max_latency_ms=0.55), everything())

    assert words(trials) == [(0.0, 0, "quick", False), (0.5, 0, "quick", False)]


def test_a_better_prediction_is_used() -> None:
    world = World(drop=0.001, overhead=0.5, steep=0.001)
    can = replace(everything(), left=lambda ratio: Left(0.5 + 0.5 * (1 - ratio), 1 - ratio))

    trials = world.search(Budget(max_drop=0.01, max_latency_ms=0.76), can)

    assert [t.setting.prune for t in trials] == [0.0, 0.5]


def test_size_binds_like_latency() -> None:
    trials = World(drop=0.001, steep=0.001).search(Budget(max_drop=0.01, max_size_mb=0.65), everything())

    assert [t.setting.prune for t in trials] == [0.0, 0.4]


def test_too_slow_prunes_more_by_what_was_measured() -> None:
    world = World(drop=0.001, overhead=0.4, steep=0.001)

    trials = world.search(Budget(max_drop=0.01, max_latency_ms=0.55), everything())

    assert [t.setting.prune for t in trials] == [0.0, 0.5, 0.8]


def test_too_inaccurate_trains_on_the_grid_and_then_prunes_less() -> None:
    # Predicted to be slower than it is: the first ratio is too heavy a cut.
    world = World(drop=0.001, overhead=0.0, steep=0.05, bend=2, qat=0.9, tells=False)
    can = replace(everything(), left=lambda ratio: Left((1 - ratio) ** 0.5, 1 - ratio))

    trials = world.search(Budget(max_drop=0.01, max_latency_ms=0.65), can)

    assert words(trials)[:3] == [
        (0.0, 0, "quick", False),
        (0.6, 0, "quick", False),
        (0.6, 0, "thorough", False),
    ]
    assert list(dict.fromkeys(t.setting.prune for t in trials)) == [0.0, 0.6, 0.4]
    assert (0.6, 0, "quick", True) in words(trials)
    assert words(trials)[-1][0] == 0.4
    assert found(world, trials, Budget(max_drop=0.01, max_latency_ms=0.65))


def test_what_pruning_lost_in_float_is_not_looked_for_among_calibrations() -> None:
    world = World(drop=0.001, overhead=0.0, steep=0.1, bend=2, qat=0.3)
    budget = Budget(max_drop=0.01, max_latency_ms=0.55)

    assert words(world.search(budget, everything())) == [
        (0.0, 0, "quick", False),
        (0.5, 0, "quick", False),
        (0.5, 0, "quick", True),
    ]
    assert len(replace(world, tells=False).search(budget, everything())) == 5


def test_a_pruned_network_is_trained_on_the_grid_where_calibration_is_not_enough() -> None:
    world = World(drop=0.001, overhead=0.0, steep=0.1, bend=2, qat=0.3)

    trials = world.search(Budget(max_drop=0.01, max_latency_ms=0.55), everything())

    assert words(trials)[-1] == (0.5, 0, "quick", True)


def test_nothing_is_trained_where_only_the_accuracy_misses_and_training_is_not_to_be_had() -> None:
    can = replace(everything(), qat=(False,))

    trials = World(drop=0.5).search(Budget(max_drop=0.01, max_latency_ms=5.0), can)

    assert {t.setting.prune for t in trials} == {0.0}


def test_a_limit_below_what_any_setting_reaches_ends_the_search_after_one_trial() -> None:
    can = replace(everything(), floor_ms=0.3)

    assert len(World().search(Budget(max_latency_ms=0.2), can)) == 1
    assert len(World().search(Budget(max_latency_ms=0.4), can)) > 1


def test_where_no_floor_is_known_the_heaviest_pruning_settles_it() -> None:
    trials = World(overhead=0.5).search(Budget(max_latency_ms=0.2), everything())

    assert [t.setting.prune for t in trials] == [0.0, 0.8, 0.9]


def test_a_result_that_is_refused_for_another_reason_ends_the_search() -> None:
    outcome = Outcome(
        {"onnx": Measured(0.9, 0.0, 1.0, 1.0, 1)}, refused=("onnx: differs from the reference",)
    )
    first = Trial(0, everything().first(), outcome)

    assert next_setting([first], Budget(max_drop=0.01), everything()) is None


def test_a_network_that_somebody_trains_is_not_trained_a_second_time() -> None:
    world, budget = World(overhead=0.0, drop=0.05), Budget(max_drop=0.01, max_latency_ms=0.55)
    first = Trial(0, everything().first(), world.measure(everything().first()))
    second = next_setting([first], budget, everything())
    assert second is not None

    third = next_setting([first, Trial(1, second)], budget, everything())

    assert third is not None
    assert third.prune not in {0.0, second.prune}


def test_what_was_not_measured_misses_nothing() -> None:
    outcome = Outcome({"coreml": Measured(None, None, None, None, 500_000)})
    first = Trial(0, everything().first(), outcome)

    assert (
        next_setting([first], Budget(max_drop=0.0, max_latency_ms=0.1, max_size_mb=1), everything()) is None
    )


def test_without_a_trial_that_came_to_anything_no_training_starts() -> None:
    can = everything()
    trials: list[Trial] = []
    while (setting := next_setting(trials, Budget(max_drop=0.01, max_latency_ms=0.1), can)) is not None:
        trials.append(Trial(len(trials), setting, failure="no kernel"))

    assert not any(t.setting.qat or t.setting.prune for t in trials)


@pytest.mark.parametrize(
    ("recipe", "training", "ratios", "qat"),
    [
        (Recipe(), True, TWENTIETHS, (False, True)),
        (Recipe(), False, (0.0,), (False,)),
        (Recipe(prune=Prune(ratio=0.5)), True, (0.5,), (False, True)),
        (Recipe(qat=Qat(enabled=False)), True, TWENTIETHS, (False,)),
        (Recipe(qat=Qat(enabled=True)), True, TWENTIETHS, (True,)),
    ],
    ids=["all", "nothing to train on", "a ratio is named", "QAT is refused", "QAT is wanted"],
)
def test_what_the_recipe_names_is_not_searched(
    recipe: Recipe, training: bool, ratios: tuple[float, ...], qat: tuple[bool, ...]
) -> None:
    can = capabilities(recipe, training=training)

    assert (can.ratios, can.qat, can.trials) == (ratios, qat, 12)


def test_the_thorough_calibration_comes_after_the_recipes_own() -> None:
    can = capabilities(Recipe(search=Search(trials=3)), training=False)

    assert can.calibrations[0] == Calibration.of(Recipe().quantize)
    assert can.calibrations[1].observers == PRESETS["max"]["observers"]
    assert can.trials == 3


def test_a_trial_of_the_max_preset_has_no_second_calibration() -> None:
    row = {k: v for k, v in PRESETS["max"].items() if k in {"observers", "equalize", "compensation"}}
    recipe = Recipe(quantize=replace(Recipe().quantize, bias_correction="try", **row))

    assert len(capabilities(recipe, training=False).calibrations) == 1


def test_islands_are_ordered_by_worth_whatever_the_order_given() -> None:
    given_order = Capabilities((QUICK,), islands=tuple(reversed(ISLANDS)))

    assert [i.name for i in given_order.islands] == ["head", "first", "mid"]
    assert Island("free", 0.1, 0.0).worth == float("inf")
    assert damage_of(20.0) == pytest.approx(0.01)


@pytest.mark.parametrize(
    "wrong",
    [
        {"calibrations": ()},
        {"calibrations": (QUICK, QUICK)},
        {"calibrations": (QUICK,), "ratios": ()},
        {"calibrations": (QUICK,), "ratios": (0.5, 0.1)},
        {"calibrations": (QUICK,), "qat": ()},
        {"calibrations": (QUICK,), "trials": 0},
        {"calibrations": (QUICK,), "islands": (Island("a", 1), Island("a", 2))},
    ],
)
def test_capabilities_that_offer_nothing_or_twice_the_same_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="search:"):
        Capabilities(**wrong)  # type: ignore[arg-type]


def test_the_grid_has_every_setting_once() -> None:
    grid = list(everything(ratios=TENTHS).grid())

    assert len(grid) == len(set(grid)) == 10 * 3 * (2 + 1)
    assert grid[0] == Setting(QUICK)


def test_what_is_slower_than_float_is_pruned_until_it_is_not() -> None:
    budget = Budget(max_drop=0.05)
    trials = World(float_ms=0.7).search(budget, everything())
    best = chosen(trials, budget)

    assert best is not None
    assert best.outcome is not None
    assert best.setting.prune > 0
    assert best.outcome.latency_ms <= 0.7 * 1.05
    slower = World(float_ms=0.7).search(replace(budget, allow_slower=True), everything())
    assert [t.setting.prune for t in slower] == [0.0]
