"""The comparison of two versions on real devices, and what happens while somebody watches."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Header, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import StreamingResponse

from edgekit.fleet.errors import FleetError
from edgekit.fleet.identity.access import READ, Actor
from edgekit.fleet.server import api_models as api
from edgekit.fleet.server.auth import Common, needs
from edgekit.fleet.windows import comparison, views

router: Final = APIRouter()
# Seconds between two looks at the tables, and after which a watcher asks again, which its browser does by itself.
EVERY_S, LONGEST_S = 1.0, 600.0
_EVENT_ID: Final = re.compile(r"([0-9]{1,18})-([0-9]{1,18})")
_STREAM: Final[dict[int | str, dict[str, Any]]] = {
    200: {"description": "Events `decision` and `look`, as they come.", "content": {"text/event-stream": {}}}
}


@router.get("/rollouts/{rollout}/comparison", tags=["comparison"])
def compared(
    rollout: api.RolloutId,
    common: Common,
    actor: Annotated[Actor, Depends(needs(READ))],
    part: Annotated[str, Query(alias="slice", max_length=256, pattern=api.PLAIN)] = "",
    stage: Annotated[int | None, Query(ge=0, le=100)] = None,
    since_s: api.Seconds = 0,
    step: Annotated[int, Query(ge=1, le=1440, description="minutes of a point")] = 5,
) -> api.Compared:
    """Agreement, confusion, flips by class, latency, noise floor and drift: together, and over time."""
    del actor
    with common.fleet.database.reading() as connection:
        views.rollout(connection, rollout)
        minutes = views.minutes_of(connection, rollout, part=part, stage=stage, since_s=since_s)
        slices = views.parts_of(connection, rollout)
    return api.Compared(
        total=comparison.compare(minutes).to_tree(),
        series=[each.to_tree() for each in comparison.series(minutes, step)],
        slices=slices,
    )


@router.get("/rollouts/{rollout}/arms", tags=["comparison"])
def arms(rollout: api.RolloutId, common: Common, actor: Annotated[Actor, Depends(needs(READ))]) -> api.Arms:
    """Both arms of an A/B comparison, side by side, as the gates saw them last."""
    del actor
    with common.fleet.database.reading() as connection:
        return api.Arms(**views.arms(connection, rollout))


@router.get("/events", tags=["comparison"], responses=_STREAM, response_class=StreamingResponse)
async def events(
    common: Common,
    actor: Annotated[Actor, Depends(needs(READ))],
    request: Request,
    last_event_id: Annotated[str, Header(max_length=64)] = "",
) -> StreamingResponse:
    """Decisions and looks as they come, as server-sent events; `Last-Event-ID` goes on where another ended."""
    del actor
    match = _EVENT_ID.fullmatch(last_event_id)
    at = (int(match[1]), int(match[2])) if match else await run_in_threadpool(_newest, common)
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(_told(common, request, at), media_type="text/event-stream", headers=headers)


async def _told(common: Common, request: Request, at: tuple[int, int]) -> AsyncIterator[bytes]:
    until_s = asyncio.get_running_loop().time() + LONGEST_S
    yield b"retry: 2000\n\n"
    while asyncio.get_running_loop().time() < until_s and not await request.is_disconnected():
        try:
            found = await run_in_threadpool(_news, common, at)
        except FleetError:
            # The database is away; the watcher keeps what it has, and hears of it when it is back.
            found = []
        for each in found:
            kind = each.pop("kind_of")
            at = (each["id"], at[1]) if kind == "decision" else (at[0], each["id"])
            data = json.dumps(each, sort_keys=True, default=str)
            yield f"id: {at[0]}-{at[1]}\nevent: {kind}\ndata: {data}\n\n".encode()
        if not found:
            yield b": still here\n\n"
            await asyncio.sleep(EVERY_S)


def _newest(common: Common) -> tuple[int, int]:
    with common.fleet.database.reading() as connection:
        return views.newest(connection)


def _news(common: Common, at: tuple[int, int]) -> list[dict[str, Any]]:
    with common.fleet.database.reading() as connection:
        return views.news(connection, *at)
