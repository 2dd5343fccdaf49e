"""What devices poll comes from a real nginx with the configuration that operators get; the server is not asked."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from edgekit.fleet.conduct import steering
from edgekit.fleet.releases import publication
from edgekit.fleet.rules.rollouts import Plan
from edgekit.fleet.storage.tables import windows
from edgekit_runtime.agent.fetch import fetch
from edgekit_runtime.agent.fetcher import METADATA, TARGETS, Fetcher
from edgekit_runtime.agent.transport import HttpTransport
from edgekit_runtime.policies import Policy
from edgekit_runtime.store import Store
from edgekit_runtime.trust import Trust
from support.fleets import ADMIN, World, make
from support.nginx import Nginx, nginx
from support.served_fleet import a_body, a_window, count, enrolled, serving

MODEL = "größe"


@dataclass
class Polling:
    """A fleet behind nginx.

    Attributes:
        world: the fleet.
        front: nginx.
        server: address of edgekit behind it.
    """

    world: World
    front: Nginx
    server: str

    def asked(self) -> int:
        """Requests that the server saw, but for those for this figure."""
        text = httpx.get(f"{self.server}/metrics").text
        counts = [
            float(line.rsplit(" ", 1)[1])
            for line in text.splitlines()
            if line.startswith("edgekit_requests_total{") and 'route="/metrics"' not in line
        ]
        return int(sum(counts))


class Device:
    """As an agent polls."""

    def __init__(self, polling: Polling, folder: Path) -> None:
        self.transport = HttpTransport(polling.front.address)
        self.trust = Trust(
            folder, metadata_url=METADATA, targets_url=TARGETS, fetcher=Fetcher(self.transport),
            now=polling.world.clock,
        )  # fmt: skip
        self.trust.init(polling.world.made.root.read_bytes())

    def poll(self) -> tuple[str, ...]:
        self.trust.refresh()
        policy = Policy.from_json(self.trust.document("rollout/stable.json", 1 << 20))
        return tuple(rule.release for rule in policy.rules)


@pytest.fixture
def polling(tmp_path: Path) -> Iterator[Polling]:
    world = make(tmp_path / "fleet")
    with serving(world.fleet) as address:
        blobs = Path(world.fleet.settings.blobs_url)
        with nginx(tmp_path / "nginx", blobs, address.removeprefix("http://")) as front:
            yield Polling(world, front, address)
    world.fleet.close()


def begin(world: World, version: str) -> str:
    release = world.release(version)
    found = steering.create(
        world.fleet,
        ADMIN,
        model=MODEL,
        version=version,
        channel="stable",
        plan=Plan((100.0,), first_devices=0),
    )
    publication.publish(world.fleet)
    steering.said(world.fleet, ADMIN, found.id, "promote")
    publication.publish(world.fleet)
    return release


def test_a_poll_without_a_change_is_one_conditional_request_and_the_server_is_not_asked(
    polling: Polling, tmp_path: Path
) -> None:
    release = begin(polling.world, "1.0.0")
    device = Device(polling, tmp_path / "device")
    asked = polling.asked()
    assert device.poll() == (release,)
    first = len(polling.front.lines())
    device.trust.refresh()
    lines = polling.front.lines()[first:]
    assert [(each.path, each.status) for each in lines] == [
        ("/metadata/2.root.json", 404), ("/metadata/timestamp.json", 304),
    ]  # fmt: skip
    assert sum(each.sent + each.received for each in lines) < 1500
    assert polling.asked() == asked


def test_after_a_publication_the_tag_is_another_and_devices_see_it(polling: Polling, tmp_path: Path) -> None:
    old = begin(polling.world, "1.0.0")
    device = Device(polling, tmp_path / "device")
    assert device.poll() == (old,)
    url = f"{polling.front.address}/metadata/timestamp.json"
    before = httpx.get(url)
    assert (before.headers["cache-control"], before.headers["content-type"]) == (
        "no-cache",
        "application/json",
    )
    kept = {"If-None-Match": before.headers["etag"]}
    assert httpx.get(url, headers=kept).status_code == 304
    assert httpx.get(url, headers={"If-Modified-Since": before.headers["last-modified"]}).status_code == 304
    new = begin(polling.world, "2.0.0")
    after = httpx.get(url, headers=kept)
    assert (after.status_code, after.headers["etag"] != before.headers["etag"]) == (200, True)
    assert device.poll()[0] == new
    # Signed anew within the same second, and as long as before, it has to have another tag still.
    tags, sizes = set(), set()
    for _ in range(5):
        polling.world.clock.at += 30 * 3600
        assert publication.publish(polling.world.fleet)
        found = httpx.get(url)
        tags.add(found.headers["etag"])
        sizes.add(len(found.content))
    assert len(tags) == 5 > len(sizes)


def test_files_of_a_release_come_by_nginx_and_from_any_byte_on(polling: Polling, tmp_path: Path) -> None:
    release = begin(polling.world, "1.0.0")
    device = Device(polling, tmp_path / "device")
    device.poll()
    store = Store(tmp_path / "store")
    store.make()
    asked = polling.asked()
    fetch(store, device.trust.document, device.transport, lambda: None)(release)
    assert polling.asked() == asked
    file = next(iter(store.release(release).files.values()))
    whole = httpx.get(f"{polling.front.address}/blobs/{file.sha256}")
    assert "immutable" in whole.headers["cache-control"]
    rest = device.transport.get(f"blobs/{file.sha256}", at=3)
    assert (rest.status, b"".join(rest.parts)) == (206, whole.content[3:])


@pytest.mark.parametrize(("path", "statuses"), [
    ("/blobs/.tmp/x", {404}), ("/metadata/.tmp/x", {404}), ("/.tmp/x", {404}), ("/pending/proposal.json", {404}),
    ("/metadata/../pending/proposal.json", {404}), ("/metadata/%2e%2e/pending/proposal.json", {404}),
    ("/metadata/..%2f..%2ffleet.toml", {400, 404}), ("/metadata/..%5c..%5cfleet.toml", {400, 404}),
    ("/metadata/", {403, 404}), ("/blobs", {404}), ("/metadata/link", {403, 404}),
    ("/blobs/" + "a" * 9000, {404, 414}),
    ("/metadata/%00", {400}),
])  # fmt: skip
def test_nginx_shows_what_is_published_and_nothing_else(
    polling: Polling, path: str, statuses: set[int]
) -> None:
    blobs = Path(polling.world.fleet.settings.blobs_url)
    begin(polling.world, "1.0.0")
    polling.world.propose("2.0.0")
    # A proposal waits, a writer is in the middle of a file, and somebody put a link into the folder.
    polling.world.fleet.blobs.put("pending/proposal.json", [b"secret"], max_bytes=1 << 20, replace=True)
    for folder in (blobs, blobs / "blobs", blobs / "metadata"):
        (folder / ".tmp").mkdir(parents=True, exist_ok=True)
        (folder / ".tmp" / "x").write_bytes(b"secret")
    (blobs / "metadata" / "link").symlink_to(polling.world.made.folder / "fleet.toml")
    host, _, port = polling.front.address.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port))) as line:
        line.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        answer = b""
        while part := line.recv(65536):
            answer += part
    assert int(answer.split()[1]) in statuses, answer[:300]
    assert b"secret" not in answer
    assert b"database_url" not in answer


def test_what_is_no_file_goes_to_the_server(polling: Polling) -> None:
    _, token = enrolled(polling.world.fleet, "kiln")
    head = {"Authorization": f"Bearer {token}"}
    at = polling.front.address
    assert (
        httpx.post(f"{at}/devices/kiln", content=a_body("kiln", a_window(1)), headers=head).status_code == 200
    )
    assert count(polling.world.fleet, windows) == 1
    assert httpx.get(f"{at}/healthz").json()["ok"]
    assert httpx.get(f"{at}/v1/rollouts").status_code == 401
    for method in ("PUT", "POST", "DELETE"):
        assert httpx.request(method, f"{at}/metadata/timestamp.json").status_code in {403, 405}
