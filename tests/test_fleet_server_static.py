"""Signed files over HTTP: tags, ranges, how long to keep them, and nothing from outside of the folders."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import httpx
import pytest
from starlette.testclient import TestClient

from edgekit.fleet.context import Fleet
from edgekit.fleet.server.app import create_app
from edgekit_runtime.agent.transport import HttpTransport
from support.served_fleet import a_fleet, serving

CONTENT = bytes(range(256)) * 1000
SHA = hashlib.sha256(CONTENT).hexdigest()
BLOB = f"/blobs/{SHA}"


@pytest.fixture
def fleet(tmp_path) -> Iterator[Fleet]:
    with a_fleet(tmp_path) as found:
        for name, content in (
            (BLOB[1:], CONTENT), ("metadata/timestamp.json", b'{"v": 1}'), ("metadata/1.root.json", b"{}"),
            ("targets/rollout/" + "0" * 64 + ".stable.json", b"{}"), ("blobs/" + "e" * 64, b""), ("secret", b"x"),
        ):  # fmt: skip
            found.blobs.put(name, [content], max_bytes=1 << 20, replace=True)
        yield found


@pytest.fixture
def client(fleet) -> Iterator[TestClient]:
    with TestClient(create_app(fleet), raise_server_exceptions=False) as found:
        yield found


def test_a_file_comes_whole_with_a_tag_that_is_answered_304(client):
    whole = client.get(BLOB)
    assert whole.content == CONTENT
    assert whole.headers["cache-control"] == "public, max-age=31536000, immutable"
    tag = whole.headers["etag"]
    for asked in (tag, f'"x", {tag}', f"W/{tag}", "*"):
        again = client.get(BLOB, headers={"If-None-Match": asked})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    assert client.get(BLOB, headers={"If-None-Match": '"x"'}).status_code == 200


def test_what_changes_is_asked_for_each_time_and_has_another_tag(client, fleet):
    before = client.get("/metadata/timestamp.json")
    assert before.headers["cache-control"] == "no-cache"
    assert before.headers["content-type"] == "application/json"
    fleet.blobs.put("metadata/timestamp.json", [b'{"v": 2}'], max_bytes=100, replace=True)
    after = client.get("/metadata/timestamp.json", headers={"If-None-Match": before.headers["etag"]})
    assert (after.status_code, after.content) == (200, b'{"v": 2}')
    assert "immutable" in client.get("/metadata/1.root.json").headers["cache-control"]
    assert "immutable" in client.get("/targets/rollout/" + "0" * 64 + ".stable.json").headers["cache-control"]


@pytest.mark.parametrize(("asked", "at", "end"), [
    ("bytes=0-0", 0, 1), ("bytes=100-", 100, 256_000), ("bytes=-5", 255_995, 256_000),
    ("bytes=10-999999999", 10, 256_000),
    ("bytes=-999999999", 0, 256_000),
])  # fmt: skip
def test_a_stretch_comes_as_206(client, asked, at, end):
    found = client.get(BLOB, headers={"Range": asked})
    assert found.status_code == 206
    assert found.content == CONTENT[at:end]
    assert found.headers["content-range"] == f"bytes {at}-{end - 1}/256000"


@pytest.mark.parametrize("asked", ["bytes=256000-", "bytes=9-3", "bytes=-0"])
def test_a_stretch_that_is_not_within_is_416(client, asked):
    found = client.get(BLOB, headers={"Range": asked})
    assert (found.status_code, found.headers["content-range"]) == (416, "bytes */256000")


@pytest.mark.parametrize(
    "asked", ["bytes=a-b", "bytes=0-1,5-6", "lines=1-2", "bytes=-", "bytes=" + "9" * 100 + "-"]
)
def test_a_range_that_is_not_understood_gives_the_whole(client, asked):
    assert client.get(BLOB, headers={"Range": asked}).content == CONTENT


def test_a_stretch_of_another_version_is_the_whole(client):
    tag = client.get(BLOB).headers["etag"]
    assert client.get(BLOB, headers={"Range": "bytes=5-", "If-Range": tag}).status_code == 206
    assert client.get(BLOB, headers={"Range": "bytes=5-", "If-Range": '"x"'}).status_code == 200


def test_head_says_the_same_without_the_content(client):
    found = client.head(BLOB)
    assert (found.status_code, found.headers["content-length"], found.content) == (200, "256000", b"")
    assert client.get("/blobs/" + "e" * 64).content == b""
    assert client.get("/blobs/" + "e" * 64, headers={"Range": "bytes=0-"}).status_code == 416


@pytest.mark.parametrize("path", [
    "/blobs/" + "1" * 64, "/metadata/", "/metadata/9.root.json", "/blobs/../secret", "/blobs/%2e%2e/secret",
    "/blobs/..%2fsecret",
    "/metadata/%2fetc/passwd", "/metadata//etc/passwd", "/blobs/a%00b", "/blobs/.tmp/x", "/blobs/%5c..%5csecret",
    "/blobs/" + "a" * 5000,
    "/secret", "/blobs/%ff", "/targets/%EF%BC%8E%EF%BC%8E/secret", "/blobs/<script>",
])  # fmt: skip
def test_what_is_not_published_is_404_and_leads_nowhere(fleet, path):
    # A client that tidies addresses up would hide what an attacker sends.
    with serving(fleet) as url:
        import socket

        host, _, port = url.removeprefix("http://").partition(":")
        with socket.create_connection((host, int(port))) as line:
            line.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
            answer = b""
            while part := line.recv(65536):
                answer += part
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.split()[1] in {b"404", b"400"}
    assert b"root:" not in body
    assert b"<script>" not in body or b"application/json" in head


def test_the_agents_transport_reads_files_from_any_byte_on(fleet):
    with serving(fleet) as url:
        transport = HttpTransport(url)
        whole = transport.get(f"blobs/{SHA}")
        assert b"".join(whole.parts) == CONTENT
        assert transport.get(f"blobs/{SHA}", tag=whole.tag).status == 304
        rest = transport.get(f"blobs/{SHA}", at=200_000)
        assert (rest.status, rest.at, b"".join(rest.parts)) == (206, 200_000, CONTENT[200_000:])
        assert transport.get("blobs/" + "1" * 64).status == 404


@pytest.mark.parametrize("path", ["/blobs", "/metadata", "/healthz/", "/v1/versions/", "/v1/missing/"])
def test_an_address_with_a_slash_too_many_or_too_few_is_not_there_and_leads_nowhere(client, path):
    for method in ("GET", "HEAD", "POST"):
        found = client.request(method, path, follow_redirects=False)
        assert (found.status_code, "location" in found.headers) == (404, False)


def test_files_are_only_read(client):
    for method in ("POST", "PUT", "DELETE"):
        found = client.request(method, BLOB)
        assert (found.status_code, found.json()["code"]) == (405, "http_405")
        assert "GET" in found.headers["allow"]


def test_health_says_what_fails(client, fleet):
    found = client.get("/healthz")
    assert (found.status_code, found.json()["ok"]) == (200, True)
    fleet.database.close()
    (fleet.settings.folder / "fleet.db").rename(fleet.settings.folder / "gone.db")
    broken = client.get("/healthz")
    assert (broken.status_code, broken.json()["database"]["ok"]) == (503, False)
    assert "fleet.db" not in broken.text
    assert httpx.codes(broken.status_code) == httpx.codes.SERVICE_UNAVAILABLE


def test_figures_are_in_the_form_of_prometheus(client):
    client.get(BLOB)
    text = client.get("/metrics").text
    assert 'edgekit_requests_total{method="GET",route="/blobs/{path:path}",status="200"} 1.0' in text
    assert "edgekit_windows_waiting 0.0" in text
    assert "edgekit_database_up 1.0" in text
