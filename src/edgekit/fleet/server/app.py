"""The app: routes from a literal table, bounds and figures around them, one form for every error."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib import metadata
from typing import Any, Final

from fastapi import APIRouter, FastAPI
from starlette.concurrency import run_in_threadpool
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edgekit.fleet.context import Fleet
from edgekit.fleet.server import api_routes, device_routes, health, static_routes
from edgekit.fleet.server.answers import handle_errors
from edgekit.fleet.server.bodies import BoundedBodies
from edgekit.fleet.server.dashboard import routes as dashboard
from edgekit.fleet.server.metrics import Metrics
from edgekit.fleet.server.state import Shared
from edgekit.fleet.server.tracing import trace
from edgekit.fleet.windows.ingest import Writer

ROUTERS: Final[tuple[APIRouter, ...]] = (
    device_routes.router,
    static_routes.router,
    health.router,
    api_routes.router,
    dashboard.router,
)


def create_app(fleet: Fleet) -> FastAPI:
    """An app that serves a fleet; it stores posts while its lifespan lasts.

    Args:
        fleet: of this process.
    """
    writer = Writer(fleet)
    at_end: list[Callable[[], None]] = []

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        del app
        writer.start()
        yield
        for end in at_end:
            await run_in_threadpool(end)

    app = FastAPI(
        title="edgekit fleet",
        version=metadata.version("edgekit"),
        lifespan=lifespan,
        # Pages of these would fetch scripts from elsewhere.
        docs_url=None,
        redoc_url=None,
        # What an address with or without its slash is not, is not there; a redirect would be an undocumented answer.
        redirect_slashes=False,
    )
    common = Shared(fleet, writer, Metrics(fleet))
    app.state.shared = common
    for router in ROUTERS:
        app.include_router(router)
    handle_errors(app)
    app.add_middleware(BoundedBodies, settings=fleet.settings)
    # The last one is the outermost: what was refused for its size is counted, too.
    app.add_middleware(Counted, metrics=common.metrics)
    at_end.append(writer.stop)
    if fleet.settings.otel_endpoint:
        at_end.append(trace(app, fleet.settings.otel_endpoint))
    return app


class Counted:
    """Counts requests and what they took.

    Args:
        app: that answers.
        metrics: that it counts.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI says."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began_s, status = time.perf_counter(), 500

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watched)
        finally:
            # Addresses that no route has are of any number.
            route: Any = scope.get("route")
            name = getattr(route, "path", "none")
            self._metrics.requests.labels(name, scope["method"] if route else "any", str(status)).inc()
            self._metrics.seconds.labels(name).observe(time.perf_counter() - began_s)
