"""Stolen tokens and databases, devices that lie or flood, codes that are guessed; see docs/threat-model.md."""

from __future__ import annotations

import gzip
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert, select, update
from starlette.testclient import TestClient

from edgekit.fleet.commands.publishing import prepare, sign_waiting
from edgekit.fleet.commands.publishing import publish as upload
from edgekit.fleet.conduct import steering, webhooks
from edgekit.fleet.conduct.conductor import look
from edgekit.fleet.context import Fleet
from edgekit.fleet.errors import ConflictError, FleetError, NotFoundError
from edgekit.fleet.identity import access, enrolment
from edgekit.fleet.operations import setup
from edgekit.fleet.releases import publication, registry, rotation, signing
from edgekit.fleet.rules.gates import Limits
from edgekit.fleet.rules.rollouts import Plan
from edgekit.fleet.server.app import create_app
from edgekit.fleet.server.dashboard.sessions import Keyring
from edgekit.fleet.storage.tables import audit, channels, looks, windows
from edgekit.fleet.trust import keys
from edgekit.fleet.windows.ingest import take
from edgekit.fleet.windows.merging import merge
from edgekit_runtime.policies import Policy
from edgekit_runtime.trust import Trust
from support.fleet_api import client, serving
from support.fleets import ADMIN, Clock, World, make, rows
from support.releases import publish
from support.served_fleet import a_body, a_fleet, a_window, add_rollout, count, enrolled


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = make(tmp_path / "fleet")
    yield made
    made.fleet.close()


def told(trust: Trust) -> list[str]:
    trust.refresh()
    rules = Policy.from_json(trust.document("rollout/stable.json", 1 << 20)).rules
    return [each.release for each in rules]


# A stolen token


def test_the_token_of_an_admin_alone_has_no_device_run_what_nobody_signed(
    world: World, tmp_path: Path
) -> None:
    good = world.release("1.0.0")
    with world.fleet.database.writing() as connection:
        settled = [{"cohort": "", "release": good}]
        connection.execute(insert(channels).values(name="stable", model="größe", settled=settled, revision=0))
    publication.publish(world.fleet)
    device = world.device(tmp_path / "device")
    assert told(device) == [good]

    evil = world.propose("6.6.6").id
    for deed in (
        lambda: steering.return_to(world.fleet, ADMIN, channel="stable", release=evil),
        lambda: steering.create(
            world.fleet, ADMIN, model="größe", version="6.6.6", channel="stable", plan=Plan()
        ),
    ):
        with pytest.raises((ConflictError, NotFoundError)):
            deed()
    waiting = signing.proposal(world.fleet)
    assert waiting
    assert not signing.submit(world.fleet, ADMIN, waiting.to_bytes()).published
    # Nor with keys of its own, which people would have to sign first.
    rotation.propose(world.fleet, ADMIN, ["targets"], add=[_stranger(tmp_path)])
    waiting = signing.proposal(world.fleet)
    assert waiting
    assert not signing.submit(world.fleet, ADMIN, waiting.to_bytes()).published
    publication.publish(world.fleet)
    assert told(device) == [good]


@pytest.mark.parametrize("more", ["version", "retired", "keys"])
def test_who_publishes_signs_the_own_version_and_nothing_that_waits_beside_it(
    tmp_path: Path, more: str
) -> None:
    """A server that was stolen could have put it there."""
    made = setup.init(tmp_path / "fleet")
    world = World(made, Fleet.open(made.folder), Clock(time.time()))
    world.release("1.0.0")
    if more == "version":
        world.propose("6.6.6")
    elif more == "retired":
        registry.retire(world.fleet, ADMIN, "größe", "1.0.0")
    else:
        rotation.propose(world.fleet, ADMIN, ["targets"], add=[_stranger(tmp_path)])
    signer = keys.load(made.folder / "keys" / "offline" / "targets-1.pem")
    (tmp_path / "bundle").mkdir()
    for name, data in publish("2.0.0", b"weights").content.items():
        (tmp_path / "bundle" / name).write_bytes(data)
    prepared = prepare(tmp_path / "bundle", "", "")
    with serving(world) as address, client(world, address) as connection:
        with pytest.raises(ConflictError) as caught:
            upload(connection, prepared, signers=[signer])
        assert caught.value.code == "proposal_more"
        waiting = signing.proposal(world.fleet)
        assert waiting
        assert not any(each.signatures for each, _ in waiting.new_parts().values())
        # Who looked at all of it signs all of it.
        root = keys.load(made.folder / "keys" / "offline" / "root-1.pem")
        assert sign_waiting(connection, [root if more == "keys" else signer]) == []
        if more == "keys":
            assert upload(connection, prepared, signers=[signer]).missing == []
        assert upload(connection, prepared, signers=[signer]).version["state"] == "signed"
    world.fleet.close()


def _stranger(folder: Path) -> Any:
    return keys.create(folder / "stranger.pem", None)


def test_whatever_people_change_is_in_the_log_under_their_name(world: World) -> None:
    fleet, old = world.fleet, world.release("1.0.0")
    made = access.make_token(fleet, ADMIN, name="pia", role="publisher")
    access.revoke_token(fleet, ADMIN, made.removeprefix(access.API_PREFIX).partition("_")[0])
    enrolment.enrol(fleet, enrolment.make_code(fleet, ADMIN, labels={}).code, "kiln")
    enrolment.set_labels(fleet, ADMIN, "kiln", {"region": "eu"})
    enrolment.set_channel(fleet, ADMIN, "kiln", "beta")
    enrolment.revoke(fleet, ADMIN, "kiln")
    enrolment.forget(fleet, ADMIN, "kiln")
    hook = webhooks.add(fleet, ADMIN, url="https://chat.example/x")
    webhooks.remove(fleet, ADMIN, hook.id)
    rotation.propose(fleet, ADMIN, ["timestamp"])
    rotation.withdraw(fleet, ADMIN)
    registry.retire(fleet, ADMIN, "größe", "1.0.0", why="a slip")
    assert old
    with fleet.database.reading() as connection:
        found = [
            row.action
            for row in connection.execute(select(audit).order_by(audit.c.sequence))
            if row.actor == ADMIN.name
        ]
    kinds = ("token.", "token.", "code.", "device.", "device.", "device.", "device.", "webhook.", "webhook.")
    assert len(found) == len(kinds) + 3, found
    assert [a.startswith(b) for a, b in zip(found, kinds, strict=False)] == [True] * len(kinds)
    assert found[-3:] == ["keys.proposed", "keys.withdrawn", "version.retired"]


def test_nothing_that_can_be_asked_changes_the_log(world: World) -> None:
    paths = create_app(world.fleet).openapi()["paths"]
    about = {path: sorted(methods) for path, methods in paths.items() if "audit" in path}
    assert about
    assert {method for methods in about.values() for method in methods} == {"get"}


# A stolen database


def test_a_stolen_database_has_no_token_no_code_and_no_key_in_it(world: World) -> None:
    fleet = world.fleet
    person = access.make_token(fleet, ADMIN, name="pia", role="publisher")
    code = enrolment.make_code(fleet, ADMIN, labels={}).code
    device = enrolment.enrol(fleet, enrolment.make_code(fleet, ADMIN, labels={}).code, "kiln").token
    cookie = Keyring.of(world.made.folder)
    assert world.fleet.database.path
    stolen = b"".join(each.read_bytes() for each in world.made.folder.glob("fleet.db*"))
    for secret in (person, person.rpartition("_")[2], code, device, world.made.token):
        assert secret.encode() not in stolen
    assert cookie.key not in stolen
    assert b"PRIVATE KEY" not in stolen
    assert access.hashed(device).encode() in stolen


def test_a_hash_from_a_stolen_database_is_no_token_and_no_code(world: World) -> None:
    code = enrolment.make_code(world.fleet, ADMIN, labels={}).code
    token = enrolment.enrol(
        world.fleet, enrolment.make_code(world.fleet, ADMIN, labels={}).code, "kiln"
    ).token
    with world.fleet.database.reading() as connection:
        for stolen in (access.hashed(token), access.DEVICE_PREFIX + access.hashed(token)):
            with pytest.raises(FleetError):
                access.device_of(connection, stolen)
    with pytest.raises(FleetError):
        enrolment.enrol(world.fleet, access.hashed(code), "other")


def test_a_secret_of_a_webhook_lies_in_the_database_until_there_is_another(world: World) -> None:
    """It has to be sent with, so it cannot be hashed."""
    made = webhooks.add(world.fleet, ADMIN, url="https://chat.example/x")
    assert [each["secret"] for each in rows(world.fleet.database, webhooks.webhooks)] == [made.secret]
    webhooks.remove(world.fleet, ADMIN, made.id)
    again = webhooks.add(world.fleet, ADMIN, url="https://chat.example/x")
    assert made.secret not in str(rows(world.fleet.database, webhooks.webhooks))
    assert again.secret != made.secret


# Codes


def test_who_guesses_codes_has_far_to_go_and_is_slowed_down(tmp_path: Path) -> None:
    with a_fleet(tmp_path, enrols_per_s=0.5) as fleet:
        code = enrolment.make_code(fleet, ADMIN, labels={}).code
        assert len(code) * 6 >= 192
        assert len({enrolment.make_code(fleet, ADMIN, labels={}).code for _ in range(50)}) == 50
        with TestClient(create_app(fleet)) as client:
            answers = [
                client.post("/v1/enrol", json={"code": f"{number:032d}", "device": "x"}).status_code
                for number in range(8)
            ]
        assert answers == [403] * 5 + [429] * 3


# A device that lies, or is broken


def settled_by(fleet: Any, *, honest: float, lies: list[Any]) -> dict[str, str]:
    """What the gates say of 30 devices that agree as they do, and one that tells lies."""
    plan = Plan(limits=Limits(samples=100))
    rollout = add_rollout(fleet, plan, phase="shadow")
    for number in range(30):
        device, _ = enrolled(fleet, f"kiln-{number}")
        shown = [a_window(n, compared=100, agreed=int(100 * honest)) for n in range(2)]
        take(fleet, device, a_body(device.id, *shown))
    liar, _ = enrolled(fleet, "liar")
    for start in range(0, len(lies), 100):
        take(fleet, liar, a_body("liar", *lies[start : start + 100]))
    while merge(fleet, "tests"):
        pass
    look(fleet, rollout.id)
    (found,) = rows(fleet.database, looks)
    return {each["gate"]: each["outcome"] for each in found["verdicts"] if not each["slice"]}


@pytest.mark.parametrize(("honest", "agreed", "outcome"), [(1.0, 0, "pass"), (0.5, 10_000, "fail")])
def test_one_device_that_lies_in_many_windows_weighs_as_one_device(
    tmp_path: Path, honest: float, agreed: int, outcome: str
) -> None:
    with a_fleet(tmp_path) as fleet:
        lies = [a_window(number, seen=20_000, compared=10_000, agreed=agreed) for number in range(200)]
        found = settled_by(fleet, honest=honest, lies=lies)
        assert found["agreement"] == outcome


def test_a_device_that_floods_is_slowed_down_and_holds_up_no_other(tmp_path: Path) -> None:
    with a_fleet(tmp_path, device_burst=3, device_posts_per_s=0.1) as fleet:
        tokens = {name: enrolled(fleet, name)[1] for name in ("flood", "calm")}
        with TestClient(create_app(fleet)) as client:

            def post(name: str, number: int) -> int:
                headers = {"Authorization": f"Bearer {tokens[name]}", "Content-Encoding": "gzip"}
                content = gzip.compress(a_body(name, a_window(number)))
                return int(client.post("/v1/reports", content=content, headers=headers).status_code)

            assert [post("flood", number) for number in range(6)] == [200] * 3 + [429] * 3
            assert [post("calm", number) for number in range(3)] == [200] * 3
        assert count(fleet, windows) == 6


def test_a_database_that_somebody_wrote_to_selects_nothing_that_targets_do_not_sign(
    world: World, tmp_path: Path
) -> None:
    good = world.release("1.0.0")
    with world.fleet.database.writing() as connection:
        settled = [{"cohort": "", "release": good}]
        connection.execute(insert(channels).values(name="stable", model="größe", settled=settled, revision=0))
    publication.publish(world.fleet)
    device = world.device(tmp_path / "device")
    evil = world.propose("6.6.6").id
    with world.fleet.database.writing() as connection:
        connection.execute(update(registry.versions).values(state="signed"))
        connection.execute(update(channels).values(settled=[{"cohort": "", "release": evil}]))
    with pytest.raises(ConflictError):
        publication.publish(world.fleet)
    assert told(device) == [good]
