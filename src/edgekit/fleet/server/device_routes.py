"""What devices ask of the server: to be enrolled, and to take what they tell."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Final

from anyio import to_thread
from fastapi import APIRouter, Depends, Path, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import JSONResponse, Response

from edgekit.fleet.disagreements import keeping
from edgekit.fleet.errors import DeniedError
from edgekit.fleet.identity.access import Device
from edgekit.fleet.identity.enrolment import enrol
from edgekit.fleet.server.answers import problems
from edgekit.fleet.server.auth import Common, device
from edgekit.fleet.server.bodies import read_body, unpack
from edgekit.fleet.windows import ingest

router: Final = APIRouter(tags=["devices"])
# Read in a few milliseconds, which is less than a thread costs where all of them wait for one interpreter.
QUICK_BYTES: Final = 256 << 10
DEVICE: Final = r"^[0-9A-Za-z][0-9A-Za-z._-]{0,127}$"


class Enrolment(BaseModel):
    """What a device enrols with."""

    model_config = ConfigDict(extra="forbid", strict=True)
    code: str = Field(min_length=1, max_length=256)
    device: str = Field(pattern=DEVICE)


class Enrolled(BaseModel):
    """What it gets; the token is never shown again."""

    token: str
    device: str
    channel: str
    labels: dict[str, str]


class Have(BaseModel):
    """Keys of what is stored, so that the device forgets it, and what the fleet calls the device."""

    have: list[str]
    labels: dict[str, str]


_OBJECT: Final = {"type": "object"}
_POST: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "description": "What a device tells, at most once a poll; packed by gzip with `Content-Encoding: gzip`.",
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["schema", "device", "status", "reports", "windows"],
                    "additionalProperties": False,
                    "properties": {
                        "schema": {"const": 1},
                        "device": {"type": "string", "pattern": DEVICE},
                        "status": _OBJECT,
                        "reports": {"type": "array", "items": _OBJECT},
                        "windows": {"type": "array", "items": _OBJECT},
                    },
                }
            }
        },
    }
}
_RELEASE: Final = {"type": "string", "pattern": "^[0-9a-f]{64}$"}
_LABEL: Final = {"type": "string", "maxLength": 256}
_SAMPLE: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "description": "An input on which two versions differ; packed by gzip with `Content-Encoding: gzip`.",
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["schema", "device", "key", "live", "candidate", "labels", "at_s", "payload"],
                    "additionalProperties": False,
                    "properties": {
                        "schema": {"const": 1},
                        "device": {"type": "string", "pattern": DEVICE},
                        "key": {"type": "string", "pattern": "^[0-9a-f]{8,64}$"},
                        "live": _RELEASE,
                        "candidate": _RELEASE,
                        "labels": {"type": "array", "items": _LABEL, "minItems": 2, "maxItems": 2},
                        "at_s": {"type": "integer", "minimum": 0, "maximum": 10**11},
                        "payload": {
                            "type": "string",
                            "contentEncoding": "base64",
                            "description": "a .npz: `input/…`, and where they are small `live/…` and `candidate/…`",
                        },
                    },
                }
            }
        },
    }
}
_REFUSALS: Final = problems(400, 401, 403, 408, 413, 415, 422, 429, 503)


@router.post("/v1/enrol", responses=problems(400, 403, 408, 409, 413, 422, 429, 503))
def enrolled(body: Enrolment, common: Common, request: Request) -> Enrolled:
    """Take a device into the fleet, by a code that is good for once."""
    common.enrol_rates.spend(request.client.host if request.client else "")
    found = enrol(common.fleet, body.code, body.device)
    return Enrolled(token=found.token, device=found.device, channel=found.channel, labels=dict(found.labels))


@router.post("/v1/reports", responses=_REFUSALS, openapi_extra=_POST, response_model=Have)
async def told(common: Common, sender: Annotated[Device, Depends(device)], request: Request) -> Response:
    """Store what a device tells; what is stored already is not stored twice."""
    packed = await read_body(request, common.fleet.settings)
    body = unpack(packed, request.headers.get("content-encoding", ""), common.fleet.settings)
    if len(body) <= QUICK_BYTES:
        post = ingest.read(common.fleet, sender, body)
    else:
        post = await to_thread.run_sync(ingest.read, common.fleet, sender, body, limiter=common.readers)
    try:
        taken = await asyncio.wrap_future(common.writer.submit(post))
    except DeniedError:
        common.senders.drop(sender)
        raise
    new = taken.windows
    common.metrics.windows.labels("new").inc(new)
    common.metrics.windows.labels("known").inc(len(post.windows) - new)
    return JSONResponse({"have": taken.have, "labels": dict(taken.labels)})


@router.post("/devices/{name}", responses=_REFUSALS, openapi_extra=_POST, response_model=Have)
async def told_by_name(
    name: Annotated[str, Path(pattern=DEVICE)],
    common: Common,
    sender: Annotated[Device, Depends(device)],
    request: Request,
) -> Response:
    """Store what a device tells; the address that agents use."""
    _check_name(name, sender)
    return await told(common, sender, request)


@router.post("/devices/{name}/disagreements", responses=_REFUSALS, openapi_extra=_SAMPLE, response_model=Have)
async def differed(
    name: Annotated[str, Path(pattern=DEVICE)],
    common: Common,
    sender: Annotated[Device, Depends(device)],
    request: Request,
) -> Response:
    """Keep an input whose answers differ, where it was asked for; what was not is answered as if it were kept."""
    _check_name(name, sender)
    packed = await read_body(request, common.fleet.settings)
    body = unpack(packed, request.headers.get("content-encoding", ""), common.fleet.settings)
    try:
        taken = await to_thread.run_sync(keeping.take, common.fleet, sender, body, limiter=common.readers)
    except DeniedError:
        common.senders.drop(sender)
        raise
    return JSONResponse({"have": taken.have, "labels": dict(taken.labels)})


def _check_name(name: str, sender: Device) -> None:
    if name != sender.id:
        raise DeniedError(
            f"the address of device {name!r} with the token of {sender.id!r}",
            expected="the address of the device whose token it is",
            way_out="Give each device the token that it enrolled with.",
            code="other_device",
        )
