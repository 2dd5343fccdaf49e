"""The state machine of a rollout: whatever verdicts, clocks and people do to it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from edgekit.fleet.errors import ConflictError, InvalidError
from edgekit.fleet.rules import rollouts
from edgekit.fleet.rules.gates import FAIL, HOLD, PASS, Limits, Verdict
from edgekit.fleet.rules.rollouts import (
    ABORTED,
    COMPLETED,
    FAILED,
    HELD,
    LIVE,
    LONGEST_TICK_S,
    OPEN,
    PAUSED,
    RUNNING,
    SHADOW,
    Plan,
    Rollout,
    Step,
    bound_of,
    look,
    settled_after,
)
from edgekit_runtime.policies import BUCKETS

NOW_S = 1_700_000_000.0
PLAN = Plan(soak_s=300, timeout_s=3000)
RANKS = {SHADOW: 1, LIVE: 2}


def verdicts(outcome: str, *, told: int = 20, meant: int = 20) -> tuple[Verdict, ...]:
    agreement = Verdict("agreement", outcome, "0.97", 0.95, devices=told, meant=meant)
    return (Verdict("failures", PASS, "none", 0.05, devices=told, meant=meant), agreement)


def begun(plan: Plan = PLAN, *, baseline: str = "a" * 64, devices: int = 1000) -> Rollout:
    rollout = Rollout("r1", "model", "stable", "b" * 64, baseline, "salt", plan)
    return rollouts.begin(rollout, devices).rollout


def looked(
    rollout: Rollout,
    outcome: str = PASS,
    *,
    after_s: float = 60.0,
    devices: int = 1000,
    taken: int | None = None,
    meant: int = 20,
) -> Step:
    now_s = (rollout.looked_s or NOW_S) + after_s
    taken = devices if taken is None else taken
    return look(
        rollout, verdicts(outcome, meant=meant, told=meant), devices=devices, taken=taken, now_s=now_s
    )


def through(rollout: Rollout, outcome: str = PASS, most: int = 500, *, devices: int = 1000) -> list[Step]:
    steps = []
    while rollout.state == RUNNING and len(steps) < most:
        steps.append(looked(rollout, outcome, devices=devices))
        rollout = steps[-1].rollout
    return steps


def rank(rollout: Rollout, bucket: int) -> int:
    """What a device runs: 0 nothing new, 1 beside, 2 serving."""
    return next((RANKS[rule.mode] for rule in rollout.rules() if bucket < rule.bound), 0)


@pytest.mark.parametrize("devices", [1, 20, 1000, 1_000_000])
@pytest.mark.parametrize("mode", rollouts.MODES)
def test_a_good_release_comes_through_without_a_hand(mode: str, devices: int) -> None:
    steps = through(begun(replace(PLAN, mode=mode), devices=devices), devices=devices)
    last = steps[-1].rollout
    assert (last.state, last.stage, last.live_bound, last.rules()) == (COMPLETED, 3, BUCKETS, ())
    phases = [step.rollout.phase for step in steps]
    assert (SHADOW in phases) == (mode == "shadow")
    assert [step.kind for step in steps if step.kind not in {"", "grown"}][-1] == COMPLETED


def test_a_gate_that_fails_ends_it_and_takes_the_rules_away() -> None:
    rollout = begun()
    assert rollout.rules()
    step = looked(rollout, FAIL)
    assert (step.kind, step.rollout.state, step.rollout.rules()) == (FAILED, FAILED, ())
    assert step.why == "stopped at 1% (shadow): agreement: 0.97"


def test_a_failure_wins_over_a_time_that_is_up() -> None:
    assert looked(replace(begun(), counted_s=1e6), FAIL).kind == FAILED


def test_without_a_verdict_in_time_it_is_held_and_serves_no_further() -> None:
    last = through(begun(), HOLD)[-1].rollout
    assert last.state == HELD
    assert last.is_open
    assert "agreement" in last.why
    assert last.live_bound == 0
    assert looked(last, PASS).kind == ""


@pytest.mark.parametrize("state", [PAUSED, HELD])
def test_a_gate_that_fails_takes_a_paused_or_held_rollout_back_as_well(state: str) -> None:
    step = looked(replace(begun(), state=state), FAIL)
    assert (step.kind, step.rollout.state, step.rollout.rules()) == (FAILED, FAILED, ())
    assert looked(replace(begun(), state=state), HOLD).rollout.state == state


@pytest.mark.parametrize("state", [COMPLETED, ABORTED])
def test_what_is_over_is_not_failed_any_more(state: str) -> None:
    assert looked(replace(begun(), state=state), FAIL).rollout.state == state


@pytest.mark.parametrize("mode", rollouts.MODES)
def test_a_cohort_that_nobody_is_of_waits_and_grows_to_nobody(mode: str) -> None:
    rollout = begun(replace(PLAN, mode=mode, cohort='region == "mars"'), devices=100_000)
    before = rollout.bound
    why = "no device fits the cohort, or none was heard of lately"
    nobody = tuple(Verdict(gate, HOLD, why, 0.05) for gate in ("failures", "agreement"))
    while rollout.state == RUNNING:
        rollout = look(rollout, nobody, devices=0, taken=0, now_s=(rollout.looked_s or NOW_S) + 60).rollout
    assert (rollout.state, rollout.stage, rollout.bound) == (HELD, 0, before)
    assert rollout.why.endswith(f": {why}")


def test_gates_that_pass_before_the_soak_is_over_wait() -> None:
    rollout = begun(replace(PLAN, first_devices=0))
    for _ in range(5):
        rollout = looked(rollout).rollout
        assert (rollout.stage, rollout.phase) == (0, SHADOW)
    assert looked(rollout).rollout.phase == LIVE


def test_the_soak_begins_when_the_bound_has_reached_the_stage() -> None:
    rollout = begun(replace(PLAN, stages=(100.0,)), devices=100_000)
    # Devices are slow to take it, and all gates pass meanwhile.
    for _ in range(20):
        rollout = looked(rollout, devices=100_000, taken=0).rollout
    assert (rollout.bound < rollout.target, rollout.counted_s > 1000, rollout.soaked_s) == (True, True, 0.0)
    while rollout.bound < rollout.target:
        rollout = looked(rollout, devices=100_000).rollout
    assert (rollout.phase, rollout.soaked_s) == (SHADOW, 0.0)
    for _ in range(4):
        rollout = looked(rollout, devices=100_000).rollout
        assert rollout.phase == SHADOW
    assert looked(rollout, devices=100_000).rollout.phase == LIVE


def test_a_step_that_only_soaks_does_not_time_out() -> None:
    rollout = replace(begun(replace(PLAN, first_devices=0)), counted_s=1e6)
    assert looked(rollout, PASS).rollout.state == RUNNING
    assert looked(rollout, HOLD).rollout.state == HELD


def test_arms_are_as_large_as_one_another_and_nobody_changes_sides() -> None:
    for bound in (0, 1, 10_000, 499_999, 500_000, 900_000, BUCKETS):
        rollout = replace(begun(replace(PLAN, mode="ab")), live_bound=bound)
        arm = min(bound, BUCKETS // 2)
        assert (rollout.arm_bound, BUCKETS - rollout.control_bound) == (arm, arm)
        assert rollout.arm_bound <= rollout.control_bound
    assert begun(replace(PLAN, mode="ab"), baseline="").arm_bound == 0
    assert begun(replace(PLAN, mode="canary")).arm_bound == 0


@pytest.mark.parametrize(
    ("stages", "decides"),
    [((1.0, 10.0, 50.0, 100.0), 2), ((10.0,), 0), ((10.0, 60.0), 0), ((50.0, 51.0, 100.0), 0)],
)
def test_the_last_stage_that_has_a_control_decides(stages: tuple[float, ...], decides: int) -> None:
    rollout = begun(replace(PLAN, mode="ab", stages=stages))
    found = [replace(rollout, stage=stage).decides_arms for stage in range(len(stages))]
    assert found == [stage == decides for stage in range(len(stages))]


@pytest.mark.parametrize("jump_s", [7 * 86400.0, -7 * 86400.0, 1e12])
def test_a_clock_that_jumps_and_a_server_that_was_off_neither_soak_nor_time_out(jump_s: float) -> None:
    rollout = looked(begun(replace(PLAN, first_devices=0))).rollout
    after = look(rollout, verdicts(PASS), devices=1000, taken=1000, now_s=NOW_S + 60 + jump_s)
    assert after.kind == ""
    assert 0 <= after.rollout.counted_s - rollout.counted_s <= LONGEST_TICK_S


def test_time_in_a_pause_does_not_count() -> None:
    rollout = looked(looked(begun()).rollout).rollout
    paused = rollouts.pause(rollout).rollout
    for _ in range(100):
        paused = looked(paused, PASS).rollout
    assert paused.state == PAUSED
    assert paused.rules() == rollout.rules()
    resumed = rollouts.resume(paused).rollout
    assert (resumed.state, resumed.counted_s) == (RUNNING, 0.0)
    assert looked(resumed, after_s=1e6).rollout.counted_s == 0.0


def test_the_first_devices_are_few_and_twice_as_many_follow_once_half_have_it() -> None:
    rollout = begun(replace(PLAN, stages=(100.0,)), devices=100_000)
    assert rollout.shadow_bound == 1000
    waiting = looked(rollout, HOLD, devices=100_000, taken=49, meant=100)
    assert waiting.rollout.shadow_bound == 1000
    grown = looked(rollout, HOLD, devices=100_000, taken=50, meant=100)
    assert (grown.kind, grown.rollout.shadow_bound) == ("grown", 2000)


@pytest.mark.parametrize("drawn", [0, 1, 2])
def test_it_grows_by_the_devices_that_were_drawn_and_not_by_how_many_were_to_be_expected(drawn: int) -> None:
    rollout = begun(replace(PLAN, first_devices=5), devices=1000)
    assert rollout.shadow_bound == bound_of(0.5)
    assert looked(rollout, HOLD, taken=drawn, meant=drawn).rollout.shadow_bound == bound_of(1)


def test_a_shadow_grows_beyond_its_stage_where_its_devices_are_too_few_but_serves_nobody() -> None:
    rollout = begun(devices=1000)
    assert rollout.shadow_bound == bound_of(1)
    steps = through(rollout, HOLD)
    assert steps[-1].rollout.shadow_bound == BUCKETS
    assert all(step.rollout.live_bound == 0 for step in steps)
    never = through(begun(replace(PLAN, widest_shadow=0.0)), HOLD)
    assert never[-1].rollout.shadow_bound == bound_of(1)
    # Where devices have not told yet it waits for them.
    rollout = replace(begun(devices=1000), counted_s=400.0, soaked_s=400.0)
    missing = look(rollout, verdicts(HOLD, told=8, meant=10), devices=1000, taken=1000, now_s=NOW_S)
    assert missing.rollout.shadow_bound == rollout.shadow_bound
    # It serves the stage, and what is in the shadow stays there.
    wide = next(step.rollout for step in steps if step.rollout.shadow_bound > bound_of(10))
    live = replace(looked(replace(wide, counted_s=400.0, soaked_s=400.0)).rollout)
    assert (live.phase, live.live_bound, live.shadow_bound) == (LIVE, bound_of(1), wide.shadow_bound)
    assert [rule.mode for rule in live.rules()] == [LIVE, SHADOW]


def test_the_first_release_of_a_channel_has_nothing_to_run_beside() -> None:
    assert begun(baseline="").phase == LIVE


@pytest.mark.parametrize("state", [RUNNING, PAUSED, HELD, COMPLETED, FAILED, ABORTED])
@pytest.mark.parametrize(
    ("word", "allowed", "after"),
    [
        (rollouts.pause, (RUNNING, HELD), PAUSED),
        (rollouts.resume, (PAUSED, HELD), RUNNING),
        (lambda rollout: rollouts.promote(rollout, 1000), OPEN, RUNNING),
        (rollouts.abort, OPEN, ABORTED),
    ],
    ids=["pause", "resume", "promote", "abort"],
)
def test_a_word_is_taken_in_its_states_alone(
    state: str, word: Callable[[Rollout], Step], allowed: tuple[str, ...], after: str
) -> None:
    rollout = replace(begun(), state=state)
    if state in allowed:
        assert word(rollout).rollout.state == after
    else:
        with pytest.raises(ConflictError, match=f"rollout r1 is {state}"):
            word(rollout)


def test_promoting_takes_the_next_step_and_completes_the_last() -> None:
    rollout, seen = begun(), []
    while rollout.is_open:
        step = rollouts.promote(rollout, 1000)
        assert step.kind == "promoted"
        seen.append((rollout.stage, rollout.phase))
        rollout = step.rollout
    assert seen == [(stage, phase) for stage in range(4) for phase in (SHADOW, LIVE)]
    assert rollout.state == COMPLETED


@pytest.mark.parametrize(
    ("percent", "bound"), [(100.0, BUCKETS), (1.0, 10_000), (1e-9, 1), (0.1, 1000), (33.3333333, 333_333)]
)
def test_a_bound_is_the_share_of_buckets(percent: float, bound: int) -> None:
    assert bound_of(percent) == bound


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"stages": ()}, "stages"), ({"stages": (10.0, 1.0)}, "stages"), ({"stages": (0.0, 1.0)}, "stages"),
        ({"stages": (1.0, 1.0)}, "stages"), ({"stages": (101.0,)}, "stages"), ({"stages": (math.nan,)}, "stage"),
        ({"stages": tuple(range(1, 30))}, "stages"), ({"mode": "blue"}, "mode"), ({"soak_s": -1}, "soak_s"),
        ({"timeout_s": 10, "soak_s": 10}, "timeout_s"), ({"cohort": "region =="}, "cohort"),
        ({"mode": "ab", "stages": (60.0, 100.0)}, "begins with 60%"),
        ({"widest_shadow": 101.0}, "widest_shadow"), ({"widest_shadow": math.nan}, "widest_shadow"),
    ],
)  # fmt: skip
def test_a_plan_that_makes_no_sense_is_refused(wrong: dict[str, object], named: str) -> None:
    with pytest.raises(InvalidError, match=named):
        Plan(**wrong)  # type: ignore[arg-type]


def test_a_completed_rollout_settles_its_cohort_and_one_for_all_settles_everybody() -> None:
    old = [{"cohort": 'region == "eu"', "release": "c" * 64}, {"cohort": "", "release": "a" * 64}]
    part = begun(replace(PLAN, cohort='region == "eu"'))
    assert settled_after(part, old) == [
        {"cohort": 'region == "eu"', "release": "b" * 64}, {"cohort": "", "release": "a" * 64},
    ]  # fmt: skip
    assert settled_after(begun(), old) == [{"cohort": "", "release": "b" * 64}]


class Chaos(RuleBasedStateMachine):
    """Anything in any order: bounds never shrink while it is open, who has it keeps it, nothing follows the end."""

    @initialize(
        mode=st.sampled_from(rollouts.MODES),
        stages=st.lists(st.floats(0.001, 100), min_size=1, max_size=5, unique=True).map(sorted),
        devices=st.sampled_from([0, 1, 2, 20, 5000, 1_000_000]),
        first=st.sampled_from([0, 1, 100]),
        widest=st.sampled_from([0.0, 5.0, 100.0]),
        baseline=st.sampled_from(["", "a" * 64]),
    )
    def begin(
        self, mode: str, stages: list[float], devices: int, first: int, widest: float, baseline: str
    ) -> None:
        # A comparison of two arms begins with half of the cohort at most.
        mode = "canary" if mode == "ab" and stages[0] > 50 else mode
        plan = Plan(
            stages=tuple(stages), mode=mode, soak_s=100, timeout_s=600, first_devices=first, widest_shadow=widest,
            limits=Limits(devices=3),
        )  # fmt: skip
        self.devices, self.now_s = devices, NOW_S
        self.rollout = begun(plan, baseline=baseline, devices=devices)
        self.allowed_s = 0.0

    def went(self, step: Step) -> None:
        before, after = self.rollout, step.rollout
        if not before.is_open:
            assert after.state == before.state
            assert not step.kind
        if before.is_open and after.is_open:
            assert after.live_bound >= before.live_bound
            assert after.shadow_bound >= before.shadow_bound
            for bucket in (0, before.live_bound, max(0, before.bound - 1), before.target - 1, BUCKETS - 1):
                assert rank(after, bucket) >= rank(before, bucket)
        assert (after.stage, after.phase == LIVE) >= (before.stage, before.phase == LIVE)
        assert after.live_bound <= bound_of(after.plan.stages[after.stage])
        if step.kind in {FAILED, ABORTED}:
            assert not after.rules()
        self.rollout = after

    @rule(
        outcome=st.sampled_from([PASS, PASS, PASS, HOLD, FAIL]),
        after_s=st.sampled_from([0.0, 30.0, 60.0, 60.0, 3600.0, 1e9, -1e9]),
        share=st.floats(0, 1),
    )
    def look(self, outcome: str, after_s: float, share: float) -> None:
        self.now_s += after_s
        before = self.rollout
        step = look(
            before, verdicts(outcome), devices=self.devices, taken=int(share * self.devices), now_s=self.now_s
        )
        if outcome == HOLD:
            assert (step.rollout.stage, step.rollout.phase) == (before.stage, before.phase)
        if (step.rollout.stage, step.rollout.phase) == (before.stage, before.phase):
            assert 0 <= step.rollout.counted_s - before.counted_s <= LONGEST_TICK_S
            assert 0 <= step.rollout.soaked_s <= step.rollout.counted_s
        self.went(step)

    @precondition(lambda self: self.rollout.is_open)
    @rule(word=st.sampled_from(["pause", "resume", "promote"]))
    def say(self, word: str) -> None:
        words = {
            "pause": rollouts.pause,
            "resume": rollouts.resume,
            "promote": lambda rollout: rollouts.promote(rollout, self.devices),
        }
        try:
            step = words[word](self.rollout)
        except ConflictError:
            return
        self.went(step)

    @precondition(lambda self: self.rollout.is_open)
    @rule(really=st.integers(0, 9))
    def abort(self, really: int) -> None:
        if not really:
            self.went(rollouts.abort(self.rollout))

    @rule()
    def keep(self) -> None:
        tree = json.loads(json.dumps(self.rollout.to_tree()))
        again = Rollout.from_tree(tree)
        assert again == self.rollout
        self.rollout = again

    @invariant()
    def bounds_are_buckets(self) -> None:
        if hasattr(self, "rollout"):
            assert 0 <= self.rollout.live_bound <= BUCKETS
            assert 0 <= self.rollout.shadow_bound <= BUCKETS


Chaos.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestChaos = Chaos.TestCase
