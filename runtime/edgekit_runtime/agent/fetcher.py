"""Lets python-tuf fetch through the agent's transport."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from tuf.api.exceptions import DownloadHTTPError
from tuf.ngclient.fetcher import FetcherInterface

from edgekit_runtime.agent.transport import NOT_MODIFIED, Transport

METADATA: Final = "metadata/"
TARGETS: Final = "targets/"
# The one file of a server that changes under its name.
CHANGES: Final = f"{METADATA}timestamp.json"


class Fetcher(FetcherInterface):
    """Fetches, and has what did not change sent only once.

    Args:
        transport: to the server.
    """

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._tag, self._content = "", b""

    def _fetch(self, url: str) -> Iterator[bytes]:
        answer = self._transport.get(url, tag=self._tag if url == CHANGES else "")
        if answer.status == NOT_MODIFIED and url == CHANGES and self._tag:
            yield self._content
            return
        if answer.status != 200:
            raise DownloadHTTPError(f"{url}: status {answer.status}", answer.status)
        if url != CHANGES:
            yield from answer.parts
            return
        content = []
        for part in answer.parts:
            yield part
            content.append(part)
        self._content, self._tag = b"".join(content), answer.tag
