"""A real server of the fleet for tests, on a port of its own in this process."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from edgekit.fleet.client import Client, Place
from edgekit.fleet.identity.access import Actor, make_token
from edgekit.fleet.server import api_routes
from edgekit.fleet.server.app import ROUTERS, create_app
from edgekit.fleet.server.lines import BoundedLine
from support.fleets import World

OWNER = Actor("owner", "admin")


def app_of(world: World):  # type: ignore[no-untyped-def]
    """The app, with what people ask."""
    app = create_app(world.fleet)
    if api_routes.router not in ROUTERS:
        app.include_router(api_routes.router)
    return app


@contextmanager
def serving(world: World) -> Iterator[str]:
    """Its address, while it answers."""
    config = uvicorn.Config(
        app_of(world),
        port=0,
        log_level="error",
        access_log=False,
        timeout_graceful_shutdown=1,
        http=BoundedLine,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until = time.monotonic() + 20
    while not server.started:
        if time.monotonic() > until or not thread.is_alive():
            raise RuntimeError("the server did not start")
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(10)


def client(world: World, address: str, role: str = "admin") -> Client:
    """A client with a token of a role."""
    token = make_token(world.fleet, OWNER, name=role, role=role)
    return Client(Place(address, token), sleep=lambda _: None)
