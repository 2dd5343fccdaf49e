"""How an agent talks to its server: two methods, by HTTP or by whatever an application has.

The server holds plain files, and takes one kind of post:

```
GET  metadata/…            of The Update Framework
GET  targets/…             releases and policies, small
GET  blobs/<sha256>        files of releases, from any byte on
GET  deltas/…              what makes such files out of others, likewise; `edgekit_runtime.deltas`
POST devices/<id>          what this device tells, gzip of JSON; the answer names what the server has
POST devices/<id>/disagreements  an input whose answers differ, likewise, where a signed policy asks for some
```
"""

from __future__ import annotations

import io
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPResponse
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

import urllib3

from edgekit_runtime.errors import InputError, NetworkError

CONNECT_S, READ_S = 10.0, 30.0
# A server that sends a byte now and then would hold a device for ever: so many bytes have to come in so many seconds.
PACE_S, PACE_BYTES = 60.0, 1024
# And what is small, the head of any answer, and every part of a large one have to be here in so many seconds.
ANSWER_S = 120.0
# Answers that are not small, but for the lists among them.
LARGE: Final = ("blobs/", "deltas/")
LIST: Final = ".json"
CHUNK_BYTES: Final = 64 << 10
MAX_ANSWER_BYTES: Final = 1 << 20
NOT_MODIFIED: Final = 304
# Status of a server that will not take this very post, however often it comes, and the code for it.
REFUSING: Final = frozenset({400, 413, 422})
NOT_TAKEN: Final = "not_taken"
# Status of a server that is too busy, and how long it may ask to be left alone.
BUSY: Final = frozenset({429, 503})
LONGEST_REST_S: Final = 3600
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
        self._pool = urllib3.connection_from_url(
            self.url,
            headers=headers,
            timeout=urllib3.Timeout(connect=CONNECT_S, read=READ_S),
            retries=False,
            maxsize=1,
        )
        self._folder = urlsplit(self.url).path
        self._rests: dict[str, float] = {}
        self._line: _Line
        connect = self._pool.ConnectionCls

        def watched(**options: Any) -> Any:
            connection: Any = connect(**options)
            connection.response_class = self._begin
            return connection

        self._pool.ConnectionCls = watched  # type: ignore[assignment] # it is only called

    def get(self, path: str, *, at: int = 0, tag: str = "") -> Answer:
        """As `Transport.get`."""
        headers = {"Range": f"bytes={at}-"} if at else {}
        if tag:
            headers["If-None-Match"] = tag
        response, line = self._ask("GET", path, headers)
        if response.status not in {200, 206}:
            # Nobody wants to read why, and it might never end.
            response.close()
            return Answer(response.status, 0, "", iter(()))
        begins = _first_byte(response.headers, at) if response.status == 206 else 0
        parts = self._parts(response, line, path)
        return Answer(response.status, begins, response.headers.get("ETag", ""), parts)

    def post(self, path: str, body: bytes) -> bytes:
        """As `Transport.post`."""
        headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
        response, line = self._ask("POST", path, headers, body)
        if response.status != 200:
            response.close()
            code = NOT_TAKEN if response.status in REFUSING else "network"
            raise unreachable(self.url + path, f"status {response.status}", code=code)
        answer = b""
        for part in self._parts(response, line, path):
            answer += part
            if len(answer) > MAX_ANSWER_BYTES:
                raise unreachable(self.url + path, f"an answer of more than {MAX_ANSWER_BYTES:,} bytes")
        return answer

    def _ask(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes | None = None
    ) -> tuple[urllib3.BaseHTTPResponse, _Line]:
        """The head of an answer, and the line on which its content is still to come."""
        # A server that has no time for what devices tell may still have some for what they ask.
        if (rest_s := self._rests.get(method, 0.0) - time.monotonic()) > 0:
            raise unreachable(self.url + path, f"it asked to be left alone, for {rest_s:.0f} s still")
        headers = {**self._pool.headers, "Accept-Encoding": "identity", **headers}
        with _told(self.url, path):
            response = self._pool.request(
                method,
                self._folder + path,
                body=body,
                headers=headers,
                preload_content=False,
                redirect=False,
            )
        if response.status in BUSY:
            # A date would be held against the clock of this device, which may be wrong.
            wait_s = _whole(response.headers.get("Retry-After", ""))
            self._rests[method] = time.monotonic() + min(wait_s or 0, LONGEST_REST_S)
        if (packed := response.headers.get("Content-Encoding", "identity")) != "identity":
            response.close()
            raise unreachable(self.url + path, f"the content comes as {packed}, which nobody asked for")
        return response, self._line

    def _begin(self, sock: socket.socket, *options: Any, **more: Any) -> HTTPResponse:
        """The answer that is about to come: everything of it goes through one place that watches the clock."""
        response: Any = HTTPResponse(sock, *options, **more)
        self._line = _Line(response.fp.detach(), self.url)
        response.fp = io.BufferedReader(self._line)
        return response  # type: ignore[no-any-return] # its `fp` is not in the types of Python

    def _parts(self, response: urllib3.BaseHTTPResponse, line: _Line, path: str) -> Iterator[bytes]:
        left = _whole(response.headers.get("Content-Length", ""))
        try:
            while True:
                if path.startswith(LARGE) and not path.endswith(LIST):
                    line.ends_s = time.monotonic() + ANSWER_S
                with _told(self.url, path):
                    # Whatever has come, at once: on a line that breaks every few seconds a full part never would.
                    part = response.read1(CHUNK_BYTES, decode_content=False)
                if not part:
                    break
                left = None if left is None else left - len(part)
                yield part
            if left:
                raise unreachable(self.url + path, f"the line broke {left:,} bytes before the end")
        finally:
            # What was not read to its end cannot be used for the next question.
            response.close()


class _Line(io.RawIOBase):
    """What comes from a server, for as long as it keeps to a pace.

    Below HTTP, as a head, the size of a chunk or what follows the last one can drip or go on for ever, too.

    Args:
        raw: end of a connection.
        url: of the server.
    """

    def __init__(self, raw: Any, url: str) -> None:
        self._raw, self._url = raw, url
        self.ends_s = time.monotonic() + ANSWER_S
        self._waited_s, self._came = 0.0, 0

    def readable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, buffer: Any) -> int | None:
        """As `io.RawIOBase.readinto`; what came before the line was too slow is still given."""
        began_s = time.monotonic()
        if self._waited_s > PACE_S:
            raise unreachable(self._url, f"{self._came:,} bytes in {PACE_S:g} s")
        if began_s > self.ends_s:
            raise unreachable(self._url, f"no end of an answer in {ANSWER_S:g} s")
        came: int | None = self._raw.readinto(buffer)
        # Only waiting counts: a disk of this device that takes its time is not the server's fault.
        self._waited_s += time.monotonic() - began_s
        self._came += came or 0
        if self._came >= PACE_BYTES:
            self._waited_s, self._came = 0.0, 0
        return came

    def close(self) -> None:
        """Give the connection back."""
        self._raw.close()
        super().close()


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
    begins = _whole(str(headers.get("Content-Range", "")).removeprefix("bytes ").partition("-")[0])
    return asked if begins is None else begins


def _whole(said: str) -> int | None:
    # Python refuses numbers of thousands of digits with an error of its own.
    return int(said) if said.isdecimal() and len(said) < 20 else None


def _bad_url(url: str, found: str, expected: str) -> InputError:
    return InputError(
        f"{url!r}: {found}",
        expected=expected,
        way_out="Give --server, or EDGEKIT_SERVER, as the fleet names it.",
        code="server",
    )
