"""What people and programs ask of the server, over real HTTP, and what they are refused."""

from __future__ import annotations

import hashlib
import json
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from sqlalchemy import insert

from edgekit.fleet.client import Client
from edgekit.fleet.conduct import steering
from edgekit.fleet.errors import (
    ConflictError,
    DeniedError,
    FleetError,
    InvalidError,
    NotFoundError,
    TooMuchError,
)
from edgekit.fleet.rules.rollouts import Plan
from edgekit.fleet.storage.tables import devices, looks, minutes
from edgekit.fleet.windows.figures import packed
from edgekit_runtime.windows import Counts, Figures, Window
from support.fleet_api import client, serving
from support.fleets import ADMIN, REPORT, World, make
from support.releases import publish

MODEL = "größe"


class Running:
    """A server that answers, and who asks it."""

    def __init__(self, world: World, address: str) -> None:
        self.world, self.address = world, address
        self.of = {
            role: client(world, address, role) for role in ("viewer", "publisher", "operator", "admin")
        }


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    world = make(tmp_path_factory.mktemp("api") / "fleet")
    with serving(world) as address:
        found = Running(world, address)
        yield found
        for each in found.of.values():
            each.close()
    world.fleet.close()


@pytest.fixture(scope="module")
def releases(running: Running) -> tuple[str, str]:
    return running.world.release("1.0.0"), running.world.release("2.0.0")


@pytest.fixture
def rollout(running: Running, releases: tuple[str, str]) -> Iterator[str]:
    admin = running.of["admin"]
    found = admin.post(
        "rollouts", {"model": MODEL, "version": "2.0.0", "stages": [1, 100], "cohort": 'site != "x"'}
    )
    yield found["id"]
    if admin.get(f"rollouts/{found['id']}")["state"] in {"running", "paused", "held"}:
        admin.post(f"rollouts/{found['id']}/abort", {})


def test_a_version_goes_from_upload_to_signed(running: Running, tmp_path: Path) -> None:
    asks = running.of["publisher"]
    published = publish("0.1.0", b"weights of 0.1.0")
    files = {}
    for name, content in published.content.items():
        path = tmp_path / name
        path.write_bytes(content)
        files[hashlib.sha256(content).hexdigest()] = path
    told: list[tuple[int, int]] = []
    assert asks.upload(files, lambda done, total: told.append((done, total))) == sum(
        map(len, published.content.values())
    )
    assert told[-1][0] == told[-1][1]
    assert asks.upload(files) == 0
    body = {"release": published.release.to_json(), "report": REPORT, "parent": "", "notes": "first\nof all"}
    found = asks.post("versions", body)
    assert (found["state"], found["notes"]) == ("pending", "first\nof all")
    assert asks.post("versions", body) == found
    waiting = asks.get("targets/pending")
    assert any("0.1.0" in line for line in waiting["lines"])
    assert waiting["missing"][0]["count"] == 1
    assert not asks.post("targets", {"document": waiting["document"]})["published"]
    assert running.world.sign().published
    assert asks.get("targets/pending") is None
    assert asks.get(f"versions/{found['id']}")["state"] == "signed"
    assert asks.get("versions", model=MODEL, version="0.1.0")["versions"][0]["id"] == found["id"]
    assert asks.get(f"versions/{found['id']}/report") == REPORT


def test_figures_of_versions_are_compared(running: Running, releases: tuple[str, str]) -> None:
    found = running.of["viewer"].get(f"versions/{releases[1]}/against/{releases[0]}")["figures"]
    assert {"format": "tflite", "figure": "metric", "before": 0.9, "after": 0.9} in found


def test_a_rollout_is_steered(running: Running, rollout: str) -> None:
    asks = running.of["operator"]
    assert asks.get(f"rollouts/{rollout}")["state"] == "running"
    with pytest.raises(ConflictError, match="is open"):
        asks.post("rollouts", {"model": MODEL, "version": "2.0.0"})
    assert asks.post(f"rollouts/{rollout}/pause", {"why": "lunch"})["state"] == "paused"
    assert asks.post(f"rollouts/{rollout}/resume", {})["state"] == "running"
    assert asks.post(f"rollouts/{rollout}/promote", {})["stage"] == 1
    kinds = [each["kind"] for each in asks.get(f"rollouts/{rollout}/decisions")["decisions"]]
    assert kinds == ["promoted", "resumed", "paused", "opened"]
    assert rollout in [each["id"] for each in asks.get("rollouts", open="true")["rollouts"]]
    assert asks.post(f"rollouts/{rollout}/abort", {"why": "no"})["state"] == "aborted"
    with pytest.raises(ConflictError):
        asks.post(f"rollouts/{rollout}/abort", {})


def test_devices_see_what_was_decided_at_once(
    running: Running, rollout: str, releases: tuple[str, str], tmp_path: Path
) -> None:
    policy = running.world.policy(tmp_path / "device")
    assert policy.rules[0].release == releases[1]
    running.of["admin"].post(f"rollouts/{rollout}/abort", {})
    assert running.world.policy(tmp_path / "device").rules == ()


def test_looks_and_their_verdicts_are_shown(running: Running, rollout: str) -> None:
    verdict = {
        "gate": "agreement", "outcome": "hold", "why": "few", "limit": 0.95, "estimate": None, "lower": None,
        "upper": None, "devices": 0, "meant": 3, "slice": "",
    }  # fmt: skip
    with running.world.fleet.database.writing() as connection:
        connection.execute(
            insert(looks).values(
                rollout=rollout,
                at_s=5,
                stage=0,
                phase="live",
                bound=10,
                verdicts=[verdict],
                counts={"meant": 3},
            )
        )
    asks = running.of["viewer"]
    assert asks.get(f"rollouts/{rollout}")["look"]["verdicts"] == [verdict]
    assert asks.get(f"rollouts/{rollout}/looks")["looks"][0]["counts"] == {"meant": 3}


def test_the_comparison_of_a_rollout_over_time(
    running: Running, rollout: str, releases: tuple[str, str]
) -> None:
    with running.world.fleet.database.writing() as connection:
        for minute, agreed, part in ((100, 9, ""), (101, 8, ""), (101, 8, "site=lab"), (0, 17, "*")):
            window = Window(
                "ab" * 8, *releases, "classification", 1, 60.0, Figures(counts=Counts(compared=10, agreed=agreed))
            ) if part != "*" else Window("ab" * 8, *releases, "classification", 1, 60.0, Figures())  # fmt: skip
            connection.execute(
                insert(minutes).values(
                    rollout=rollout, stage=0, slice=part, live=releases[0], candidate=releases[1], minute=minute,
                    windows=1, figures=packed(window),
                )
            )  # fmt: skip
    asks = running.of["viewer"]
    found = asks.get(f"rollouts/{rollout}/comparison", step=1)
    assert (found["total"]["compared"], found["total"]["agreement"]) == (20, 0.85)
    assert [each["agreement"] for each in found["series"]] == [0.9, 0.8]
    assert found["slices"] == ["site=lab"]
    assert asks.get(f"rollouts/{rollout}/comparison", slice="site=lab")["total"]["compared"] == 10
    assert asks.get(f"rollouts/{rollout}/comparison", stage=3)["total"]["agreement"] is None


def test_a_channel_is_settled_and_shown(running: Running, rollout: str, releases: tuple[str, str]) -> None:
    asks = running.of["operator"]
    with pytest.raises(ConflictError):
        asks.post("channels/stable/settle", {"release": releases[0]})
    asks.post(f"rollouts/{rollout}/abort", {})
    asks.post("channels/stable/settle", {"release": releases[0], "why": "back"})
    found = [each for each in asks.get("channels")["channels"] if each["name"] == "stable"]
    assert found[0]["settled"] == [{"cohort": "", "release": releases[0], "version": "1.0.0"}]
    with pytest.raises(NotFoundError):
        asks.post("channels/nobody/settle", {"release": releases[0]})
    with pytest.raises(ConflictError, match="settled on it"):
        running.of["publisher"].post(f"versions/{releases[0]}/retire", {})


def test_devices_come_change_and_leave(running: Running) -> None:
    asks = running.of["operator"]
    code = asks.post("codes", {"labels": {"site": "lab"}, "count": 2})["codes"][0]["code"]
    answer = httpx.post(f"{running.address}/v1/enrol", json={"code": code, "device": "kiln-7"})
    assert answer.status_code == 200, answer.text
    assert asks.get("devices", search="kiln")["devices"][0]["labels"] == {"site": "lab"}
    assert asks.get("devices", cohort='site == "x"')["devices"] == []
    assert asks.put("devices/kiln-7/labels", {"labels": {"site": "roof"}})["labels"] == {"site": "roof"}
    assert asks.put("devices/kiln-7/channel", {"channel": "beta"})["channel"] == "beta"
    assert asks.post("devices/kiln-7/revoke")["revoked"]
    assert "token_hash" not in asks.post("devices/kiln-7/allow")
    asks.delete("devices/kiln-7")
    with pytest.raises(NotFoundError):
        asks.get("devices/kiln-7")
    with pytest.raises(InvalidError):
        asks.get("devices", cohort="site ==")


def test_tokens_are_made_listed_and_taken_back(running: Running) -> None:
    asks = running.of["admin"]
    token = asks.post("tokens", {"name": "ci", "role": "viewer"})["token"]
    made = next(each for each in asks.get("tokens")["tokens"] if each["name"] == "ci")
    assert token not in json.dumps(made)
    head = {"Authorization": f"Bearer {token}"}
    assert httpx.get(f"{running.address}/v1/channels", headers=head).status_code == 200
    asks.delete(f"tokens/{made['id']}")
    assert httpx.get(f"{running.address}/v1/channels", headers=head).status_code == 401


def test_the_audit_log_is_shown_and_verified(running: Running, rollout: str) -> None:
    asks = running.of["viewer"]
    rows = asks.get("audit", limit=2)["rows"]
    assert rows[0]["sequence"] == rows[1]["sequence"] + 1
    assert asks.get("audit", before=rows[1]["sequence"], limit=1)["rows"][0]["hash"] == rows[1]["previous"]
    found = asks.get("audit/verify")
    assert (found["whole"], found["sequence"]) == (True, rows[0]["sequence"])
    assert not asks.get("audit/verify", sequence=1, hash="0" * 64)["whole"]


def test_webhooks_are_added_shown_and_removed(running: Running) -> None:
    asks = running.of["admin"]
    made = asks.post("webhooks", {"url": "https://chat.example/hook", "events": ["failed"]})
    shown = asks.get("webhooks")["webhooks"]
    assert made["secret"] not in json.dumps(shown)
    assert shown[0]["events"] == ["failed"]
    asks.delete(f"webhooks/{made['id']}")
    assert asks.get("webhooks")["webhooks"] == []
    for bad in ({"url": "ftp://x/y"}, {"url": "https://a:b@x/"}, {"url": "https://x/", "events": ["lunch"]}):
        with pytest.raises(InvalidError):
            asks.post("webhooks", bad)


def test_events_come_as_they_happen(running: Running, rollout: str) -> None:
    asks = running.of["viewer"]
    stream = asks.events()
    import threading

    threading.Timer(0.5, lambda: steering.said(running.world.fleet, ADMIN, rollout, "pause")).start()
    kind, event = next(stream)
    assert (kind, event["kind"], event["rollout"]) == ("decision", "paused", rollout)
    stream.close()


@pytest.mark.parametrize(
    ("role", "method", "path", "body"),
    [
        ("viewer", "POST", "rollouts", {"model": "m", "version": "1"}),
        ("viewer", "POST", "versions", {"release": "{}"}),
        ("viewer", "PUT", "uploads/" + "0" * 64, None),
        ("viewer", "POST", "missing", {"sha256": []}),
        ("viewer", "GET", "tokens", None),
        ("viewer", "POST", "codes", {}),
        ("publisher", "POST", "rollouts/ab/abort", {}),
        ("publisher", "POST", "channels/stable/settle", {"release": "0" * 64}),
        ("publisher", "DELETE", "devices/x", None),
        ("operator", "POST", "versions", {"release": "{}"}),
        ("operator", "POST", "targets", {"document": "{}"}),
        ("operator", "POST", "tokens", {"name": "x", "role": "admin"}),
        ("operator", "POST", "webhooks", {"url": "https://x/"}),
        ("operator", "DELETE", "tokens/ab", None),
    ],
)
def test_roles_may_what_they_may_and_no_more(
    running: Running, role: str, method: str, path: str, body: dict | None
) -> None:
    asks: Client = running.of[role]
    calls = {
        "GET": lambda: asks.get(path), "DELETE": lambda: asks.delete(path),
        "PUT": lambda: asks.put(path, {}), "POST": lambda: asks.post(path, body),
    }  # fmt: skip
    with pytest.raises(DeniedError) as caught:
        calls[method]()
    assert caught.value.status == 403


def test_every_route_of_people_wants_a_token(running: Running) -> None:
    document = httpx.get(f"{running.address}/openapi.json").json()
    asked = 0
    for path, methods in document["paths"].items():
        if not path.startswith("/v1/") or path in {"/v1/enrol"}:
            continue
        for method in methods:
            url = running.address + path.replace("{", "").replace("}", "")
            answer = httpx.request(method.upper(), url)
            assert answer.status_code in {401, 422}, (method, path, answer.status_code)
            if answer.status_code == 401:
                asked += 1
    assert asked > 10


@pytest.mark.parametrize(
    ("path", "body", "kind"),
    [
        ("versions", {"release": "{}"}, InvalidError),
        ("versions", {"release": 1}, InvalidError),
        ("versions", {"release": "{}", "more": 1}, InvalidError),
        ("rollouts", {"model": MODEL, "version": "9.9.9"}, NotFoundError),
        ("rollouts", {"model": MODEL, "version": "2.0.0", "stages": [50, 10]}, InvalidError),
        ("rollouts", {"model": MODEL, "version": "2.0.0", "cohort": "import os"}, InvalidError),
        ("rollouts", {"model": MODEL, "version": "2.0.0", "channel": "../x"}, InvalidError),
        ("rollouts", {"model": "a\x00b", "version": "2.0.0"}, InvalidError),
        ("rollouts", {"model": MODEL, "version": "2.0.0", "limits": {"alpha": 0.9}}, InvalidError),
        ("rollouts/ffff/pause", {}, NotFoundError),
        ("targets", {"document": "{}"}, InvalidError),
        ("codes", {"labels": {"BAD NAME": "x"}}, InvalidError),
        ("tokens", {"name": "<script>", "role": "viewer"}, InvalidError),
        ("tokens", {"name": "x", "role": "god"}, InvalidError),
    ],
)
def test_wrong_input_is_refused_with_its_reason(
    running: Running, releases: tuple[str, str], path: str, body: dict, kind: type[FleetError]
) -> None:
    with pytest.raises(kind) as caught:
        running.of["admin"].post(path, body)
    assert caught.value.expected


def test_a_file_under_another_hash_is_refused_and_not_kept(running: Running) -> None:
    token = running.of["publisher"].at.token
    head = {"Authorization": f"Bearer {token}"}
    url = f"{running.address}/v1/uploads/{'0' * 64}"
    answer = httpx.put(url, headers=head, content=b"other bytes")
    assert (answer.status_code, answer.json()["code"]) == (422, "hash_mismatch")
    assert running.of["publisher"].post("missing", {"sha256": ["0" * 64]})["missing"] == ["0" * 64]
    assert httpx.put(f"{running.address}/v1/uploads/..%2f..%2fx", headers=head, content=b"").status_code in {
        404,
        422,
    }


def test_an_upload_that_is_cut_off_keeps_nothing(running: Running) -> None:
    token = running.of["publisher"].at.token
    sha256 = hashlib.sha256(b"x" * 1000).hexdigest()
    host, _, port = running.address.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port))) as line:
        line.sendall(
            f"PUT /v1/uploads/{sha256} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n"
            f"Content-Length: 1000\r\n\r\n".encode()
            + b"x" * 500
        )
    assert running.of["publisher"].post("missing", {"sha256": [sha256]})["missing"] == [sha256]


def test_bodies_that_are_too_large_are_refused(running: Running) -> None:
    with pytest.raises(TooMuchError):
        running.of["publisher"].post("versions", {"release": "x" * (5 << 20)})


def test_labels_with_script_are_data(running: Running) -> None:
    with running.world.fleet.database.writing() as connection:
        connection.execute(
            insert(devices).values(
                id="odd", token_hash="x", labels={"site": "<script>alert(1)</script>"}, channel="stable", enrolled_s=1,
                status={},
            )
        )  # fmt: skip
    answer = httpx.get(
        f"{running.address}/v1/devices/odd",
        headers={"Authorization": f"Bearer {running.of['viewer'].at.token}"},
    )
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()["labels"]["site"] == "<script>alert(1)</script>"
    running.of["admin"].delete("devices/odd")


def test_plans_of_the_api_are_those_of_rollouts() -> None:
    from edgekit.fleet.server.api_models import RolloutAsked

    assert RolloutAsked(model="m", version="1").plan() == Plan()
