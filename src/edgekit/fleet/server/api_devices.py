"""What operators ask of devices: which there are, and how they come in, change and leave."""

from __future__ import annotations

from typing import Annotated, Final

from fastapi import APIRouter, Depends, Path, Query

from edgekit.fleet.identity import enrolment
from edgekit.fleet.identity.access import OPERATE, READ, Actor
from edgekit.fleet.server import api_models as api
from edgekit.fleet.server.auth import Common, needs
from edgekit.fleet.server.device_routes import DEVICE

router: Final = APIRouter(tags=["devices"])

Name = Annotated[str, Path(pattern=DEVICE)]
Reader = Annotated[Actor, Depends(needs(READ))]
Operator = Annotated[Actor, Depends(needs(OPERATE))]


@router.get("/devices")
def devices(
    common: Common,
    actor: Reader,
    search: api.Search = "",
    cohort: Annotated[str, Query(max_length=1024, pattern=api.PLAIN)] = "",
    channel: api.Search = "",
    after: api.Search = "",
    limit: api.Limit = 50,
) -> api.Devices:
    """Devices by id, a page at a time."""
    del actor
    with common.fleet.database.reading() as connection:
        page = enrolment.find(
            connection, search=search, cohort=cohort, channel=channel, after=after, limit=limit
        )
    return api.Devices(devices=[api.Device(**each) for each in page.devices], after=page.after)


@router.get("/devices/{device}")
def device_of(device: Name, common: Common, actor: Reader) -> api.Device:
    """One device."""
    del actor
    return _device(common, device)


@router.put("/devices/{device}/labels")
def labels(device: Name, body: api.LabelsAsked, common: Common, actor: Operator) -> api.Device:
    """Give a device other labels."""
    enrolment.set_labels(common.fleet, actor, device, body.labels)
    return _device(common, device)


@router.put("/devices/{device}/channel")
def channel_of(device: Name, body: api.ChannelAsked, common: Common, actor: Operator) -> api.Device:
    """Count a device to another channel."""
    enrolment.set_channel(common.fleet, actor, device, body.channel)
    return _device(common, device)


@router.post("/devices/{device}/revoke")
def revoke(device: Name, common: Common, actor: Operator) -> api.Device:
    """Refuse a device from now on."""
    enrolment.revoke(common.fleet, actor, device)
    return _device(common, device)


@router.post("/devices/{device}/allow")
def allow(device: Name, common: Common, actor: Operator) -> api.Device:
    """Let a device enrol again, with a new code."""
    enrolment.allow_again(common.fleet, actor, device)
    return _device(common, device)


@router.delete("/devices/{device}", status_code=204)
def forget(device: Name, common: Common, actor: Operator) -> None:
    """Delete a device and all that it told."""
    enrolment.forget(common.fleet, actor, device)


@router.post("/codes", status_code=201)
def codes(body: api.CodesAsked, common: Common, actor: Operator) -> api.Codes:
    """Make codes, each of which lets one device in, once."""
    made = [
        enrolment.make_code(
            common.fleet, actor, labels=body.labels, channel=body.channel, seconds=body.seconds
        )
        for _ in range(body.count)
    ]
    return api.Codes(codes=[api.Code(code=each.code, expires_s=each.expires_s) for each in made])


def _device(common: Common, device: str) -> api.Device:
    with common.fleet.database.reading() as connection:
        return api.Device(**enrolment.read_device(connection, device))
