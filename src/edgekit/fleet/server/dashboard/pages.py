"""Templates and the headers of every answer; errors are pages, too."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Coroutine, Mapping
from importlib import resources
from typing import Any, Final

import jinja2
from fastapi import Request
from fastapi.routing import APIRoute
from starlette.responses import HTMLResponse, RedirectResponse, Response

from edgekit.fleet.errors import DeniedError, FleetError
from edgekit.fleet.server.answers import headers_of
from edgekit.fleet.server.dashboard import words
from edgekit.fleet.server.dashboard.sessions import Session

log = logging.getLogger(__name__)

ROOT: Final = "/dashboard"
# Scripts and styles are files of this server; nothing in a page is one, so that no text in it can become one.
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self';"
    " form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
HEADERS: Final[Mapping[str, str]] = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
FILES: Final[Mapping[str, str]] = {
    "dashboard.css": "text/css",
    "dashboard.js": "text/javascript",
    "plots.js": "text/javascript",
    "icon.svg": "image/svg+xml",
    "vendor/htmx.min.js": "text/javascript",
    "vendor/uPlot.iife.min.js": "text/javascript",
    "vendor/uPlot.min.css": "text/css",
}


def static(name: str) -> bytes | None:
    """A file for browsers, None where there is no such."""
    return _CONTENT.get(name)


def address(name: str) -> str:
    """Where a browser finds a file, and keeps it until it changes."""
    return f"{ROOT}/static/{name}?v={hashlib.sha256(_CONTENT[name]).hexdigest()[:12]}"


_FOLDER: Final = resources.files("edgekit.fleet.server.dashboard")
_CONTENT: Final = {name: (_FOLDER / "static" / name).read_bytes() for name in FILES}
_ENVIRONMENT: Final = jinja2.Environment(
    loader=jinja2.PackageLoader("edgekit.fleet.server.dashboard", "templates"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_ENVIRONMENT.filters.update(count=words.count)
_ENVIRONMENT.globals.update(root=ROOT, file=address)


def page(
    template: str, session: Session | None, *, status: int = 200, here: str = "", **shown: Any
) -> HTMLResponse:
    """A page, or a part of one.

    Args:
        template: name of the file.
        session: of who looks at it.
        status: of HTTP.
        here: entry of the menu.
        shown: to the template.
    """
    text = _ENVIRONMENT.get_template(template).render(session=session, here=here, **shown)
    return HTMLResponse(text, status, headers=dict(HEADERS))


def moved(path: str) -> RedirectResponse:
    """To another page of the dashboard, to be asked for anew."""
    return RedirectResponse(f"{ROOT}{path}", 303, headers=dict(HEADERS))


class PageRoute(APIRoute):
    """A route whose errors are pages: who is not signed in is led to where that is done."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """As FastAPI asks."""
        handle = super().get_route_handler()

        async def handled(request: Request) -> Response:
            try:
                return await handle(request)
            except FleetError as error:
                return _refused(request, error)

        return handled


def _refused(request: Request, error: FleetError) -> Response:
    part = request.headers.get("hx-request") == "true"
    if isinstance(error, DeniedError) and error.status == 401:
        if part:
            return Response(status_code=401, headers={**HEADERS, "HX-Redirect": f"{ROOT}/sign-in"})
        return moved("/sign-in")
    if error.status >= 500:
        log.warning("%s: %s", request.url.path, error.what)
    found = page("error.html", None, status=error.status, error=error)
    found.headers.update(headers_of(error))
    return found
