"""Connections with bounds that uvicorn does not know: heads in size and in time, and peers that neither read nor end.

| what | bound |
|---|---|
| a head, or what else no part of the server has taken yet | `HEAD_BYTES`, else 431 |
| the time from the first byte of a connection or a request to the end of its head | `HEAD_S`, else 408 |
| the rest of a body that was refused before its end | `REST_S`, then the line is cut |
| a peer that takes nothing of its answer | `TAKE_S`, then the line is cut |

Bodies that a route reads are bounded by `edgekit.fleet.server.bodies`.
"""

from __future__ import annotations

import asyncio
import http
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from edgekit.fleet.server.answers import Problem

# A token, an address and what proxies add are a few hundred bytes.
HEAD_BYTES: Final = 32 << 10
HEAD_S: Final = 15.0
REST_S: Final = 5.0
TAKE_S: Final = 60.0


_NOTHING, _HEAD, _BODY = "nothing", "head", "body"


class _TooLargeError(Exception):
    """Ends the parser within one of its calls."""


class BoundedLine(HttpToolsProtocol):
    """One connection."""

    # Since the last part that was taken, and of all headers of a request, those after a body included.
    _untaken = _headers = 0
    _status = 400
    # What comes: nothing of a request, its head, or its body.
    _part = _NOTHING
    _ends: asyncio.TimerHandle | None = None
    _takes: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as the parent's
        """As `asyncio.Protocol`."""
        super().connection_made(transport)
        self._ends_in(HEAD_S)

    def connection_lost(self, exc: Exception | None) -> None:
        """As `asyncio.Protocol`."""
        self._ends_in(None)
        self.resume_writing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """As `asyncio.Protocol`."""
        if self.transport.is_closing():
            return
        if self._part == _NOTHING and self._ends is None:
            self._ends_in(HEAD_S)
        self._untaken += len(data)
        super().data_received(data)
        if self._untaken > HEAD_BYTES and not self.transport.is_closing():
            self._refuse(431)

    def on_message_begin(self) -> None:
        """As httptools calls it; like all that follow."""
        self._headers, self._part = 0, _HEAD
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """A part of the address."""
        self._count(url)
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, or one after the body."""
        self._count(name, value)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head is here."""
        self._untaken, self._part = 0, _BODY
        self._ends_in(None)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A part of the body."""
        self._untaken = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is here to its end."""
        self._untaken, self._part = 0, _NOTHING
        self._ends_in(None)
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """The answer is on its way."""
        super().on_response_complete()
        if self._part == _BODY:
            # Cut at once, what was answered could be lost with it.
            self._ends_in(REST_S)

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP, or too much of it."""
        status, self._status = self._status, 400
        if self._answering():
            # Nothing may come between the parts of an answer.
            self.transport.close()
            return
        words = http.HTTPStatus(status)
        problem = Problem(
            code=f"http_{status}", what=msg if status == 400 else words.description or words.phrase,
            expected=f"HTTP/1.1, a head of at most {HEAD_BYTES:,} bytes in {HEAD_S:g} s",
            way_out="Look at what is between this client and the server.",
        ).model_dump_json().encode()  # fmt: skip
        head = (
            f"HTTP/1.1 {status} {words.phrase}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(problem)}\r\nConnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + problem)
        self.transport.close()

    def pause_writing(self) -> None:
        """The peer takes nothing more for now."""
        super().pause_writing()
        if self._takes is None:
            self._takes = self.loop.call_later(TAKE_S, self.transport.abort)

    def resume_writing(self) -> None:
        """It does again."""
        if self._takes is not None:
            self._takes.cancel()
            self._takes = None
        super().resume_writing()

    def _count(self, *parts: bytes) -> None:
        self._headers += sum(map(len, parts))
        if self._headers > HEAD_BYTES:
            self._status = 431
            raise _TooLargeError

    def _ends_in(self, seconds: float | None) -> None:
        if self._ends is not None:
            self._ends.cancel()
        self._ends = None if seconds is None else self.loop.call_later(seconds, self._end)

    def _end(self) -> None:
        self._ends = None
        if self._part == _HEAD:
            self._refuse(408)
        else:
            self.transport.close()

    def _refuse(self, status: int) -> None:
        self._status = status
        self.send_400_response("")

    def _answering(self) -> bool:
        cycle: Any = self.cycle
        return cycle is not None and cycle.response_started and not cycle.response_complete
