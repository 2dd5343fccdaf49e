"""The port at which Prometheus asks for figures, where there is one: a server of HTTP takes long to import."""

from __future__ import annotations

import socketserver
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final

from edgekit_runtime.errors import InputError

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
LOOPBACK: Final = "127.0.0.1"


class Endpoint:
    """Answers `GET /metrics` until it is closed.

    Args:
        address: "127.0.0.1:9464", or ":9464" for every address of this device; port 0 takes any that is free.
        text: what to answer.

    Raises:
        InputError: the address cannot be listened at.
    """

    def __init__(self, address: str, text: Callable[[], str]) -> None:
        host, colon, port = address.rpartition(":")
        try:
            self._server = _Server((host, int(port) if colon else -1), _handler(text))
        except (OSError, ValueError, OverflowError) as error:
            raise InputError(
                f"{address!r}: {error}",
                expected=f"an address such as {LOOPBACK}:9464 that nobody listens at",
                way_out="Choose another port.",
                code="metrics",
            ) from error
        self._server.daemon_threads = True
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="edgekit-metrics", daemon=True
        )
        self._thread.start()

    @property
    def port(self) -> int:
        """That it listens at."""
        return int(self._server.server_address[1])

    def close(self) -> None:
        """Answer no more."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    def server_bind(self) -> None:
        """Without the question for this device's name, which may wait for a server of names that is not there."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]


def _handler(text: Callable[[], str]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = 10

        def do_GET(self) -> None:
            if self.path.partition("?")[0] not in {"/", "/metrics"}:
                self.send_error(404)
                return
            body = text().encode()
            self.send_response(200)
            self.send_header("Content-Type", CONTENT_TYPE)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing: a scrape every few seconds is no news."""

    return Handler
