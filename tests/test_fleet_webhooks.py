"""Webhooks: signed, tried again, given up; and that nobody makes the server ask inside its own network."""

from __future__ import annotations

import hashlib
import hmac
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpcore
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import insert

from edgekit.fleet.conduct import webhooks
from edgekit.fleet.errors import DeniedError, InvalidError, NotFoundError
from edgekit.fleet.storage.tables import deliveries
from support.fleets import ADMIN, VIEWER, World, make, rows
from support.postgres import postgres


class Receiver:
    """Somebody who is told.

    Attributes:
        status: of its answers.
        got: (path, headers, body) of what came.
    """

    def __init__(self) -> None:
        self.status, self.got, receiver = 200, [], self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                receiver.got.append((self.path, dict(self.headers), body))
                self.send_response(receiver.status)
                self.send_header("Location", "/elsewhere")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/hook"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    found = Receiver()
    yield found
    found.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    if request.param == "sqlite":
        made = make(tmp_path / "fleet")
        yield made
        made.fleet.close()
        return
    with postgres().database() as url:
        made = make(tmp_path / "fleet", database_url=url)
        yield made
        made.fleet.close()


def tell(world: World, webhook: str, body: str = '{"event": "failed"}') -> None:
    with world.fleet.database.writing() as connection:
        connection.execute(
            insert(deliveries).values(webhook=webhook, event="failed", body=body, next_s=int(world.clock()))
        )


def test_what_is_sent_is_signed(world: World, receiver: Receiver) -> None:
    made = webhooks.add(world.fleet, ADMIN, url=receiver.url, events=["failed"])
    tell(world, made.id, '{"event": "failed", "why": "größer"}')
    with webhooks.client(allow_private=True) as sender:
        assert webhooks.send_due(world.fleet, sender) == 1
        assert webhooks.send_due(world.fleet, sender) == 0
    ((path, headers, body),) = receiver.got
    at, _, given_signature = headers["Edgekit-Signature"].partition(",")
    wanted = hmac.new(made.secret.encode(), f"{at[2:]}.{body}".encode(), hashlib.sha256).hexdigest()
    assert (path, given_signature) == ("/hook", f"v1={wanted}")
    assert int(at[2:]) == int(world.clock())
    assert "größer" in body
    with world.fleet.database.reading() as connection:
        found = webhooks.listed(connection)
    assert (found[0].waiting, found[0].failed) == (0, 0)


def test_it_is_tried_again_later_and_later_and_given_up(world: World, receiver: Receiver) -> None:
    made = webhooks.add(world.fleet, ADMIN, url=receiver.url)
    tell(world, made.id)
    receiver.status = 500
    with webhooks.client(allow_private=True) as sender:
        for tried in range(1, webhooks.MAX_TRIES + 1):
            assert webhooks.send_due(world.fleet, sender) == 1
            assert webhooks.send_due(world.fleet, sender) == 0
            world.clock.at += webhooks.wait_s(tried)
        assert webhooks.send_due(world.fleet, sender) == 0
    assert len({headers["Edgekit-Delivery"] for _, headers, _ in receiver.got}) == 1
    with world.fleet.database.reading() as connection:
        found = webhooks.listed(connection)[0]
    assert (found.waiting, found.failed, found.failure) == (0, 1, "status 500")


def test_a_redirect_is_not_followed(world: World, receiver: Receiver) -> None:
    made = webhooks.add(world.fleet, ADMIN, url=receiver.url)
    tell(world, made.id)
    receiver.status = 307
    with webhooks.client(allow_private=True) as sender:
        webhooks.send_due(world.fleet, sender)
    assert [path for path, _, _ in receiver.got] == ["/hook"]
    assert rows(world.fleet.database, deliveries)[0]["failure"] == "status 307"


def test_the_own_network_is_not_asked(world: World, receiver: Receiver) -> None:
    for url in (
        receiver.url,
        receiver.url.replace("127.0.0.1", "localhost"),
        receiver.url.replace("127.0.0.1", "[::1]"),
    ):
        tell(world, webhooks.add(world.fleet, ADMIN, url=url).id)
    with webhooks.client(allow_private=False) as sender:
        assert webhooks.send_due(world.fleet, sender) == 3
    assert receiver.got == []
    assert all(
        "no address of the internet" in each["failure"] for each in rows(world.fleet.database, deliveries)
    )


def test_what_is_removed_is_told_nothing_more(world: World, receiver: Receiver) -> None:
    made = webhooks.add(world.fleet, ADMIN, url=receiver.url)
    tell(world, made.id)
    webhooks.remove(world.fleet, ADMIN, made.id)
    with webhooks.client(allow_private=True) as sender:
        assert webhooks.send_due(world.fleet, sender) == 0
    with pytest.raises(NotFoundError):
        webhooks.remove(world.fleet, ADMIN, made.id)


def test_one_server_at_a_time_sends(
    tmp_path: Path, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks, "EVERY_S", 0.01)
    world = make(tmp_path / "fleet")
    made = webhooks.add(world.fleet, ADMIN, url=receiver.url)
    for _ in range(20):
        tell(world, made.id)
    fleet = replace(world.fleet, settings=replace(world.fleet.settings, webhooks_private=True))
    senders = [webhooks.repeated(fleet, f"server {n}") for n in range(2)]
    for each in senders:
        each.start()
    for _ in range(500):
        if len(receiver.got) >= 20:
            break
        threading.Event().wait(0.02)
    for each in senders:
        each.stop()
    assert len(receiver.got) == 20
    assert len({headers["Edgekit-Delivery"] for _, headers, _ in receiver.got}) == 20
    world.fleet.close()


@pytest.mark.parametrize(
    "url",
    [
        "",
        "ftp://x/",
        "https://",
        "https://user:pass@x/",
        "file:///etc/passwd",
        "https://x/" + "a" * 3000,
        "http://[::1",
    ],
)
def test_addresses_that_are_none_are_refused(tmp_path: Path, url: str) -> None:
    world = make(tmp_path / "fleet")
    with pytest.raises(InvalidError):
        webhooks.add(world.fleet, ADMIN, url=url)
    with pytest.raises(DeniedError):
        webhooks.add(world.fleet, VIEWER, url="https://x/")


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.0.0.1", "192.168.1.1", "172.16.0.9", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1",
        "::1", "::", "fe80::1%eth0", "fd00::1", "::ffff:127.0.0.1", "::ffff:169.254.169.254", "64:ff9b::a00:1",
        "2002:7f00:1::", "255.255.255.255",
    ],
)  # fmt: skip
def test_addresses_of_the_own_network_are_known(address: str) -> None:
    assert not webhooks.is_public(address)


@pytest.mark.parametrize("address", ["1.1.1.1", "93.184.216.34", "2606:4700:4700::1111", "::ffff:1.1.1.1"])
def test_addresses_of_the_internet_are_known(address: str) -> None:
    assert webhooks.is_public(address)


def test_a_name_that_leads_inside_is_not_asked_whatever_else_it_leads_to() -> None:
    guarded = webhooks.Guarded(allow_private=False, look_up=lambda host, port: ["10.0.0.1", "127.0.0.1"])
    with pytest.raises(httpcore.ConnectError, match="no address of the internet"):
        guarded.connect_tcp("evil.example", 80)


@given(st.integers(1, 10**6))
def test_waits_grow_to_a_bound(tries: int) -> None:
    assert (
        webhooks.FIRST_WAIT_S
        <= webhooks.wait_s(tries)
        <= webhooks.wait_s(tries + 1)
        <= webhooks.LONGEST_WAIT_S
    )
