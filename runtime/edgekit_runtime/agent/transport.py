"""How an agent talks to its server: two methods, by HTTP or by whatever an application has.

The server holds plain files, and takes one kind of post:

```
GET  metadata/…            of The Update Framework
GET  targets/…             releases and policies, small
GET  blobs/<sha256>        files of releases, from any byte on
POST devices/<id>          what this device tells, gzip of JSON; the answer names what the server has
```
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

import urllib3

from edgekit_runtime.errors import InputError, NetworkError

CONNECT_S, READ_S = 10.0, 30.0
# A server that sends a byte now and then would hold a device for ever: so many bytes have to come in so many seconds.
PACE_S, PACE_BYTES = 60.0, 1024
CHUNK_BYTES: Final = 64 << 10
MAX_ANSWER_BYTES: Final = 1 << 20
NOT_MODIFIED: Final = 304
# Status of a server that will not take this very post, however often it comes, and the code for it.
REFUSING: Final = frozenset({400, 413, 422})
NOT_TAKEN: Final = "not_taken"
# Hosts that are this device itself, where nobody listens in.
LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True, slots=True)
class Answer:
    """To a `get`.

    Attributes:
        status: of HTTP.
        at: first byte of what comes.
        tag: by which the server knows this content, "" where it has none.
        parts: of the content; each may raise NetworkError.
    """

    status: int
    at: int
    tag: str
    parts: Iterator[bytes]


class Transport(Protocol):
    """The way to a server."""

    def get(self, path: str, *, at: int = 0, tag: str = "") -> Answer:
        """Ask for a file.

        Args:
            path: on the server.
            at: first byte that is wanted; the answer may begin earlier.
            tag: of what is here already; the answer has the status 304 where that is still it.

        Raises:
            NetworkError: no answer.
        """
        ...

    def post(self, path: str, body: bytes) -> bytes:
        """Tell something, and hear the answer.

        Args:
            path: on the server.
            body: gzip of JSON.

        Raises:
            NetworkError: no answer, or one that says no; code `not_taken` where it would never take this body.
        """
        ...


class HttpTransport:
    """By HTTPS; plain HTTP only to this device itself, or where it is asked for.

    Args:
        url: of the server.
        token: that the server knows this device by.
        insecure: let plain HTTP be.

    Raises:
        InputError: no such address.
    """

    def __init__(self, url: str, *, token: str = "", insecure: bool = False) -> None:
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise _bad_url(url, "no address of a server", "https://fleet.example.com")
        if parts.scheme == "http" and not insecure and parts.hostname not in LOOPBACK:
            raise _bad_url(url, "a connection that anybody can read and change", "https, or --insecure")
        self.url = url.rstrip("/") + "/"
        headers: dict[str, str] = {"Authorization": f"Bearer {token}"} if token else {}
        # Nothing is followed and nothing repeated here: a token goes to one server, and the agent's own pauses count.
        self._pool = urllib3.PoolManager(
            headers=headers,
            timeout=urllib3.Timeout(connect=CONNECT_S, read=READ_S),
            retries=False,
            maxsize=1,
        )

    def get(self, path: str, *, at: int = 0, tag: str = "") -> Answer:
        """As `Transport.get`."""
        headers: dict[str, str] = {**self._pool.headers, "Accept-Encoding": "identity"}
        if at:
            headers["Range"] = f"bytes={at}-"
        if tag:
            headers["If-None-Match"] = tag
        with _told(self.url, path):
            response = self._pool.request(
                "GET", self.url + path, headers=headers, preload_content=False, redirect=False
            )
        if (packed := response.headers.get("Content-Encoding", "identity")) != "identity":
            response.close()
            raise unreachable(self.url + path, f"the content comes as {packed}, which nobody asked for")
        begins = _first_byte(response.headers, at) if response.status == 206 else 0
        return Answer(response.status, begins, response.headers.get("ETag", ""), self._parts(response, path))

    def post(self, path: str, body: bytes) -> bytes:
        """As `Transport.post`."""
        headers = {**self._pool.headers, "Content-Type": "application/json", "Content-Encoding": "gzip"}
        with _told(self.url, path):
            response = self._pool.request(
                "POST", self.url + path, body=body, headers=headers, preload_content=False, redirect=False
            )
        answer = b""
        for part in self._parts(response, path):
            answer += part
            if len(answer) > MAX_ANSWER_BYTES:
                raise unreachable(self.url + path, f"an answer of more than {MAX_ANSWER_BYTES:,} bytes")
        if response.status != 200:
            code = NOT_TAKEN if response.status in REFUSING else "network"
            raise unreachable(self.url + path, f"status {response.status}", code=code)
        return answer

    def _parts(self, response: urllib3.BaseHTTPResponse, path: str) -> Iterator[bytes]:
        left = _length(response.headers)
        since_s, came = time.monotonic(), 0
        try:
            with _told(self.url, path):
                # Whatever has come, at once: on a line that breaks every few seconds a full part never would.
                while part := response.read1(CHUNK_BYTES, decode_content=False):
                    left = None if left is None else left - len(part)
                    came += len(part)
                    if came >= PACE_BYTES:
                        since_s, came = time.monotonic(), 0
                    elif time.monotonic() - since_s > PACE_S and left != 0:
                        raise unreachable(self.url + path, f"{came:,} bytes in {PACE_S:g} s")
                    yield part
            if left:
                raise unreachable(self.url + path, f"the line broke {left:,} bytes before the end")
        finally:
            # What was not read to its end cannot be used for the next question.
            response.close()


def unreachable(url: str, found: str, *, code: str = "network") -> NetworkError:
    """The error for a server that does not answer as it should."""
    return NetworkError(
        f"{url}: {found}",
        expected="an answer of the server",
        way_out="Nothing is lost: it is tried again, and what serves goes on.",
        code=code,
    )


@contextmanager
def _told(url: str, path: str) -> Iterator[None]:
    try:
        yield
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise unreachable(url + path, str(error)[:300]) from error


def _first_byte(headers: Mapping[str, Any], asked: int) -> int:
    """Of `Content-Range: bytes 100-199/200`; where the server does not say, what was asked for."""
    said = str(headers.get("Content-Range", "")).removeprefix("bytes ").partition("-")[0]
    return int(said) if said.isdecimal() else asked


def _length(headers: Mapping[str, Any]) -> int | None:
    said = str(headers.get("Content-Length", ""))
    return int(said) if said.isdecimal() else None


def _bad_url(url: str, found: str, expected: str) -> InputError:
    return InputError(
        f"{url!r}: {found}",
        expected=expected,
        way_out="Give --server, or EDGEKIT_SERVER, as the fleet names it.",
        code="server",
    )
