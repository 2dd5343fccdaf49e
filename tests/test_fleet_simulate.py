"""Simulated rollouts: good candidates come through, bad ones are stopped early, and a seed is a rollout."""

from __future__ import annotations

import io
import json
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from edgekit.fleet.errors import InvalidError
from edgekit.fleet.rules.gates import Limits, Verdict
from edgekit.fleet.rules.rollouts import COMPLETED, FAILED, HELD, LIVE, SHADOW, Plan
from edgekit.fleet.simulate import command as command_module
from edgekit.fleet.simulate.command import Options, command, simulate
from edgekit.fleet.simulate.many import many
from edgekit.fleet.simulate.picture import svg
from edgekit.fleet.simulate.run import History, run
from edgekit.fleet.simulate.world import FAULTS, Hit, World, drawn, made
from edgekit_runtime.policies import BUCKETS, bucket_of

PLAN = Plan(soak_s=1200, timeout_s=14_400, patience_s=7200)
GOOD = World(devices=20, agreement=0.985, spread=0.01)
STOPPED = ("wrong", "swapped", "slow", "crashing", "nan", "silent", "raising")


def hit(world: World, *faults: str) -> World:
    return replace(world, hits=tuple(Hit.parse(each) for each in faults))


@pytest.mark.parametrize("mode", ["shadow", "canary"])
def test_twenty_devices_come_through_without_a_hand(mode: str) -> None:
    history = run(GOOD, replace(PLAN, mode=mode), seed=3)
    assert history.state == COMPLETED
    assert history.exposed >= 0.9
    assert (history.windows > 0, history.rules > 0) == (True, True)


AB = replace(PLAN, mode="ab")
EQUAL = World(devices=800, latency_ratio=1.0, errors=0.003, live_errors=0.003)


def arms_of(history: History) -> Verdict:
    return next(each for each in history.moments[-1].verdicts if each.gate == "arms")


def test_arms_that_do_not_differ_are_not_told_apart_and_reach_everybody() -> None:
    found = many(EQUAL, AB, runs=8, seed=1)
    assert found.failed == 0.0
    assert found.completed >= 7 / 8


@pytest.mark.parametrize("worse", [{"latency_ratio": 1.3}, {"errors": 0.009, "live_errors": 0.0}])
def test_an_arm_that_is_worse_by_what_matters_is_stopped_before_half_have_it(worse: dict[str, float]) -> None:
    found = many(replace(EQUAL, **worse), replace(AB, stages=(25, 50, 100)), runs=4, seed=1)
    assert (found.failed, found.exposed <= 0.5) == (1.0, True)
    assert set(found.gates) <= {"arms", "errors", "latency_ratio"}
    assert "arms" in found.gates


def test_an_arm_that_falls_silent_is_uneven() -> None:
    history = run(
        hit(replace(EQUAL, devices=4000), "silent=0.3"), replace(AB, limits=Limits(failures=0.45)), seed=3
    )
    assert history.state == FAILED
    assert "ratio" in history.why or "uneven" in history.why


def test_twenty_devices_are_too_few_to_tell_two_arms_apart_so_a_person_is_asked() -> None:
    history = run(GOOD, AB, seed=3)
    assert (history.state, history.stopped_at) == (HELD, "50% live")
    assert "inconclusive" in arms_of(history).why


@pytest.mark.parametrize("devices", [20, 1000])
@pytest.mark.parametrize("fault", STOPPED)
def test_a_bad_candidate_is_stopped_before_it_serves_anybody(fault: str, devices: int) -> None:
    history = run(hit(replace(GOOD, devices=devices), fault), PLAN, seed=3)
    first = next(each for each in history.moments if each.meant > 0)
    assert history.state == FAILED
    assert history.exposed == 0.0
    assert (history.moments[-1].stage, history.moments[-1].phase) == (first.stage, SHADOW)
    assert history.kept == 0


def test_a_candidate_that_drifts_on_one_cohort_is_stopped_and_the_cohort_named() -> None:
    history = run(hit(replace(GOOD, devices=3000), "drifting=1@region=eu"), PLAN, seed=3)
    assert history.state == FAILED
    assert "region=eu" in history.why
    assert history.exposed < 0.15
    assert history.kept == 0


def test_two_points_less_agreement_are_stopped_and_what_is_as_expected_is_not() -> None:
    plan = replace(PLAN, limits=Limits(agreement=0.96))
    worse = many(World(devices=600, agreement=0.95), plan, runs=4, seed=1)
    assert worse.failed == 1.0
    assert worse.exposed <= 0.01
    assert set(worse.gates) == {"agreement"}
    same = many(World(devices=600, agreement=0.97), plan, runs=4, seed=1)
    assert same.failed == 0.0
    assert same.completed >= 3 / 4


@pytest.mark.parametrize("fault", ["offline=0.2", "lying_clock=0.5", "slow=0.02"])
def test_faults_of_few_devices_do_not_stop_a_good_candidate(fault: str) -> None:
    assert run(hit(replace(GOOD, devices=1000), fault), PLAN, seed=3).state in {COMPLETED, HELD}


def test_devices_that_are_seldom_heard_and_worse_keep_a_rollout_from_going_on() -> None:
    history = run(hit(replace(GOOD, devices=1000), "biased=0.4"), PLAN, seed=3)
    assert history.state in {FAILED, HELD}
    assert history.exposed <= 0.11


def test_a_halt_takes_effect_within_one_poll_of_every_device_that_is_online() -> None:
    world = hit(replace(GOOD, devices=2000, late_s=9000), "drifting", "offline=0.1")
    history = run(world, PLAN, seed=3)
    assert (history.state, history.kept) == (FAILED, 0)
    assert history.touched > 0.05
    assert history.away > 0


def test_the_same_seed_is_the_same_rollout_and_another_one_is_not() -> None:
    world = replace(GOOD, devices=300)
    first, again, other = (run(world, PLAN, seed=each) for each in (5, 5, 6))
    assert first == again
    assert first.moments != other.moments
    brief = run(world, PLAN, seed=5, bounds=False)
    assert [each.decided for each in brief.moments] == [each.decided for each in first.moments]


def test_a_cohort_is_the_only_part_that_takes_part() -> None:
    history = run(replace(GOOD, devices=2000), replace(PLAN, cohort='region == "asia"'), seed=3)
    assert 300 < history.cohort < 500
    assert history.state == COMPLETED
    nobody = run(GOOD, replace(PLAN, cohort='region == "mars"'), seed=3)
    assert (nobody.cohort, nobody.state, nobody.exposed) == (0, HELD, 0.0)
    assert "no device fits the cohort" in nobody.why


def test_shares_follow_the_stages() -> None:
    history = run(replace(GOOD, devices=10_000), PLAN, seed=3, bounds=False)
    for stage, percent in enumerate(PLAN.stages):
        last = [each for each in history.moments if each.stage == stage and each.phase == LIVE][-1]
        assert last.meant == pytest.approx(percent / 100, abs=0.015)
        assert last.serves <= last.meant
        assert last.serves == pytest.approx(last.meant, abs=0.03)
    exposed = [each.serves for each in history.moments]
    assert np.all(np.diff(exposed) >= 0)


def test_devices_are_drawn_by_the_bucket_of_the_real_policy() -> None:
    world = replace(GOOD, devices=200)
    found = drawn(world, made(world, np.random.default_rng(0)), salt="salt", cohort="")
    assert found.bucket.tolist() == sorted(bucket_of("salt", f"device-{each:07d}") for each in range(200))
    assert 0 <= found.bucket.min() <= found.bucket.max() < BUCKETS


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("slow", Hit("slow")), ("slow=0.5", Hit("slow", 0.5)),
        ("drifting=1@region=eu", Hit("drifting", 1.0, "region", "eu")),
    ],
)  # fmt: skip
def test_a_fault_is_read_and_written(text: str, expected: Hit) -> None:
    assert Hit.parse(text) == expected
    assert Hit.parse(str(expected)) == expected


@pytest.mark.parametrize(
    "text", ["", "nope", "slow=2", "slow=nan", "slow=-1", "slow=x", "slow@region", "slow=1@"]
)
def test_a_fault_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(InvalidError, match="fault"):
        Hit.parse(text)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"devices": 0}, "devices"), ({"agreement": float("nan")}, "agreement"), ({"poll_s": 0}, "poll_s"),
        ({"labels": {"region": {"eu": 0.5}}}, "region"), ({"labels": {"Region": {"eu": 1.0}}}, "Region"),
        ({"hits": (Hit("slow", 1.0, "region", "mars"),)}, "mars"),
    ],
)  # fmt: skip
def test_a_world_that_makes_no_sense_is_refused(wrong: dict[str, object], named: str) -> None:
    with pytest.raises(InvalidError, match=named):
        World(**wrong)  # type: ignore[arg-type]


def test_a_spread_that_no_share_can_have_is_refused() -> None:
    with pytest.raises(InvalidError, match="spread"):
        run(World(devices=5, agreement=0.99, spread=0.4), PLAN, seed=1)


def test_the_picture_is_one_document_that_says_what_happened() -> None:
    for history in (
        run(GOOD, PLAN, seed=3),
        run(hit(GOOD, "crashing"), replace(PLAN, mode="canary"), seed=3),
    ):
        text = svg(history)
        root = ET.fromstring(text)
        assert root.tag.endswith("svg")
        assert history.state in text
        assert "nan" not in text.replace("NaN", "")
        assert "href" not in text


def simulated(options: Options) -> tuple[int, str]:
    out = Console(file=io.StringIO(), width=120)
    code = simulate(options, out=out, err=Console(file=io.StringIO()))
    return code, out.file.getvalue()  # type: ignore[attr-defined]


def test_the_command_shows_a_table_a_picture_or_figures(tmp_path: Path) -> None:
    options = Options(devices=20, agreement=0.98, min_agreement=0.95, soak_s=1200)
    code, said = simulated(replace(options, svg=tmp_path / "a.svg"))
    assert (code, "completed" in said, (tmp_path / "a.svg").exists()) == (0, True, True)
    code, said = simulated(replace(options, as_json=True))
    tree = json.loads(said)
    assert (code, tree["state"], tree["options"]["devices"]) == (0, COMPLETED, 20)
    assert tree["moments"][0]["verdicts"][0]["gate"] == "failures"
    code, said = simulated(replace(options, runs=2, as_json=True))
    assert json.loads(said)["runs"] == 2


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"runs": 0}, "--runs"), ({"seed": -1}, "--seed"), ({"stages": "1,x"}, "--stages"),
        ({"faults": ("x",)}, "fault"),
        ({"runs": 2, "svg": Path("a.svg")}, "--svg"), ({"mode": "x"}, "mode"), ({"drop": 2.0}, "agreement"),
        ({"devices": 1, "svg": Path("/nowhere/a.svg")}, "/nowhere"),
    ],
)  # fmt: skip
def test_the_command_refuses_what_it_cannot_use(wrong: dict[str, object], named: str) -> None:
    with pytest.raises(InvalidError, match=named):
        simulated(replace(Options(), **wrong))  # type: ignore[arg-type]


def test_an_interrupt_ends_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command_module, "run", interrupted)
    assert simulated(Options())[0] == 130


def test_the_command_line_gives_errors_as_messages() -> None:
    app = typer.Typer()
    app.command()(command)
    runner = CliRunner()
    found = runner.invoke(app, ["--devices", "20", "--fault", "crashing", "--json", "--soak-s", "600"])
    assert (found.exit_code, json.loads(found.stdout)["state"]) == (0, FAILED)
    wrong = runner.invoke(app, ["--fault", "nope"])
    assert wrong.exit_code == 2
    assert all(name in wrong.stderr for name in FAULTS)
