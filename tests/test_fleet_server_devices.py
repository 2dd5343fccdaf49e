"""What devices post over real HTTP, and what they must not: the right code, and nothing stored."""

from __future__ import annotations

import gzip
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import select
from starlette.testclient import TestClient

from edgekit.fleet.context import Fleet
from edgekit.fleet.errors import TooMuchError
from edgekit.fleet.identity.access import READ, Device, make_token
from edgekit.fleet.identity.enrolment import forget, make_code, revoke
from edgekit.fleet.server.app import create_app
from edgekit.fleet.server.rates import Rates, TooOftenError
from edgekit.fleet.server.state import MOST_SENDERS, Senders
from edgekit.fleet.settings import Settings
from edgekit.fleet.storage.database import Database
from edgekit.fleet.storage.tables import devices, reports, windows
from edgekit_runtime.agent.transport import HttpTransport
from edgekit_runtime.agent.upload import upload
from edgekit_runtime.errors import NetworkError
from edgekit_runtime.events import Report
from edgekit_runtime.spool import Spool
from edgekit_runtime.state import State
from edgekit_runtime.store import Store
from support.served_fleet import (
    ADA,
    BASELINE,
    RELEASE,
    a_body,
    a_fleet,
    a_report,
    a_window,
    count,
    enrolled,
    serving,
)


@pytest.fixture
def fleet(tmp_path) -> Iterator[Fleet]:
    with a_fleet(tmp_path, body_s=0.5, packed_bytes=200_000, unpacked_bytes=1_000_000) as found:
        yield found


@pytest.fixture
def client(fleet) -> Iterator[TestClient]:
    with TestClient(create_app(fleet), raise_server_exceptions=False) as found:
        yield found


def post(client: Any, token: str, body: bytes, path: str = "/v1/reports", **headers: str) -> Any:
    packed = {
        "Content-Encoding": "gzip",
        "Content-Type": "application/json",
        "Authorization": f"Bearer {token}",
    }
    return client.post(path, content=gzip.compress(body), headers={**packed, **headers})


def nothing_stored(fleet: Fleet) -> bool:
    with fleet.database.reading() as connection:
        seen = connection.execute(select(devices.c.id).where(devices.c.seen_s > 0)).all()
    return not seen and count(fleet, windows) == 0 and count(fleet, reports) == 0


# Agents


def test_a_real_agent_enrols_and_uploads_over_http(fleet, tmp_path):
    code = make_code(fleet, ADA, labels={"region": "eu"}).code
    store = Store(tmp_path / "device")
    store.make()
    with store.locked():
        store.save(State(live=BASELINE, reports=(Report("refused", RELEASE, "too_slow", 5),)))
    spool = Spool(store.spool, max_bytes=8 << 20)
    for key in range(3):
        window = a_window(key)
        spool.put(window.key, window.to_json().encode(), value=1)
    heard: list[Any] = []
    with serving(fleet) as url:
        token = httpx.post(f"{url}/v1/enrol", json={"code": code, "device": "kitchen-1"}).json()["token"]
        transport = HttpTransport(url, token=token)
        sent = upload(store, spool, transport, "kitchen-1", {"runtime": "0.3.0"}, heard.append)
        assert (sent.windows, sent.reports) == (3, 1)
        assert (list(spool), store.state().reports) == ([], ())
        assert heard[-1] == {"region": "eu"}
        with pytest.raises(NetworkError):
            upload(store, spool, HttpTransport(url, token="edgd_guess"), "kitchen-1", {})
    assert (count(fleet, windows), count(fleet, reports)) == (3, 1)


def test_both_addresses_take_a_post(client, fleet):
    _, token = enrolled(fleet, "kitchen-1")
    for number, path in enumerate(("/v1/reports", "/devices/kitchen-1")):
        found = post(client, token, a_body("kitchen-1", a_window(number)), path)
        assert (found.status_code, found.json()) == (200, {"have": [f"{number:032x}"], "labels": {}})
    plain = client.post(
        "/v1/reports", content=a_body("kitchen-1", a_window(1)), headers={"Authorization": f"Bearer {token}"}
    )
    assert plain.status_code == 200
    assert count(fleet, windows) == 2


# Tokens


def test_without_a_token_that_is_valid_nothing_is_taken(client, fleet):
    _, token = enrolled(fleet, "kitchen-1")
    admin = make_token(fleet, ADA, name="x", role="admin")
    body = a_body("kitchen-1", a_window(1))
    for wrong in (
        f"Bearer {token}x",
        f"Bearer {admin}",
        "Bearer ",
        token,
        f"Basic {token}",
        "Bearer edgd_\xff",
    ):
        found = post(client, "", body, Authorization=wrong.encode("latin-1"))
        assert found.status_code == 401, wrong
        assert found.headers["www-authenticate"] == "Bearer"
        assert found.json()["code"] == "unauthorized"
    assert client.post("/v1/reports", content=body).status_code == 401
    assert nothing_stored(fleet)


def test_a_token_that_is_used_for_another_device_is_refused(client, fleet):
    _, token = enrolled(fleet, "kitchen-1")
    enrolled(fleet, "kitchen-2")
    for path, name in (
        ("/devices/kitchen-2", "kitchen-2"),
        ("/v1/reports", "kitchen-2"),
        ("/devices/kitchen-2", "kitchen-1"),
    ):
        found = post(client, token, a_body(name, a_window(1)), path)
        assert (found.status_code, found.json()["code"]) == (403, "other_device")
    assert nothing_stored(fleet)


def test_a_revoked_token_is_refused_at_once(client, fleet):
    _, token = enrolled(fleet, "kitchen-1")
    revoke(fleet, ADA, "kitchen-1")
    assert post(client, token, a_body("kitchen-1", a_window(1))).status_code == 401
    assert nothing_stored(fleet)


def test_a_token_that_was_good_a_moment_ago_is_looked_at_again(client, fleet):
    device, token = enrolled(fleet, "kitchen-1")
    assert post(client, token, a_body("kitchen-1", a_window(1))).status_code == 200
    revoke(fleet, ADA, "kitchen-1")
    for key in (2, 3):
        found = post(client, token, a_body("kitchen-1", a_window(key)))
        assert (found.status_code, found.json()["code"]) == (401, "unauthorized")
    assert count(fleet, windows) == 1
    # Enrolled anew, it has another token.
    forget(fleet, ADA, device.id)
    _, new = enrolled(fleet, "kitchen-1")
    assert post(client, token, a_body("kitchen-1", a_window(4))).status_code == 401
    assert post(client, new, a_body("kitchen-1", a_window(5))).status_code == 200
    assert count(fleet, windows) == 1


def test_a_server_remembers_so_many_senders_and_no_more():
    senders = Senders()
    for number in range(MOST_SENDERS + 1):
        senders.add(Device(str(number), "stable", {}, f"{number:064}"))
    assert senders.get(f"{0:064}") is None
    last = senders.get(f"{MOST_SENDERS:064}")
    assert last is not None
    senders.drop(last)
    assert senders.get(last.token_hash) is None


def test_a_post_that_is_replayed_is_counted_once(client, fleet):
    _, token = enrolled(fleet, "kitchen-1")
    body = a_body("kitchen-1", a_window(1), reports=(a_report(2, "refused", "slow"),))
    answers = [post(client, token, body).json() for _ in range(3)]
    assert answers[0] == answers[1] == answers[2]
    assert (count(fleet, windows), count(fleet, reports)) == (1, 1)


def test_a_code_enrols_once_over_http(client, fleet):
    code = make_code(fleet, ADA, labels={}).code
    assert client.post("/v1/enrol", json={"code": code, "device": "kitchen-1"}).status_code == 200
    assert client.post("/v1/enrol", json={"code": code, "device": "kitchen-2"}).status_code == 403
    again = make_code(fleet, ADA, labels={}).code
    assert client.post("/v1/enrol", json={"code": again, "device": "kitchen-1"}).status_code == 409
    for wrong in (
        {"code": again},
        {"code": again, "device": "../x"},
        {"code": again, "device": "a", "admin": True},
        {"code": 5, "device": "a"},
        [],
        None,
    ):
        found = client.post("/v1/enrol", json=wrong)
        assert (found.status_code, set(found.json())) == (422, {"code", "what", "expected", "way_out"})
    assert count(fleet, devices) == 1


def test_roles_are_asked_for_where_a_route_needs_one(fleet):
    from typing import Annotated

    from fastapi import Depends

    from edgekit.fleet.identity.access import PUBLISH, Actor
    from edgekit.fleet.server.auth import needs

    app = create_app(fleet)

    def whoami(actor: Any) -> dict[str, str]:
        return {"name": actor.name}

    for permission in (READ, PUBLISH):
        whoami.__annotations__["actor"] = Annotated[Actor, Depends(needs(permission))]
        app.add_api_route(f"/test/{permission}", whoami)
    viewer = make_token(fleet, ADA, name="vic", role="viewer")
    _, device = enrolled(fleet, "kitchen-1")
    with TestClient(app) as client:
        asked = {"Authorization": f"Bearer {viewer}"}
        assert client.get("/test/read", headers=asked).json() == {"name": "vic"}
        assert (
            client.get("/test/publish", headers=asked).status_code,
            client.get("/test/read").status_code,
        ) == (403, 401)
        assert client.get("/test/read", headers={"Authorization": f"Bearer {device}"}).status_code == 401


# Bodies


@pytest.mark.parametrize(("body", "encoding", "status", "code"), [
    (b"x" * 300_000, "gzip", 413, "too_large"),
    (gzip.compress(b"0" * 150_000_000, 9, mtime=0), "gzip", 413, "too_large"),
    (gzip.compress(b"{}", mtime=0)[:-4], "gzip", 422, "encoding"),
    (gzip.compress(b"{}", mtime=0) + b"more", "gzip", 422, "encoding"),
    (b"not packed", "gzip", 422, "encoding"),
    (b"{}", "br", 415, "encoding"),
    (b"{}", "gzip, gzip", 415, "encoding"),
    (b"", "", 422, "contract"),
    (b"{", "", 422, "contract"),
    (b"[" * 100_000, "", 422, "contract"),
    (b"\x00\xff", "identity", 422, "contract"),
])  # fmt: skip
def test_a_body_that_is_too_large_or_broken_is_refused(client, fleet, body, encoding, status, code):
    _, token = enrolled(fleet, "kitchen-1")
    headers = {"Authorization": f"Bearer {token}", "Content-Encoding": encoding}
    found = client.post("/v1/reports", content=body, headers=headers)
    assert (found.status_code, found.json()["code"]) == (status, code)
    assert nothing_stored(fleet)


def test_a_body_without_an_end_is_cut_off_where_it_is_too_large(fleet):
    _, token = enrolled(fleet, "kitchen-1")

    def endless() -> Iterator[bytes]:
        while True:
            yield b"x" * 65536

    with serving(fleet) as url:
        try:
            found = httpx.post(
                f"{url}/v1/reports", content=endless(), headers={"Authorization": f"Bearer {token}"}
            )
            assert (found.status_code, found.headers["connection"]) == (413, "close")
        except httpx.TransportError:
            # The server hung up while the client still wrote, which ends it as well.
            pass
    assert nothing_stored(fleet)


@pytest.mark.parametrize("path", ["/v1/reports", "/v1/enrol"])
def test_a_body_that_drips_is_given_up(fleet, path):
    _, token = enrolled(fleet, "kitchen-1")
    with serving(fleet) as url:
        host, _, port = url.removeprefix("http://").partition(":")
        with socket.create_connection((host, int(port)), timeout=20) as line:
            began_s = time.monotonic()
            line.sendall(
                f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n"
                "Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n{".encode()
            )
            answer = b""
            while part := line.recv(65536):
                answer += part
        assert answer.split()[1] == b"408"
        assert time.monotonic() - began_s < 10
    assert nothing_stored(fleet)


def test_a_connection_that_ends_within_a_body_stores_nothing(fleet):
    _, token = enrolled(fleet, "kitchen-1")
    body = gzip.compress(a_body("kitchen-1", a_window(1)))
    with serving(fleet) as url:
        host, _, port = url.removeprefix("http://").partition(":")
        with socket.create_connection((host, int(port))) as line:
            head = f"POST /v1/reports HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n"
            line.sendall(
                f"{head}Content-Encoding: gzip\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body[:-10]
            )
        assert httpx.get(f"{url}/healthz").status_code == 200
    assert nothing_stored(fleet)


@pytest.mark.parametrize(
    "name",
    ["../kitchen-1", "%2e%2e%2fkitchen-1", "kitchen-1%2f..%2fkitchen-1", "<script>", "a%00b", "%ff", ""],
)
def test_an_address_that_is_no_devices_is_refused(client, fleet, name):
    _, token = enrolled(fleet, "kitchen-1")
    found = post(client, token, a_body("kitchen-1", a_window(1)), f"/devices/{name}")
    assert found.status_code in {403, 404, 405, 422}
    assert nothing_stored(fleet)


def test_script_in_labels_and_status_stays_text(client, fleet):
    script = "<script>alert(1)</script>"
    _, token = enrolled(fleet, "kitchen-1", site=script)
    found = post(client, token, a_body("kitchen-1", note=script))
    assert found.headers["content-type"] == "application/json"
    assert found.json()["labels"] == {"site": script}
    refused = post(client, token, a_body("kitchen-1", phase=script))
    assert (refused.status_code, refused.headers["content-type"]) == (422, "application/json")


def test_what_is_asked_too_often_is_told_when_to_come_again(tmp_path):
    with a_fleet(tmp_path, device_burst=2, device_posts_per_s=0.1) as fleet:
        _, token = enrolled(fleet, "kitchen-1")
        with TestClient(create_app(fleet)) as client:
            answers = [post(client, token, a_body("kitchen-1", a_window(number))) for number in range(3)]
        assert [each.status_code for each in answers] == [200, 200, 429]
        assert 1 <= int(answers[2].headers["retry-after"]) <= 10
        assert count(fleet, windows) == 2


def test_a_bucket_refills_with_time():
    now = [0.0]
    rates = Rates(2.0, 3, lambda: now[0])
    for _ in range(3):
        rates.spend("a")
    with pytest.raises(TooOftenError) as caught:
        rates.spend("a")
    assert (caught.value.wait_s, isinstance(caught.value, TooMuchError)) == (0.5, True)
    rates.spend("b")
    now[0] = 0.5
    rates.spend("a")
    now[0] = 1000.0
    for _ in range(3):
        rates.spend("a")
    with pytest.raises(TooOftenError):
        rates.spend("a")


def test_a_database_that_is_away_is_503_and_loses_nothing(fleet):
    _, token = enrolled(fleet, "kitchen-1")
    place = fleet.settings.folder / "fleet.db"
    with TestClient(create_app(fleet), raise_server_exceptions=False) as client:
        fleet.database.close()
        place.rename(place.with_suffix(".away"))
        found = post(client, token, a_body("kitchen-1", a_window(1)))
        assert (found.status_code, "retry-after" in found.headers) == (503, True)
        place.with_suffix(".away").rename(place)
        assert post(client, token, a_body("kitchen-1", a_window(1))).status_code == 200
    assert count(fleet, windows) == 1


def test_every_answer_of_a_device_route_is_documented(fleet):
    document = create_app(fleet).openapi()
    for path in ("/v1/reports", "/devices/{name}"):
        answers = document["paths"][path]["post"]["responses"]
        assert set(answers) == {"200", "400", "401", "403", "408", "413", "415", "422", "429", "503"}
    assert {"200", "206", "304", "404", "416"} <= set(document["paths"]["/blobs/{path}"]["get"]["responses"])


# Processes


@pytest.mark.slow
def test_processes_take_posts_are_killed_and_end_together(tmp_path):
    (tmp_path / "fleet.toml").write_text("merge_every_s = 0.1\n")
    settings = Settings.read(tmp_path)
    database = Database.open(settings.database_url, create=True)
    database.migrate()
    database.close()
    fleet = Fleet.open(tmp_path)
    _, token = enrolled(fleet, "kitchen-1")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    code = (
        "from pathlib import Path; from edgekit.fleet.server.serve import serve;"
        f"serve(Path({str(tmp_path)!r}), told=print, port={port}, processes=2)"
    )

    def start() -> subprocess.Popen[bytes]:
        process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
        for _ in range(600):
            try:
                if httpx.get(f"http://127.0.0.1:{port}/healthz").status_code == 200:
                    return process
            except httpx.TransportError:
                time.sleep(0.1)
        raise AssertionError("it does not answer")

    process = start()
    url = f"http://127.0.0.1:{port}"
    assert post(httpx, token, a_body("kitchen-1", a_window(1)), f"{url}/v1/reports").status_code == 200
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    # Those that it watched over end by themselves, and leave the address to the next one.
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and _listens(port):
        time.sleep(0.1)
    process = start()
    assert (
        post(httpx, token, a_body("kitchen-1", a_window(1), a_window(2)), f"{url}/v1/reports").status_code
        == 200
    )
    assert "edgekit_windows_total" in httpx.get(f"{url}/metrics").text
    process.terminate()
    assert process.wait(60) == 0
    assert count(fleet, windows) == 2
    fleet.close()


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


@pytest.mark.parametrize(
    "text",
    ["more = 1", "alive_s = true", 'alive_s = "x"', "alive_s = 1", "body_s = nan", "= 1", 'tls_key = "k"'],
)
def test_settings_that_are_none_are_refused(tmp_path, text):
    from edgekit.fleet.errors import InvalidError

    (tmp_path / "fleet.toml").write_text(text)
    with pytest.raises(InvalidError, match=r"fleet\.toml"):
        Settings.read(tmp_path)


def test_settings_are_read_with_what_is_not_said(tmp_path):
    (tmp_path / "fleet.toml").write_text("alive_s = 3600\nbody_s = 5\n")
    found = Settings.read(tmp_path)
    assert (found.alive_s, found.body_s) == (3600, 5.0)
    assert found.database_url == f"sqlite:///{Path(tmp_path).absolute()}/fleet.db"
    assert json.dumps(found.blobs_url)
