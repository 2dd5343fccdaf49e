"""Whether this server can work, and its figures: for whatever watches over it."""

from __future__ import annotations

from typing import Final

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.responses import JSONResponse, Response

from edgekit.fleet.server.auth import Common

router: Final = APIRouter(tags=["operations"])
_TEXT: Final = "text/plain; version=0.0.4; charset=utf-8"


class Part(BaseModel):
    """One thing that the server needs.

    Attributes:
        ok: whether it answers.
        ms: that the answer took.
        why: it does not.
    """

    ok: bool
    ms: float
    why: str


class Health(BaseModel):
    """How the server stands.

    Attributes:
        ok: whether all of it answers.
        database: of the fleet.
        blobs: releases and metadata.
        waiting: posts that wait for the database, in this process.
    """

    ok: bool
    database: Part
    blobs: Part
    waiting: int


@router.get(
    "/healthz", response_model=Health, responses={503: {"model": Health, "description": "A part fails."}}
)
def healthy(common: Common) -> Response:
    """Whether database and blobs can be read and written."""
    found = common.probes.found().items()
    parts = {name: Part(ok=not each.why, ms=each.ms, why=each.why) for name, each in found}
    ok = all(part.ok for part in parts.values())
    health = Health(ok=ok, waiting=common.writer.waiting, **parts)
    return JSONResponse(health.model_dump(), 200 if ok else 503, {"Cache-Control": "no-store"})


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}, "description": "Figures."}},
)
def figures(common: Common) -> Response:
    """Figures in the text format of Prometheus."""
    return Response(common.metrics.text(common.writer.waiting), media_type=_TEXT)
