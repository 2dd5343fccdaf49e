"""Both arms of an A/B comparison where people see them: the API, the commands, the rollout's page; and the plan."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from sqlalchemy import insert
from typer.testing import CliRunner, Result

from edgekit.cli import app
from edgekit.fleet.conduct import steering
from edgekit.fleet.errors import NotFoundError
from edgekit.fleet.identity.access import make_token
from edgekit.fleet.rules.evidence import Arm, Arms, Evidence
from edgekit.fleet.rules.gates import judged
from edgekit.fleet.rules.rollouts import Plan
from edgekit.fleet.server.dashboard import sessions
from edgekit.fleet.server.dashboard.views.arms import arms_of
from edgekit.fleet.storage.tables import channels
from edgekit.fleet.windows import views
from edgekit_runtime.sketches import Sketch
from support.fleet_api import client, serving
from support.fleets import ADMIN, World, make

DOCS = Path(__file__).parents[1] / "docs"


def arm(seed: int, latency_ms: float, n: int = 300) -> Arm:
    rng = np.random.default_rng(seed)
    latency = latency_ms * rng.lognormal(0, 0.15, n)
    spoken = Sketch.of(*rng.beta(9, 2, 60))
    return Arm(n, rng.binomial(200, 0.004, n) / 200, np.zeros(n), latency, rng.beta(9, 2, n), spoken)


def looked(world: World, rollout_id: str, arms: Arms | None) -> None:
    with world.fleet.database.writing() as connection:
        rollout, _ = steering.read(connection, rollout_id)
        evidence = Evidence(
            meant=300, taken=300, outcomes=np.zeros(300, dtype=bool), heard=(300, 300), share=0.5, arms=arms
        )
        verdicts = judged(evidence, rollout.plan.limits, mode="ab", phase="live")
        steering.looked(connection, rollout, evidence, verdicts, world.fleet.now())


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    found = make(tmp_path_factory.mktemp("arms") / "fleet")
    yield found
    found.fleet.close()


@pytest.fixture(scope="module")
def rollout(world: World) -> str:
    before = world.release("1.0.0")
    world.release("2.0.0")
    model = "größe"
    with world.fleet.database.writing() as connection:
        settled = [{"cohort": "", "release": before}]
        connection.execute(insert(channels).values(name="stable", model=model, settled=settled, revision=0))
    plan = Plan(stages=(10, 50, 100), mode="ab")
    return steering.create(world.fleet, ADMIN, model=model, version="2.0.0", channel="stable", plan=plan).id


@pytest.fixture(scope="module")
def address(world: World, rollout: str) -> Iterator[str]:
    with serving(world) as found:
        yield found


def call(*words: object, address: str, token: str) -> Result:
    environment = {**os.environ, "EDGEKIT_SERVER": address, "EDGEKIT_TOKEN": token}
    return CliRunner(env=environment).invoke(app, [str(each) for each in words], prog_name="edgekit")


def test_arms_are_shown_side_by_side(world: World, rollout: str, address: str) -> None:
    with client(world, address, "viewer") as asks:
        with pytest.raises(NotFoundError, match="no arms"):
            asks.get(f"rollouts/{rollout}/arms")
        looked(world, rollout, Arms(arm(1, 11.0), arm(2, 8.0), decides=True))
        told = asks.get(f"rollouts/{rollout}/arms")
    assert (told["verdict"], told["candidate"], told["control"]) == ("worse", 300, 300)
    latency = next(each for each in told["measures"] if each["name"] == "latency_ms")
    assert latency["control"]["mean"] == pytest.approx(8.0, rel=0.05)
    assert 0.2 < latency["lower"] < latency["difference"] < latency["upper"] < 0.6
    token = make_token(world.fleet, ADMIN, name="eye", role="viewer")
    shown = call("rollout", "status", rollout, address=address, token=token)
    assert shown.exit_code == 0, shown.output
    assert "A/B: worse; 300 devices with it, 300 without" in shown.stdout
    assert "drift psi" in shown.stdout
    plain = call("rollout", "status", rollout, "--json", address=address, token=token)
    assert json.loads(plain.stdout)["look"]["counts"]["arms"]["verdict"] == "worse"


def test_the_page_of_the_rollout_draws_both_arms_and_their_difference(
    world: World, rollout: str, address: str
) -> None:
    looked(world, rollout, Arms(arm(1, 11.0), arm(2, 8.0), decides=True))
    token = make_token(world.fleet, ADMIN, name="page", role="viewer")
    cookie = sessions.Keyring.of(world.fleet.settings.folder).cookie(
        sessions.token_id(token), world.fleet.now()
    )
    found = httpx.get(
        f"{address}/dashboard/rollouts/{rollout}", cookies={sessions.COOKIE: cookie}, timeout=20
    )
    assert found.status_code == 200, found.text
    assert "Both arms" in found.text
    assert 'aria-label="Mean of latency: candidate' in found.text
    assert 'aria-label="Difference of latency: +' in found.text
    assert "nan%" not in found.text


def test_a_look_without_arms_shows_no_section() -> None:
    assert arms_of(None) is None
    assert arms_of({"counts": {}}) is None


def test_the_section_shows_what_is_not_known_yet(world: World, rollout: str) -> None:
    looked(world, rollout, Arms(Arm(meant=3), arm(2, 8.0), decides=False))
    with world.fleet.database.reading() as connection:
        found = arms_of(views.rollout(connection, rollout)["look"])
    assert found is not None
    assert {each.difference for each in found.measures} == {"–"}
    assert {each.between for each in found.measures} == {"anything yet"}
    assert found.tag.text == "Arms are uneven"


def test_a_rollout_that_is_too_small_for_a_verdict_begins_with_a_warning(world: World, address: str) -> None:
    token = make_token(world.fleet, ADMIN, name="op", role="operator")
    world.release("3.0.0")
    words = ("rollout", "create", "--model", "größe", "--version", "3.0.0", "--channel", "other")
    refused = call(*words, "--mode", "ab", "--stages", "60,100", address=address, token=token)
    assert (refused.exit_code, "at most 50" in refused.stderr) == (2, True)
    for open_one in json.loads(
        call("rollout", "list", "--open", "--json", address=address, token=token).stdout
    ):
        call("rollout", "abort", open_one["id"], address=address, token=token)
    made = call(*words, "--mode", "ab", "--json", address=address, token=token)
    assert made.exit_code == 0, made.output
    assert "no device fits the cohort" in made.stderr
    assert json.loads(made.stdout)["warnings"]


def planned(*words: object) -> Result:
    return CliRunner().invoke(app, ["rollout", "plan", *map(str, words)], prog_name="edgekit")


def test_a_plan_needs_no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EDGEKIT_SERVER", raising=False)
    large = planned("--devices", 5000)
    assert (large.exit_code, "agreement" in large.stdout) == (0, True)
    assert "The smallest drop in agreement that these devices show: 1." in large.stdout
    small = planned("--devices", 40, "--mode", "ab", "--json")
    tree = json.loads(small.stdout)
    assert (small.exit_code, tree["decides"]) == (3, False)
    assert any("in each arm" in each for each in tree["warnings"])
    slow = planned("--devices", 5000, "--windows-per-day", 0.1, "--timeout", "2d")
    assert (slow.exit_code, "longer time-out" in slow.stdout) == (3, True)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--devices", 0), "devices 0"), (("--devices", 9, "--mode", "x"), "mode"),
        (("--devices", 9, "--power", 1), "power"), (("--devices", 9, "--agreement-drop", 0), "drop"),
        (("--devices", 9, "--stages", "a"), "stages"), (("--devices", 9, "--spread", 0.4), "deviation"),
        (("--devices", 9, "--alpha", 0), "alpha"),
        (("--devices", 9, "--windows-per-day", 1, "--samples-per-device-day", 1), "one of them"),
    ],
)  # fmt: skip
def test_a_plan_that_makes_no_sense_is_refused_in_words(words: tuple[object, ...], says: str) -> None:
    found = planned(*words)
    assert found.exit_code == 2, found.output
    assert says in found.stderr


def test_the_plans_of_help_and_pages_are_ones_that_run() -> None:
    text = " ".join(planned("--help").output.split())
    found = [text.split("Example: edgekit rollout plan ")[1].split(" ─")[0]]
    for page in ("fleet.md", "cli.md"):
        found += re.findall(r"edgekit rollout plan ([^`\n]+)", (DOCS / page).read_text(encoding="utf-8"))
    assert len(found) >= 4
    for each in found:
        assert planned(*each.split()).exit_code == 0, each
