"""Runs the server: processes that answer, and beside them, in the process that watches over those, what acts by itself.

`kill` of the parent ends all of it in order: no connection is cut within a request, posts that wait are stored.
"""

from __future__ import annotations

import gc
import logging
import os
import secrets
import signal
import socket
import ssl
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import uvicorn
from fastapi import FastAPI
from uvicorn.supervisors import Multiprocess

from edgekit.fleet.background import Repeated
from edgekit.fleet.conduct import conductor, webhooks
from edgekit.fleet.context import Fleet
from edgekit.fleet.errors import InvalidError
from edgekit.fleet.operations import retention
from edgekit.fleet.releases import offers
from edgekit.fleet.server import metrics
from edgekit.fleet.server.app import create_app
from edgekit.fleet.server.lines import BoundedLine
from edgekit.fleet.windows import merging

log = logging.getLogger(__name__)

# By which a process that answers is told what it serves.
FOLDER: Final = "EDGEKIT_FLEET_DIR"
PARENT: Final = "EDGEKIT_FLEET_PARENT"
GRACE_S: Final = 15
MOST_PROCESSES: Final = 64
# Requests of one process at once; more are answered 503.
MOST_REQUESTS: Final = 2000


# (fleet, name of this process among all servers) → what acts by itself.
BACKGROUND: Final[tuple[Callable[[Fleet, str], Repeated], ...]] = tuple(
    each.repeated for each in (merging, conductor, offers, webhooks, retention)
)


def serve(
    folder: Path,
    *,
    told: Callable[[str], None],
    host: str = "127.0.0.1",
    port: int = 8080,
    processes: int = 1,
) -> None:
    """Serve a fleet until SIGTERM or Ctrl-C.

    Args:
        folder: of the fleet.
        told: is given the address once there is one.
        host: address to listen on.
        port: to listen on; 0 for any that is free.
        processes: that answer.

    Raises:
        FleetError: settings, database or blobs cannot be used, or the address.
    """
    if not 1 <= processes <= MOST_PROCESSES:
        raise _bad(f"{processes} processes", f"from 1 to {MOST_PROCESSES}")
    fleet = Fleet.open(folder)
    try:
        with (
            tempfile.TemporaryDirectory(prefix="edgekit-metrics-") as figures,
            _listening(host, port) as listener,
        ):
            os.environ |= {FOLDER: str(folder), PARENT: str(os.getpid()), metrics.FOLDER: figures}
            config = _config(fleet, processes)
            scheme = "https" if fleet.settings.tls_certificate else "http"
            told("{}://{}:{}".format(scheme, *listener.getsockname()[:2]))
            _run(fleet, config, listener)
    finally:
        fleet.close()


def application() -> FastAPI:
    """The app of a process that answers; the environment names its fleet."""
    threading.Thread(target=_end_with_parent, args=(int(os.environ[PARENT]),), daemon=True).start()
    app = create_app(Fleet.open(Path(os.environ[FOLDER])))
    _keep_what_is_there()
    return app


def _run(fleet: Fleet, config: uvicorn.Config, listener: socket.socket) -> None:
    holder = f"{socket.gethostname()[:80]}-{os.getpid()}-{secrets.token_hex(4)}"
    # It takes over the signals, so it comes first.
    supervisor = Multiprocess(config, sockets=[listener])
    acting = [make(fleet, holder) for make in BACKGROUND]
    for each in acting:
        each.start()
    _keep_what_is_there()
    try:
        supervisor.run()
    finally:
        for each in acting:
            each.stop()


def _keep_what_is_there() -> None:
    """Leave modules and routes out of later collections, each of which would stop all threads for 0.2 s."""
    gc.collect()
    gc.freeze()


def _config(fleet: Fleet, processes: int) -> uvicorn.Config:
    settings = fleet.settings
    tls: dict[str, Any] = {}
    if settings.tls_certificate:
        tls = {"ssl_certfile": settings.tls_certificate, "ssl_keyfile": settings.tls_key}
        _check_tls(settings.tls_certificate, settings.tls_key)
    return uvicorn.Config(
        f"{__name__}:application",
        factory=True,
        workers=processes,
        http=BoundedLine,
        loop="uvloop",
        lifespan="on",
        log_level="warning",
        access_log=False,
        server_header=False,
        date_header=True,
        proxy_headers=bool(settings.trusted_proxies),
        forwarded_allow_ips=settings.trusted_proxies or None,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=GRACE_S,
        limit_concurrency=MOST_REQUESTS,
        **tls,
    )


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        raise _bad(f"{host}:{port}: {error}", "an address of this machine that is free") from error
    listener.set_inheritable(True)
    return listener


def _check_tls(certificate: str, key: str) -> None:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key)
    except OSError as error:
        raise _bad(f"{certificate} and {key}: {error}", "a certificate and its key, in PEM") from error


def _end_with_parent(parent: int) -> None:
    """A process whose parent was killed would keep the address from the next one."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGTERM)


def _bad(found: str, expected: str) -> InvalidError:
    return InvalidError(found, expected=expected, way_out="See `edgekit fleet serve --help`.", code="serve")
