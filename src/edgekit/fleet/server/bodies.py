"""Bodies of requests: bounded while they come, in size and in time, and while they are unpacked."""

from __future__ import annotations

import asyncio
import zlib
from typing import Final

from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edgekit.fleet.errors import FleetError, InvalidError, TooMuchError
from edgekit.fleet.server.answers import answered
from edgekit.fleet.settings import Settings

# Whose routes read a body that is larger than memory should hold, and bound it themselves.
LARGE: Final = ("/v1/uploads/",)


class BoundedBodies:
    """Refuses bodies that are too large or too slow, before anything reads them whole.

    Args:
        app: that reads them.
        settings: the bounds.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app, self._settings = app, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI says."""
        if scope["type"] != "http" or scope["path"].startswith(LARGE):
            await self._app(scope, receive, send)
            return
        await self._app(scope, _Bounded(receive, self._settings), send)


class _Bounded:
    """What comes of one request.

    Args:
        receive: of the server.
        settings: the bounds.
    """

    def __init__(self, receive: Receive, settings: Settings) -> None:
        self._receive, self._most, self._seconds = receive, settings.packed_bytes, settings.body_s
        self._came, self._whole = 0, False
        self._until_s: float | None = None

    async def __call__(self) -> Message:
        """The next message."""
        if self._whole:
            return await self._receive()
        if self._until_s is None:
            self._until_s = asyncio.get_running_loop().time() + self._seconds
        try:
            async with asyncio.timeout_at(self._until_s):
                message = await self._receive()
        except TimeoutError:
            raise answered(_slow(self._seconds), close=True) from None
        if message["type"] == "http.request":
            self._came += len(message.get("body", b""))
            self._whole = not message.get("more_body", False)
            if self._came > self._most:
                raise answered(_large("a body", self._most), close=True)
        return message


async def read_body(request: Request, settings: Settings) -> bytes:
    """The body of a request as it came, packed or not.

    Args:
        request: that is bounded.
        settings: the bounds.

    Raises:
        HTTPException: it is too large or too slow, or the other end went away.
    """
    length = request.headers.get("content-length", "")
    if length.isdecimal() and (len(length) > 15 or int(length) > settings.packed_bytes):
        raise answered(_large(f"a body of {length[:15]} bytes", settings.packed_bytes), close=True)
    try:
        return b"".join([part async for part in request.stream()])
    except ClientDisconnect:
        error = InvalidError(
            "the connection ended within the body",
            expected="all of it",
            way_out="Send it again.",
            code="disconnected",
            status=400,
        )
        raise answered(error, close=True) from None


def unpack(body: bytes, encoding: str, settings: Settings) -> bytes:
    """The content of a body.

    Args:
        body: as it came.
        encoding: header `Content-Encoding`.
        settings: the bounds.

    Raises:
        InvalidError: no such encoding, or it is damaged.
        TooMuchError: it unpacks to too much; not more than that is unpacked.
    """
    encoding = encoding.strip().lower()
    if encoding in {"", "identity"}:
        return body
    if encoding not in {"gzip", "x-gzip"}:
        raise _encoding(f"Content-Encoding: {encoding[:40]}", 415)
    # 16 more than the largest window of deflate: with the header of gzip.
    reader = zlib.decompressobj(16 + zlib.MAX_WBITS)
    try:
        content = reader.decompress(body, settings.unpacked_bytes + 1)
    except zlib.error:
        raise _encoding("a body that is no gzip", 422) from None
    if len(content) > settings.unpacked_bytes:
        raise _large("a body that unpacks to more", settings.unpacked_bytes)
    if not reader.eof or reader.unused_data:
        raise _encoding("a gzip that is cut short, or has more after its end", 422)
    return content


def _encoding(found: str, status: int) -> FleetError:
    return InvalidError(
        found, expected="gzip or identity", way_out="Send it packed by gzip.", code="encoding", status=status
    )


def _large(found: str, most: int) -> FleetError:
    return TooMuchError(
        found, expected=f"at most {most:,} bytes", way_out="Send it in several posts.", code="too_large"
    )


def _slow(seconds: float) -> FleetError:
    return InvalidError(
        f"a body that was not here in {seconds:g} s",
        expected="all of it by then",
        way_out="Send it again, in smaller posts where the line is slow.",
        code="slow_body",
        status=408,
    )
