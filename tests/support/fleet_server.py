"""The server of the tests by real HTTP: ranges, tags, packed posts."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

from edgekit_runtime.errors import NetworkError
from support.fleet import Fleet


@contextmanager
def served(fleet: Fleet, *, token: str = "") -> Iterator[str]:
    """Its address, while it answers.

    Args:
        fleet: that answers.
        token: without which nobody is answered.
    """

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if self._refused():
                return
            asked = self.headers.get("Range", "").removeprefix("bytes=").rstrip("-")
            answer = fleet.get(
                unquote(self.path).lstrip("/"), at=int(asked or 0), tag=self.headers.get("If-None-Match", "")
            )
            self.send_response(answer.status)
            self.send_header("ETag", answer.tag)
            if answer.status == 206:
                self.send_header("Content-Range", f"bytes {answer.at}-/*")
            whole = fleet.break_after is None
            parts = list(answer.parts) if whole else answer.parts
            if whole:
                self.send_header("Content-Length", str(sum(map(len, parts))))
            else:
                # More than there will be: the line breaks before the end.
                self.send_header("Content-Length", str(1 << 30))
                self.close_connection = True
            self.end_headers()
            try:
                for part in parts:
                    self.wfile.write(part)
            except NetworkError:
                self.close_connection = True

        def do_POST(self) -> None:
            if self._refused():
                return
            body = self.rfile.read(int(self.headers["Content-Length"]))
            answer = fleet.post(self.path.lstrip("/"), body)
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def _refused(self) -> bool:
            if fleet.offline or (token and self.headers.get("Authorization") != f"Bearer {token}"):
                self.send_error(503 if fleet.offline else 401)
                return True
            return False

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
