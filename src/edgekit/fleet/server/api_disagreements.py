"""Inputs on which two versions differ: which there are, what they hold, and how they are deleted."""

from __future__ import annotations

from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Path
from starlette.responses import Response

from edgekit.fleet.conduct import steering
from edgekit.fleet.disagreements import reading
from edgekit.fleet.errors import FleetError
from edgekit.fleet.identity.access import OPERATE, READ, Actor
from edgekit.fleet.releases import publication
from edgekit.fleet.server import api_models as api
from edgekit.fleet.server.auth import Common, needs
from edgekit.fleet.server.device_routes import DEVICE
from edgekit.fleet.windows import views

router: Final = APIRouter(tags=["disagreements"])

Reader = Annotated[Actor, Depends(needs(READ))]
Operator = Annotated[Actor, Depends(needs(OPERATE))]
_NPZ: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "description": "A `.npz`: `input/…`, and where they are small `live/…` and `candidate/…`.",
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}


@router.get("/rollouts/{rollout}/disagreements")
def disagreements(
    rollout: api.RolloutId, common: Common, actor: Reader, before: api.Serial = 0, limit: api.Limit = 100
) -> api.Disagreements:
    """Which there are of a rollout, newest first."""
    del actor
    with common.fleet.database.reading() as connection:
        views.rollout(connection, rollout)
        found = reading.listed(connection, rollout, before=before, limit=limit)
    return api.Disagreements(disagreements=[api.Disagreement(**each) for each in found])


@router.get("/disagreements/{number}/payload", responses=_NPZ, response_class=Response)
def payload(number: Annotated[int, Path(ge=1, le=2**62)], common: Common, actor: Operator) -> Response:
    """What one holds; the audit log tells who asked."""
    found = reading.payload(common.fleet, actor, number)
    headers = {
        "Content-Disposition": f'attachment; filename="{found.name}"', "X-Content-Type-Options": "nosniff",
        "Cache-Control": "no-store",
    }  # fmt: skip
    return Response(found.content, headers=headers, media_type="application/octet-stream")


@router.delete("/devices/{device}/disagreements", status_code=204)
def erase_device(device: Annotated[str, Path(pattern=DEVICE)], common: Common, actor: Operator) -> None:
    """Delete all of a device, and take none of rollouts that began until now."""
    reading.erase_device(common.fleet, actor, device)


@router.delete("/rollouts/{rollout}/disagreements", status_code=204)
def erase_rollout(rollout: api.RolloutId, common: Common, actor: Operator) -> None:
    """Delete all of a rollout, and let it ask devices for no more."""
    steering.erase_disagreements(common.fleet, actor, rollout)
    try:
        publication.publish(common.fleet)
    except FleetError as error:
        # The conductor does it soon; until then what devices send is not kept.
        publication.log.warning("not published yet: %s", error.what)
