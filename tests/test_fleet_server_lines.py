"""Connections that are slow, endless or no HTTP, on a real server: the right code, in bounded time and memory."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterable, Iterator
from itertools import repeat

import httpx
import pytest

from edgekit.fleet.context import Fleet
from edgekit.fleet.identity.access import make_token
from edgekit.fleet.server import lines
from edgekit.fleet.storage.tables import windows
from support.served_fleet import ADA, a_body, a_fleet, a_window, count, enrolled, serving

CONTENT = bytes(range(256)) * (1 << 17)
BLOB = "a" * 64


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with a_fleet(tmp_path_factory.mktemp("lines"), body_s=0.5) as found:
        found.blobs.put(f"blobs/{BLOB}", [CONTENT], max_bytes=1 << 30)
        yield found


@pytest.fixture(scope="module")
def address(fleet: Fleet) -> Iterator[tuple[str, int]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "HEAD_S", 0.6)
        patch.setattr(lines, "REST_S", 0.6)
        patch.setattr(lines, "TAKE_S", 0.6)
        with serving(fleet) as url:
            host, _, port = url.removeprefix("http://").partition(":")
            yield host, int(port)


def ends(line: socket.socket, within_s: float = 8) -> bytes:
    """What comes until the server ends the line."""
    line.settimeout(within_s)
    answer = b""
    try:
        while part := line.recv(1 << 16):
            answer += part
    except ConnectionResetError:
        pass
    return answer


def drip(line: socket.socket, parts: Iterable[bytes]) -> None:
    """Send one part after the other until the server ends the line, which it has to."""
    try:
        for part in parts:
            line.sendall(part)
            time.sleep(0.05)
    except (BrokenPipeError, ConnectionResetError):
        return
    raise AssertionError("the server took all of it")


def status_of(answer: bytes) -> int:
    return int(answer.split()[1])


def test_a_line_on_which_nothing_comes_is_ended(address: tuple[str, int]) -> None:
    with socket.create_connection(address) as line:
        assert ends(line) == b""


@pytest.mark.parametrize("part", [b"G", b"GET /healthz HTTP/1.1\r\nHost: x\r\nA: ", b"GET /" + b"x" * 100])
def test_a_head_that_stops_is_answered_408(address: tuple[str, int], part: bytes) -> None:
    with socket.create_connection(address) as line:
        line.sendall(part)
        answer = ends(line)
    assert status_of(answer) == 408
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["code"] == "http_408"


def test_a_head_that_drips_is_ended_in_time(address: tuple[str, int]) -> None:
    began_s = time.monotonic()
    with socket.create_connection(address) as line:
        line.sendall(b"GET /healthz HTTP/1.1\r\n")
        drip(line, (f"X-{number}: y\r\n".encode() for number in range(400)))
    assert time.monotonic() - began_s < 6


def test_line_ends_between_requests_keep_no_line_open(address: tuple[str, int]) -> None:
    with socket.create_connection(address) as line:
        line.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        line.recv(65536)
        line.sendall(b"\r\n")
        ends(line)


@pytest.mark.parametrize(
    "head",
    [
        b"GET /healthz HTTP/1.1\r\nX: " + b"y" * 200_000,
        b"GET /healthz HTTP/1.1\r\n"
        + b"".join(b"X-%d: y\r\n" % number for number in range(20_000))
        + b"\r\n",
        b"GET /" + b"x" * 200_000,
        b"GET /healthz HTTP/1.1\r\n" + b"y" * 200_000,
        b"POST /v1/enrol HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: " + b"y" * 200_000,
        b"POST /v1/enrol HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1;" + b"y" * 200_000,
    ],
    ids=["value", "many", "address", "name", "trailer", "extension"],
)
def test_a_head_that_is_too_large_is_refused(address: tuple[str, int], head: bytes) -> None:
    with socket.create_connection(address) as line:
        try:
            line.sendall(head)
        except OSError:
            return
        answer = ends(line)
    assert not answer or status_of(answer) in {400, 431}


def test_a_head_of_a_usual_size_is_taken(address: tuple[str, int]) -> None:
    found = httpx.get(f"http://{address[0]}:{address[1]}/healthz", headers={"X": "y" * 20_000})
    assert found.status_code == 200


@pytest.mark.parametrize(
    "garbage", [b"\x16\x03\x01\x02\x00\x01\x00", b"hello\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"\x00" * 50]
)
def test_what_is_no_http_is_answered_400(address: tuple[str, int], garbage: bytes) -> None:
    with socket.create_connection(address) as line:
        line.sendall(garbage)
        answer = ends(line)
    assert status_of(answer) == 400
    assert set(json.loads(answer.partition(b"\r\n\r\n")[2])) == {"code", "what", "expected", "way_out"}


def test_a_request_that_says_its_length_twice_is_refused(address: tuple[str, int], fleet: Fleet) -> None:
    """Two servers that read it differently would each see another request."""
    body = a_body("kiln", a_window(1))
    for more in (b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n"):
        with socket.create_connection(address) as line:
            line.sendall(
                b"POST /v1/reports HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n" % len(body)
                + more
                + b"\r\n"
                + body
            )
            assert status_of(ends(line)) == 400
    assert count(fleet, windows) == 0


def test_a_body_that_goes_on_after_it_was_refused_is_cut_off(address: tuple[str, int]) -> None:
    began_s = time.monotonic()
    with socket.create_connection(address) as line:
        line.sendall(
            b"PUT /v1/uploads/" + b"0" * 64 + b" HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\n"
        )
        # What was answered is not lost.
        assert status_of(line.recv(65536)) == 401
        drip(line, repeat(b"x" * 1000, 400))
    assert time.monotonic() - began_s < 6


def test_who_does_not_read_is_cut_off(address: tuple[str, int]) -> None:
    with socket.create_connection(address) as line:
        line.sendall(b"GET /blobs/" + BLOB.encode() + b" HTTP/1.1\r\nHost: x\r\n\r\n")
        time.sleep(2)
        assert len(ends(line)) < len(CONTENT)


def test_who_reads_gets_all_of_it_and_uses_the_line_again(address: tuple[str, int]) -> None:
    with httpx.Client(base_url=f"http://{address[0]}:{address[1]}") as client:
        for _ in range(3):
            assert client.get(f"/blobs/{BLOB}").content == CONTENT
            assert client.get("/healthz").status_code == 200


def test_an_upload_that_drips_is_given_up(address: tuple[str, int], fleet: Fleet) -> None:
    token = make_token(fleet, ADA, name="pia", role="publisher")
    began_s = time.monotonic()
    with socket.create_connection(address) as line:
        head = f"PUT /v1/uploads/{'0' * 64} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n"
        line.sendall(f"{head}Content-Length: 1000000\r\n\r\n".encode())
        drip(line, repeat(b"x", 400))
        assert time.monotonic() - began_s < 12
    assert fleet.blobs.size(f"blobs/{'0' * 64}") is None


def test_requests_in_a_row_on_one_line_are_all_answered(address: tuple[str, int], fleet: Fleet) -> None:
    _, token = enrolled(fleet, "kiln")
    body = a_body("kiln", a_window(7))
    one = b"POST /v1/reports HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Length: %d\r\n\r\n" % (
        token.encode(), len(body),
    )  # fmt: skip
    with socket.create_connection(address) as line:
        last = one.replace(b"Host: x", b"Connection: close")
        line.sendall((one + body) * 2 + last + body)
        answer = ends(line)
    assert answer.count(b"HTTP/1.1 200") == 3
    assert count(fleet, windows) == 1
