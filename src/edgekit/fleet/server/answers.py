"""How errors leave the server: as JSON that says what, what was expected and the way out, with a stable code."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.routing import Match

from edgekit.fleet.errors import DeniedError, FleetError, UnavailableError

log = logging.getLogger(__name__)

# Seconds after which what is busy or away is asked again.
RETRY_S: Final = 5
METHODS: Final = ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT")


class Problem(BaseModel):
    """Why a request was refused.

    Attributes:
        code: stable name for machines.
        what: the thing and the value found.
        expected: what would have been right.
        way_out: what to do about it.
    """

    code: str
    what: str
    expected: str
    way_out: str


_SAID: Final[Mapping[int, str]] = {
    400: "The request cannot be read.",
    401: "No token, or none that is valid.",
    403: "Who asks may not.",
    404: "There is no such thing.",
    405: "The address knows another method.",
    408: "The body took too long.",
    409: "It is there already, or somebody else was quicker.",
    413: "More than is taken.",
    415: "A body in an encoding that is not known.",
    416: "The stretch is not within the file.",
    422: "What was given breaks the contract.",
    429: "More often than is taken.",
    500: "A fault of the server; its log has the trace.",
    503: "The database or the blobs do not answer now.",
}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The errors of a route, for its documentation.

    Args:
        statuses: of HTTP.
    """
    return {status: {"model": Problem, "description": _SAID[status]} for status in statuses}


def tree_of(error: FleetError) -> dict[str, str]:
    """An error as JSON values."""
    found = Problem(code=error.code, what=error.what, expected=error.expected, way_out=error.way_out)
    return {name: str(value) for name, value in found.model_dump().items()}


def answered(error: FleetError, *, close: bool = False) -> HTTPException:
    """An error in the form that any layer of the server lets through.

    Args:
        error: of the fleet.
        close: the connection, since there is a body on it that nobody will read.
    """
    headers = headers_of(error)
    if close:
        headers["Connection"] = "close"
    return HTTPException(error.status, tree_of(error), headers)  # type: ignore[arg-type] # any JSON does


def headers_of(error: FleetError) -> dict[str, str]:
    """Headers that belong to an error."""
    if isinstance(error, DeniedError) and error.status == 401:
        return {"WWW-Authenticate": "Bearer"}
    wait_s = getattr(error, "wait_s", None)
    if wait_s is not None:
        return {"Retry-After": str(max(1, math.ceil(wait_s)))}
    return {"Retry-After": str(RETRY_S)} if isinstance(error, UnavailableError) else {}


def handle_errors(app: FastAPI) -> None:
    """Let an app answer every error in this form."""
    app.add_exception_handler(FleetError, _fleet_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(Exception, _fault)


async def _fleet_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, FleetError)
    if error.status >= 500:
        log.warning("%s: %s", request.url.path, error.what)
    return JSONResponse(tree_of(error), error.status, headers_of(error))


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    detail: Any = error.detail
    if not isinstance(detail, dict):
        detail = _plain(f"http_{error.status_code}", f"{request.method} {request.url.path[:200]}: {detail}")
    headers = dict(error.headers or {})
    if error.status_code == 405:
        headers["Allow"] = ", ".join(_methods(request))
    return JSONResponse(detail, error.status_code, headers)


def _methods(request: Request) -> list[str]:
    """All methods of a path; the framework tells those of its first route only."""
    scopes = {method: {**request.scope, "method": method} for method in METHODS}
    routes = request.app.routes
    return [
        method
        for method, scope in scopes.items()
        if any(route.matches(scope)[0] == Match.FULL for route in routes)
    ]


async def _invalid(request: Request, error: Exception) -> Response:
    del request
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    return JSONResponse(_plain("contract", f"{where[:200]}: {first['msg'][:300]}"), 422)


async def _fault(request: Request, error: Exception) -> Response:
    log.error("%s %s", request.method, request.url.path, exc_info=error)
    return JSONResponse(_plain("fault", "a fault of the server"), 500)


def _plain(code: str, what: str) -> dict[str, str]:
    return {
        "code": code,
        "what": what,
        "expected": "a request as /openapi.json describes it",
        "way_out": "Correct the request; where the server is at fault, its log has the trace.",
    }
