"""Inputs whose answers differ: none is kept that was not asked for, none is read unseen, all can be deleted."""

from __future__ import annotations

import base64
import gzip
import io
import json
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select, update
from starlette.testclient import TestClient

from edgekit.cli import app as cli
from edgekit.fleet.conduct import steering
from edgekit.fleet.context import Fleet
from edgekit.fleet.disagreements import keeping, reading, sealing
from edgekit.fleet.disagreements.samples import MAX_UNPACKED_BYTES, check_arrays
from edgekit.fleet.errors import (
    ConflictError,
    DeniedError,
    InvalidError,
    NotFoundError,
    TooMuchError,
    UnavailableError,
)
from edgekit.fleet.identity.access import Device, make_token
from edgekit.fleet.identity.enrolment import forget, revoke
from edgekit.fleet.operations.backup import restore, save
from edgekit.fleet.operations.retention import sweep
from edgekit.fleet.releases import policies, publication
from edgekit.fleet.rules.rollouts import Plan
from edgekit.fleet.server.app import create_app
from edgekit.fleet.server.dashboard import sessions
from edgekit.fleet.settings import Settings
from edgekit.fleet.storage.tables import audit, devices, disagreements, rollouts
from edgekit_runtime import Shadow, payloads
from edgekit_runtime.agent.transport import HttpTransport
from edgekit_runtime.agent.upload import upload_payloads
from edgekit_runtime.disk import Disk
from edgekit_runtime.policies import MAX_DISAGREEMENTS
from edgekit_runtime.shadow.samples import Keeper, Sample
from edgekit_runtime.store import Store
from edgekit_runtime.strict_json import ContractError
from support.databases import KINDS
from support.fleets import make, rows
from support.served_fleet import (
    ADA,
    BASELINE,
    OPERATOR,
    OTHER,
    RELEASE,
    VIEWER,
    a_fleet,
    add_rollout,
    count,
    enrolled,
    moved,
    serving,
)

DAY_S = 86400
SECRET = b"what the camera saw"
ASKING = Plan(disagreements=5)
ON = {"disagreements_per_device": 3, "disagreements_mb": 1, "disagreement_bytes": 500_000}


def npz(**arrays: Any) -> bytes:
    packed = io.BytesIO()
    np.savez(packed, **{name.replace("__", "/"): value for name, value in arrays.items()})
    return packed.getvalue()


PAYLOAD = npz(input__x=np.frombuffer(SECRET, np.uint8)[None])


def a_body(device: str, key: int = 1, payload: bytes = PAYLOAD, **changed: Any) -> bytes:
    tree = {
        "schema": 1, "device": device, "key": f"{key:032x}", "live": BASELINE, "candidate": RELEASE,
        "labels": ["cat", "dog"], "at_s": 1_700_000_000, "payload": base64.b64encode(payload).decode(),
    }  # fmt: skip
    return json.dumps({**tree, **changed}).encode()


def sample_of(size: int) -> bytes:
    return npz(input__x=np.random.default_rng(1).integers(0, 256, (1, size), np.uint8))


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    with a_fleet(tmp_path, **ON) as found:
        yield found


@pytest.fixture
def kiln(fleet: Fleet) -> Device:
    device, _ = enrolled(fleet, "kiln")
    later(fleet)
    return device


def later(fleet: Fleet, seconds: float = 10) -> None:
    """Let time go by."""
    fleet.now.at += seconds  # type: ignore[attr-defined]


def keys(fleet: Fleet) -> list[int]:
    return [
        int(each["key"], 16)
        for each in sorted(rows(fleet.database, disagreements), key=lambda row: row["id"])
    ]


def log(fleet: Fleet, action: str) -> list[dict[str, Any]]:
    return [each for each in rows(fleet.database, audit) if each["action"] == action]


# What is kept


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_asked_for_is_kept_once_and_sealed(kind: str, tmp_path: Path) -> None:
    with a_fleet(tmp_path, kind, **ON) as fleet:
        rollout = add_rollout(fleet, ASKING)
        device, _ = enrolled(fleet, "kiln", region="eu")
        for kept in (True, False):
            taken = keeping.take(fleet, device, a_body("kiln"))
            assert (taken.have, taken.labels, taken.kept) == ((f"{1:032x}",), {"region": "eu"}, kept)
        (row,) = rows(fleet.database, disagreements)
        assert (row["rollout"], row["live_label"], row["candidate_label"]) == (rollout.id, "cat", "dog")
        assert row["size_bytes"] == len(PAYLOAD)
        assert SECRET.hex() not in row["sealed"]
        assert reading.payload(fleet, OPERATOR, row["id"]).content == PAYLOAD
        reading.erase_device(fleet, OPERATOR, "kiln")
        assert count(fleet, disagreements) == 0


def test_the_files_of_the_database_hold_nothing_of_what_a_device_saw(
    fleet: Fleet, kiln: Device, tmp_path: Path
) -> None:
    add_rollout(fleet, ASKING)
    for key in range(3):
        assert keeping.take(fleet, kiln, a_body("kiln", key)).kept
    content = b"".join(path.read_bytes() for path in tmp_path.glob("fleet.db*"))
    assert f"{1:032x}".encode() in content
    assert SECRET not in content
    # The same input twice is not seen to be the same.
    assert len({each["sealed"] for each in rows(fleet.database, disagreements)}) == 3


@pytest.mark.parametrize(
    ("settings", "plan", "more", "candidate"),
    [
        ({"disagreements_per_device": 0}, ASKING, {}, RELEASE),
        ({}, Plan(), {}, RELEASE),
        ({}, ASKING, {"shadow_bound": 0, "live_bound": 0}, RELEASE),
        ({}, Plan(disagreements=5, cohort='region == "us"'), {}, RELEASE),
        ({}, ASKING, {}, OTHER),
    ],
    ids=[
        "the server takes none",
        "the rollout asks for none",
        "not drawn",
        "another cohort",
        "another release",
    ],
)
def test_what_nobody_asked_for_is_forgotten_and_not_kept(
    settings: dict[str, Any], plan: Plan, more: dict[str, Any], candidate: str, tmp_path: Path
) -> None:
    with a_fleet(tmp_path, **{**ON, **settings}) as fleet:
        add_rollout(fleet, plan, **more)
        device, _ = enrolled(fleet, "kiln", region="eu")
        taken = keeping.take(fleet, device, a_body("kiln", candidate=candidate))
        assert (taken.have, taken.kept) == ((f"{1:032x}",), False)
        assert count(fleet, disagreements) == 0
        assert not sealing.path_of(tmp_path).exists()


def test_the_newest_of_a_device_are_kept(fleet: Fleet, kiln: Device) -> None:
    add_rollout(fleet, ASKING)
    other, _ = enrolled(fleet, "oven")
    keeping.take(fleet, other, a_body("oven", 100))
    for key in range(5):
        keeping.take(fleet, kiln, a_body("kiln", key))
    assert keys(fleet) == [100, 2, 3, 4]


def test_all_together_stay_within_their_megabytes_and_the_oldest_go(tmp_path: Path) -> None:
    with a_fleet(tmp_path, **{**ON, "disagreements_per_device": 100}) as fleet:
        add_rollout(fleet, ASKING)
        senders = [enrolled(fleet, name)[0] for name in ("kiln", "oven")]
        for key in range(6):
            keeping.take(fleet, senders[key % 2], a_body(senders[key % 2].id, key, sample_of(300_000)))
        assert keys(fleet) == [3, 4, 5]
        assert sum(each["size_bytes"] for each in rows(fleet.database, disagreements)) <= 10**6


def test_old_ones_go_by_themselves(fleet: Fleet, kiln: Device) -> None:
    add_rollout(fleet, ASKING)
    keeping.take(fleet, kiln, a_body("kiln", 1))
    keeping.take(moved(fleet, 20 * DAY_S), kiln, a_body("kiln", 2))
    sweep(moved(fleet, 29 * DAY_S))
    assert keys(fleet) == [1, 2]
    sweep(moved(fleet, 31 * DAY_S))
    assert keys(fleet) == [2]


# What is refused


def refused(payload: bytes) -> str:
    with pytest.raises(ContractError) as error:
        check_arrays(payload)
    return str(error.value)


def zipped(name: str, content: bytes, means: int = zipfile.ZIP_DEFLATED) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", means) as file:
        file.writestr(name, content)
    return packed.getvalue()


def npy(array: Any, **options: Any) -> bytes:
    content = io.BytesIO()
    np.save(content, array, **options)
    return content.getvalue()


def test_what_is_pickled_or_no_npz_of_numbers_is_refused() -> None:
    assert "pickled" in refused(npz(input__x=np.array([{"a": 1}], object)))
    assert "pickled" in refused(npz(input__x=np.array(["text"])))
    assert "pickled" in refused(npz(input__x=np.zeros(1, [("a", "f4")])))
    for content in (b"", b"PK", b"not a zip at all", PAYLOAD[:-30], zipped("input/x.npy", b"garbage")):
        refused(content)
    assert "as its head says" in refused(zipped("input/x.npy", npy(np.zeros(9)) + b"more"))
    assert "as its head says" in refused(zipped("input/x.npy", npy(np.zeros(9))[:-8]))
    damaged = bytearray(zipped("input/x.npy", npy(np.zeros(9)), zipfile.ZIP_STORED))
    damaged[150] ^= 1
    refused(bytes(damaged))


@pytest.mark.parametrize(
    "name",
    ["../x.npy", "/etc/x.npy", "input/../x.npy", "input/..", "input/a/b.npy", "input/a\\b.npy", "input/.npy", "x.npy",
     "input/x", "other/x.npy", "input/.x.npy", f"input/{'x' * 201}.npy"],
)  # fmt: skip
def test_a_name_that_leads_elsewhere_is_refused(name: str) -> None:
    assert "names such as" in refused(zipped(name, npy(np.zeros(1))))


def test_a_few_bytes_that_stand_for_many_are_refused_before_they_are_unpacked() -> None:
    bomb = zipped("input/x.npy", npy(np.zeros(MAX_UNPACKED_BYTES, np.uint8)))
    assert len(bomb) < 100_000
    assert "once unpacked" in refused(bomb)
    # One that lies about its size is not read beyond it.
    lying = bytearray(bomb)
    at = lying.rindex(b"PK\x01\x02") + 24
    lying[at : at + 4] = (1000).to_bytes(4, "little")
    refused(bytes(lying))


@given(st.binary(max_size=400))
def test_no_bytes_of_a_stranger_do_more_than_be_refused(content: bytes) -> None:
    refused(content)


@given(st.integers(0, len(PAYLOAD) - 1), st.integers(1, 255))
def test_a_payload_with_any_byte_changed_is_taken_or_refused(at: int, by: int) -> None:
    changed = bytearray(PAYLOAD)
    changed[at] ^= by
    try:
        check_arrays(bytes(changed))
    except ContractError:
        return
    with np.load(io.BytesIO(bytes(changed)), allow_pickle=False) as arrays:
        assert all(arrays[name].dtype.kind in "biuf" for name in arrays)


@pytest.mark.parametrize(
    "changed",
    [
        {"schema": 2}, {"key": "x"}, {"key": "A" * 32}, {"live": "a"}, {"candidate": "z" * 64}, {"labels": ["cat"]},
        {"labels": ["cat", "a\nb"]}, {"labels": ["cat", "x" * 257]}, {"labels": [1, 2]}, {"at_s": -1}, {"at_s": "1"},
        {"at_s": 10**12}, {"payload": "?"}, {"payload": ""}, {"payload": 1}, {"more": 1},
    ],
)  # fmt: skip
def test_a_post_that_breaks_the_contract_is_refused(
    changed: dict[str, Any], fleet: Fleet, kiln: Device
) -> None:
    add_rollout(fleet, ASKING)
    with pytest.raises(InvalidError) as error:
        keeping.take(fleet, kiln, json.dumps({**json.loads(a_body("kiln")), **changed}).encode())
    assert error.value.code == "contract"
    assert count(fleet, disagreements) == 0


def test_more_than_may_be_and_what_is_anothers_is_refused(fleet: Fleet, kiln: Device) -> None:
    add_rollout(fleet, ASKING)
    with pytest.raises(TooMuchError):
        keeping.take(fleet, kiln, a_body("kiln", payload=sample_of(500_001)))
    with pytest.raises(DeniedError, match="token of 'kiln'"):
        keeping.take(fleet, kiln, a_body("oven"))
    revoke(fleet, ADA, "kiln")
    with pytest.raises(DeniedError) as error:
        keeping.take(fleet, kiln, a_body("kiln"))
    assert error.value.status == 401
    assert count(fleet, disagreements) == 0


# Keys


def test_the_key_is_made_once_and_nobody_else_may_read_it(fleet: Fleet, kiln: Device, tmp_path: Path) -> None:
    add_rollout(fleet, ASKING)
    keeping.take(fleet, kiln, a_body("kiln"))
    path = sealing.path_of(tmp_path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert sealing.make(tmp_path).key == sealing.make(tmp_path).key
    assert list(path.parent.iterdir()) == [path]
    path.chmod(0o604)
    with pytest.raises(UnavailableError, match="others on this machine"):
        keeping.take(fleet, kiln, a_body("kiln", 2))


def test_a_wrong_key_is_refused_clearly_and_keeps_nothing(fleet: Fleet, kiln: Device, tmp_path: Path) -> None:
    add_rollout(fleet, ASKING)
    keeping.take(fleet, kiln, a_body("kiln"))
    (row,) = rows(fleet.database, disagreements)
    path = sealing.path_of(tmp_path)
    own = path.read_bytes()
    for content, says in ((None, "is not there"), (b"12" * 32, "it is the key"), (b"xy", "it is no key")):
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content)
            path.chmod(0o600)
        for ask in (
            lambda: reading.payload(fleet, OPERATOR, row["id"]),
            lambda: keeping.take(fleet, kiln, a_body("kiln", 2)),
        ):
            with pytest.raises(UnavailableError, match=says) as error:
                ask()
            assert error.value.code == "disagreement_key"
    path.write_bytes(own)
    assert reading.payload(fleet, OPERATOR, row["id"]).content == PAYLOAD
    assert keys(fleet) == [1]


def test_what_was_moved_to_another_row_or_changed_does_not_open(fleet: Fleet, kiln: Device) -> None:
    add_rollout(fleet, ASKING)
    keeping.take(fleet, kiln, a_body("kiln"))
    (row,) = rows(fleet.database, disagreements)
    flipped = bytearray(bytes.fromhex(row["sealed"]))
    flipped[-1] ^= 1
    for values in (
        {"device": "oven"},
        {"key": "f" * 32},
        {"device": "kiln", "key": row["key"], "sealed": bytes(flipped)},
    ):
        with fleet.database.writing() as connection:
            connection.execute(update(disagreements).values(values))
        with pytest.raises(UnavailableError) as error:
            reading.payload(fleet, OPERATOR, row["id"])
        assert error.value.code == "damaged"


def test_the_key_is_in_a_backup_only_with_the_others(tmp_path: Path) -> None:
    world = make(tmp_path / "fleet")
    own = sealing.load(tmp_path / "fleet")
    assert own is not None, "init makes it"
    for name, with_keys in (("all.tar", True), ("some.tar", False)):
        save(world.fleet, tmp_path / name, keys=with_keys)
        restore(tmp_path / name, tmp_path / name[:-4])
        found = sealing.load(tmp_path / name[:-4])
        assert found == (replace(own, path=found.path) if with_keys and found else None)
    assert sealing.path_of(tmp_path / "all").stat().st_mode & 0o777 == 0o600
    world.fleet.close()


# Asked for by an operator


def test_a_rollout_that_asks_is_refused_where_the_server_takes_none(tmp_path: Path) -> None:
    with a_fleet(tmp_path) as fleet:
        with pytest.raises(ConflictError, match="disagreements_per_device = 0") as error:
            steering.create(fleet, ADA, model="m", version="1", channel="stable", plan=ASKING)
        assert error.value.code == "disagreements_off"


@pytest.mark.parametrize(
    "changed",
    [{"disagreements": -1}, {"disagreements": MAX_DISAGREEMENTS + 1}, {"mode": "ab", "stages": (50.0,)}],
)
def test_a_plan_asks_for_a_sensible_number_and_in_the_shadow_alone(changed: dict[str, Any]) -> None:
    with pytest.raises(InvalidError, match="disagreements"):
        Plan(**{"disagreements": 1, **changed})


def test_devices_are_asked_in_the_shadow_alone_and_only_where_the_server_takes_some(fleet: Fleet) -> None:
    add_rollout(fleet, ASKING, shadow_bound=1000, live_bound=10)
    with fleet.database.reading() as connection:
        on = policies.rules_of(connection, disagreements=True)["stable"]
        off = policies.rules_of(connection, disagreements=False)["stable"]
    assert [(each.mode, each.disagreements) for each in on] == [("live", 0), ("shadow", 5)]
    assert [(each.mode, each.disagreements) for each in off] == [("live", 0), ("shadow", 0)]


@pytest.mark.parametrize("setting", ["disagreements_per_device = -1", "disagreement_bytes = 1", "disagreements_mb = 0",
                                     "disagreement_days = 0", "disagreements_per_device = true"])  # fmt: skip
def test_settings_that_make_no_sense_are_refused(setting: str, tmp_path: Path) -> None:
    (tmp_path / "fleet.toml").write_text(setting)
    with pytest.raises(InvalidError, match=setting.partition(" ")[0]):
        Settings.read(tmp_path)


# Read and deleted


def test_forgetting_a_device_deletes_its_inputs(fleet: Fleet, kiln: Device) -> None:
    add_rollout(fleet, ASKING)
    keeping.take(fleet, kiln, a_body("kiln"))
    forget(fleet, ADA, "kiln")
    assert count(fleet, disagreements) == 0


def test_what_a_device_still_sends_after_its_inputs_were_deleted_is_not_kept(
    fleet: Fleet, kiln: Device
) -> None:
    add_rollout(fleet, ASKING)
    other, _ = enrolled(fleet, "oven")
    keeping.take(fleet, kiln, a_body("kiln", 1))
    keeping.take(fleet, other, a_body("oven", 9))
    later(fleet)
    assert reading.erase_device(fleet, OPERATOR, "kiln") == 1
    for key in (1, 2):
        taken = keeping.take(fleet, kiln, a_body("kiln", key))
        assert (len(taken.have), taken.kept) == (1, False)
    assert keys(fleet) == [9]
    (row,) = log(fleet, "disagreements.erased")
    assert (row["subject"], row["detail"], row["actor"]) == ("kiln", {"count": 1}, "olga")
    # One that begins later asks anew.
    later(fleet)
    add_rollout(fleet, ASKING, name="r2")
    assert keeping.take(fleet, kiln, a_body("kiln", 3)).kept


@pytest.mark.parametrize("state", ["running", "completed"])
def test_a_rollout_whose_inputs_were_deleted_asks_for_no_more(state: str, fleet: Fleet, kiln: Device) -> None:
    rollout = add_rollout(fleet, ASKING, state=state)
    keeping.take(fleet, kiln, a_body("kiln", 1))
    assert steering.erase_disagreements(fleet, OPERATOR, rollout.id) == 1
    assert not keeping.take(fleet, kiln, a_body("kiln", 2)).kept
    assert count(fleet, disagreements) == 0
    with fleet.database.reading() as connection:
        found, revision = steering.read(connection, rollout.id)
    assert (found.plan.disagreements, found.state, revision) == (0, state, 1)
    assert steering.erase_disagreements(fleet, OPERATOR, rollout.id) == 0
    assert len(log(fleet, "disagreements.erased")) == 2
    with pytest.raises(NotFoundError):
        steering.erase_disagreements(fleet, OPERATOR, "none")


def test_who_may_not_operate_reads_and_deletes_nothing(fleet: Fleet, kiln: Device) -> None:
    add_rollout(fleet, ASKING)
    keeping.take(fleet, kiln, a_body("kiln"))
    (row,) = rows(fleet.database, disagreements)
    for ask in (
        lambda: reading.payload(fleet, VIEWER, row["id"]),
        lambda: reading.erase_device(fleet, VIEWER, "kiln"),
        lambda: steering.erase_disagreements(fleet, VIEWER, "r1"),
    ):
        with pytest.raises(DeniedError):
            ask()
    assert count(fleet, disagreements) == 1
    assert log(fleet, "disagreement.read") == []


# Over HTTP


def asks(fleet: Fleet, client: TestClient, role: str) -> httpx.Headers:
    return httpx.Headers({"Authorization": f"Bearer {make_token(fleet, ADA, name=role, role=role)}"})


def test_an_operator_reads_what_a_device_sent_and_the_log_tells(fleet: Fleet) -> None:
    rollout = add_rollout(fleet, ASKING, name="a1")
    _, token = enrolled(fleet, "kiln")
    with TestClient(create_app(fleet), raise_server_exceptions=False) as client:
        head = {
            "Authorization": f"Bearer {token}",
            "Content-Encoding": "gzip",
            "Content-Type": "application/json",
        }
        sent = client.post("/devices/kiln/disagreements", content=gzip.compress(a_body("kiln")), headers=head)
        assert (sent.status_code, sent.json()) == (200, {"have": [f"{1:032x}"], "labels": {}})
        elsewhere = client.post(
            "/devices/oven/disagreements", content=gzip.compress(a_body("oven")), headers=head
        )
        assert (elsewhere.status_code, elsewhere.json()["code"]) == (403, "other_device")
        viewer, publisher, operator = (
            asks(fleet, client, role) for role in ("viewer", "publisher", "operator")
        )
        path = f"/v1/rollouts/{rollout.id}/disagreements"
        (found,) = client.get(path, headers=viewer).json()["disagreements"]
        assert (found["device"], found["live_label"], found["candidate_label"]) == ("kiln", "cat", "dog")
        assert not {"sealed", "payload", "key_id"} & found.keys()
        assert client.get(path, params={"before": found["id"]}, headers=viewer).json() == {
            "disagreements": []
        }
        payload = f"/v1/disagreements/{found['id']}/payload"
        for refused_to in (viewer, publisher, httpx.Headers()):
            assert client.get(payload, headers=refused_to).status_code in {401, 403}
            assert client.delete("/v1/devices/kiln/disagreements", headers=refused_to).status_code in {
                401,
                403,
            }
            assert client.delete(path, headers=refused_to).status_code in {401, 403}
        assert log(fleet, "disagreement.read") == []
        answer = client.get(payload, headers=operator)
        assert (answer.status_code, answer.content) == (200, PAYLOAD)
        assert answer.headers["content-type"] == "application/octet-stream"
        assert answer.headers["content-disposition"].startswith("attachment")
        (row,) = log(fleet, "disagreement.read")
        assert (row["actor"], row["detail"]["device"]) == ("operator", "kiln")
        assert client.get("/v1/disagreements/999/payload", headers=operator).status_code == 404
        assert client.delete("/v1/devices/kiln/disagreements", headers=operator).status_code == 204
        assert client.delete("/v1/devices/nobody/disagreements", headers=operator).status_code == 404
        assert client.delete(path, headers=operator).status_code == 204
        assert client.get(payload, headers=operator).status_code == 404
        shown = client.get("/v1/devices/kiln", headers=viewer).json()
        assert shown["erased_s"] == int(fleet.now())


def test_a_body_that_is_too_large_or_of_no_device_is_not_read(tmp_path: Path) -> None:
    with a_fleet(tmp_path, **ON, packed_bytes=4096) as fleet:
        add_rollout(fleet, ASKING)
        _, token = enrolled(fleet, "kiln")
        with TestClient(create_app(fleet), raise_server_exceptions=False) as client:
            body = a_body("kiln", payload=sample_of(9000))
            for head, status in ((token, 413), ("edgd_guess", 401)):
                answer = client.post(
                    "/devices/kiln/disagreements", content=body, headers={"Authorization": f"Bearer {head}"}
                )
                assert answer.status_code == status
        assert count(fleet, disagreements) == 0


def test_the_command_line_lists_saves_and_erases(
    fleet: Fleet, kiln: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from typer.testing import CliRunner

    rollout = add_rollout(fleet, ASKING, name="a1")
    for key in range(2):
        keeping.take(fleet, kiln, a_body("kiln", key))
    with serving(fleet) as url:
        monkeypatch.setenv("EDGEKIT_SERVER", url)
        monkeypatch.setenv("EDGEKIT_TOKEN", make_token(fleet, ADA, name="olga", role="operator"))
        runner, folder = CliRunner(), tmp_path / "inputs"

        def ran(*arguments: str) -> str:
            found = runner.invoke(cli, list(arguments))
            assert found.exit_code == 0, found.output
            return found.output

        assert "cat → dog" in ran("rollout", "disagreements")
        listed = json.loads(ran("rollout", "disagreements", rollout.id, "--save", str(folder), "--json"))
        files = sorted(folder.iterdir())
        assert len(listed) == len(files) == 2
        for path in files:
            assert path.stat().st_mode & 0o777 == 0o600
            with np.load(path, allow_pickle=False) as arrays:
                assert bytes(arrays["input/x"]) == SECRET
        assert len(log(fleet, "disagreement.read")) == 2
        ran("fleet", "device", "erase-payloads", "kiln")
        assert count(fleet, disagreements) == 0
        ran("rollout", "erase-disagreements", rollout.id)
        with fleet.database.reading() as connection:
            document = connection.scalar(select(rollouts.c.document).where(rollouts.c.id == rollout.id))
            assert connection.scalar(select(devices.c.erased_s)) > 0
        assert document["plan"]["disagreements"] == 0
        failed = runner.invoke(
            cli, ["rollout", "create", "--model", "m", "--version", "9", "--disagreements", "101"]
        )
        assert failed.exit_code == 2


def test_the_comparison_shows_the_latest_and_operators_may_open_them(fleet: Fleet, kiln: Device) -> None:
    add_rollout(fleet, ASKING, name="a1")
    with TestClient(create_app(fleet), follow_redirects=False) as client:
        page = "/dashboard/rollouts/a1/comparison"
        _sign_in(fleet, client, "operator")
        assert "inputs that were sent" not in client.get(page).text
        keeping.take(fleet, kiln, a_body("kiln", labels=["<script>", ""]))
        (row,) = rows(fleet.database, disagreements)
        link = f"/dashboard/disagreements/{row['id']}/payload"
        shown = client.get(page).text
        assert "&lt;script&gt; → –" in shown
        assert "<script>" not in shown.replace("<script src=", "")
        assert link in shown
        answer = client.get(link)
        assert (answer.status_code, answer.content) == (200, PAYLOAD)
        assert [each["actor"] for each in log(fleet, "disagreement.read")] == ["operator"]
        for wrong in ("0", "x", "9" * 30):
            assert client.get(f"/dashboard/disagreements/{wrong}/payload").status_code == 404
        _sign_in(fleet, client, "viewer")
        assert link not in client.get(page).text
        assert client.get(link).status_code == 403
        client.cookies.clear()
        assert client.get(link).status_code == 303


def _sign_in(fleet: Fleet, client: TestClient, role: str) -> None:
    token = make_token(fleet, ADA, name=role, role=role)
    cookie = sessions.Keyring.of(fleet.settings.folder).cookie(sessions.token_id(token), fleet.now())
    client.cookies.clear()
    client.cookies.set(sessions.COOKIE, cookie)


# From end to end


def test_what_a_device_kept_arrives_over_real_http(fleet: Fleet, tmp_path: Path) -> None:
    add_rollout(fleet, ASKING)
    _, token = enrolled(fleet, "kiln")
    store = Store(tmp_path / "store")
    store.make()
    payloads.keep(Disk(), store.path, payloads.Allowance(RELEASE, 5))
    x, y = np.random.default_rng(1).normal(size=(1, 8)).astype(np.float32), np.zeros((1, 2), np.float32)
    seen = Sample({"x": x}, {"y": y}, {"y": y + 1}, ("größe", "cat"), (0.9, 0.6), 1_700_000_000)
    Keeper(store, (BASELINE, RELEASE), Shadow()).put([seen])
    with serving(fleet) as url:
        for sent in (1, 0):
            assert upload_payloads(store, HttpTransport(url, token=token), "kiln", lambda: None) == sent
    (row,) = rows(fleet.database, disagreements)
    assert (row["key"], row["live_label"], row["at_s"]) == (seen.key, "größe", 1_700_000_000)
    content = reading.payload(fleet, OPERATOR, row["id"]).content
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        assert np.array_equal(arrays["input/x"], x)
        assert np.array_equal(arrays["candidate/y"], y + 1)
        assert arrays["confidence"].tolist() == [0.9, 0.6]


def test_the_signed_policy_asks_until_the_inputs_are_deleted_or_the_server_takes_none(tmp_path: Path) -> None:
    world = make(tmp_path / "fleet")
    world.fleet = replace(world.fleet, settings=replace(world.fleet.settings, disagreements_per_device=3))
    world.release("1.0.0")
    first = steering.create(world.fleet, ADA, model="größe", version="1.0.0", channel="stable", plan=Plan())
    for _ in range(4):
        steering.said(world.fleet, ADA, first.id, "promote")
    world.release("2.0.0")
    found = steering.create(world.fleet, ADA, model="größe", version="2.0.0", channel="stable", plan=ASKING)

    def asked(number: int, fleet: Fleet = world.fleet) -> list[tuple[str, int]]:
        publication.publish(fleet)
        told = world.policy(tmp_path / f"device-{number}").rules
        return [(each.mode, each.disagreements) for each in told]

    assert asked(1) == [("shadow", 5), ("live", 0)]
    off = replace(world.fleet, settings=replace(world.fleet.settings, disagreements_per_device=0))
    assert asked(2, off) == [("shadow", 0), ("live", 0)]
    assert asked(3) == [("shadow", 5), ("live", 0)]
    steering.erase_disagreements(world.fleet, ADA, found.id)
    assert asked(4) == [("shadow", 0), ("live", 0)]
    world.fleet.close()
