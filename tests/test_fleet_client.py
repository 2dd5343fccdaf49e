"""The client: whom it asks, what it makes of answers, and uploads that go on where they ended."""

from __future__ import annotations

import hashlib
from pathlib import Path

import httpx
import pytest

from edgekit.fleet.client import Client, Place, place
from edgekit.fleet.errors import (
    ConflictError,
    DeniedError,
    FleetError,
    InvalidError,
    TooMuchError,
    UnavailableError,
)


def asking(handler: object, waits: list[float] | None = None) -> Client:
    sleep = waits.append if waits is not None else lambda _: None
    return Client(
        Place("https://fleet.example", "edgk_x"), transport=httpx.MockTransport(handler), sleep=sleep
    )


def kept(tmp_path: Path, text: str, mode: int = 0o600) -> dict[str, str]:
    path = tmp_path / "edgekit" / "fleet.toml"
    path.parent.mkdir()
    path.write_text(text)
    path.chmod(mode)
    return {"XDG_CONFIG_HOME": str(tmp_path)}


def test_what_is_given_wins_over_the_environment_and_that_over_the_file(tmp_path: Path) -> None:
    environ = kept(tmp_path, 'server = "https://of.file/"\ntoken = "edgk_file"\n')
    assert place("", environ) == Place("https://of.file", "edgk_file")
    environ |= {"EDGEKIT_SERVER": "https://of.environment", "EDGEKIT_TOKEN": "edgk_env"}
    assert place("", environ) == Place("https://of.environment", "edgk_env")
    assert place("http://given:80/", environ) == Place("http://given:80", "edgk_env")


def test_the_token_of_one_server_goes_to_no_other(tmp_path: Path) -> None:
    environ = kept(tmp_path, 'server = "https://of.file"\ntoken = "edgk_file"\n')
    with pytest.raises(InvalidError, match="no token"):
        place("https://another", environ)


@pytest.mark.parametrize(
    ("text", "mode", "says"),
    [
        ("", 0o600, "no server"),
        ('server = "fleet.example"\ntoken = "x"', 0o600, "the server 'fleet.example'"),
        ("server = ", 0o600, "fleet.toml"),
        ("server = 1", 0o600, "server"),
        ('sever = "x"', 0o600, "sever"),
        ('server = "https://x"\ntoken = "x"', 0o644, "may be read by others"),
    ],
)
def test_a_file_that_cannot_be_used_is_told(tmp_path: Path, text: str, mode: int, says: str) -> None:
    with pytest.raises(InvalidError, match=says):
        place("", kept(tmp_path, text, mode))


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (401, DeniedError), (403, DeniedError), (409, ConflictError), (422, InvalidError), (413, TooMuchError),
        (503, UnavailableError), (500, UnavailableError), (418, InvalidError),
    ],
)  # fmt: skip
def test_errors_of_the_server_come_back_as_what_they_are(status: int, kind: type[FleetError]) -> None:
    tree = {"code": "overlap", "what": "rollout ab is open", "expected": "one", "way_out": "Let it end."}
    client = asking(lambda _: httpx.Response(status, json=tree))
    with pytest.raises(kind) as caught:
        client.post("rollouts", {})
    found = caught.value
    assert (found.code, found.what, found.expected, found.way_out, found.status) == (
        "overlap", "rollout ab is open", "one", "Let it end.", status,
    )  # fmt: skip


@pytest.mark.parametrize("content", [b"<html>gateway</html>", b"", b"[1]", b'{"detail": "x"}'])
def test_what_another_server_says_is_told_in_words(content: bytes) -> None:
    client = asking(lambda _: httpx.Response(404, content=content))
    with pytest.raises(FleetError, match=r"https://fleet.example/v1/rollouts: status 404"):
        client.get("rollouts")
    client = asking(lambda _: httpx.Response(200, content=b"<html>"))
    with pytest.raises(FleetError, match="status 200"):
        client.get("rollouts")
    client = asking(lambda _: httpx.Response(302, headers={"Location": "https://evil.example/"}))
    with pytest.raises(FleetError, match="status 302"):
        client.get("rollouts")


def test_no_server_there_is_told_in_words() -> None:
    with (
        Client(Place("http://127.0.0.1:9", "x"), sleep=lambda _: None) as client,
        pytest.raises(UnavailableError, match=r"http://127.0.0.1:9"),
    ):
        client.get("rollouts")


def test_a_busy_server_is_asked_again_and_told_nothing_twice() -> None:
    asked: list[str] = []
    waits: list[float] = []

    def busy(request: httpx.Request) -> httpx.Response:
        asked.append(request.method)
        return httpx.Response(503 if len(asked) < 3 else 200, json={})

    assert asking(busy, waits).get("rollouts") == {}
    assert waits == [0.5, 1.0]
    asked.clear()
    with pytest.raises(UnavailableError):
        asking(busy).post("rollouts", {})
    assert asked == ["POST"]


def test_an_upload_goes_on_with_the_file_that_broke(tmp_path: Path) -> None:
    contents = [b"one" * 10, b"two" * 20, b"three"]
    files = {}
    for number, content in enumerate(contents):
        path = tmp_path / str(number)
        path.write_bytes(content)
        files[hashlib.sha256(content).hexdigest()] = path
    there: dict[str, bytes] = {}
    broken = [True]

    def server(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/missing":
            import json

            asked = json.loads(request.content)["sha256"]
            return httpx.Response(200, json={"missing": [each for each in asked if each not in there]})
        if len(there) == 1 and broken:
            broken.clear()
            raise httpx.ReadError("cut")
        there[request.url.path.rpartition("/")[2]] = request.content
        return httpx.Response(200, json={})

    told: list[tuple[int, int]] = []
    total = sum(map(len, contents))
    assert asking(server).upload(files, lambda done, whole: told.append((done, whole))) == total
    assert {hashlib.sha256(each).hexdigest() for each in there.values()} == set(files)
    assert told[-1] == (total, total)
    assert asking(server).upload(files) == 0
