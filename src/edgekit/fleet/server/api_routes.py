"""What people and programs ask of the server: versions, signatures, channels and rollouts; the rest is beside it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Annotated, Any, Final

import anyio.from_thread
from fastapi import APIRouter, Depends, Path, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from edgekit.fleet.conduct import steering
from edgekit.fleet.errors import FleetError, InvalidError
from edgekit.fleet.identity.access import OPERATE, PUBLISH, READ, Actor
from edgekit.fleet.releases import publication, registry, signing
from edgekit.fleet.rules.planning import at_creation
from edgekit.fleet.rules.rollouts import OPEN
from edgekit.fleet.server import api_comparison, api_devices, api_disagreements, api_operations
from edgekit.fleet.server import api_models as api
from edgekit.fleet.server.answers import answered, problems
from edgekit.fleet.server.auth import Common, needs
from edgekit.fleet.trust import pending as proposals
from edgekit.fleet.trust.pending import Missing
from edgekit.fleet.windows import views
from edgekit.fleet.windows.merging import cohort_size

REFUSALS: Final = problems(400, 401, 403, 404, 408, 409, 413, 422, 429, 503)
router: Final = APIRouter(prefix="/v1", responses=REFUSALS)
MAX_FILE_BYTES: Final = 4 << 30
# An upload holds a thread, so one that drips may not go on for ever.
UPLOAD_BYTES_S: Final = 16 << 10

Reader = Annotated[Actor, Depends(needs(READ))]
Publisher = Annotated[Actor, Depends(needs(PUBLISH))]
Operator = Annotated[Actor, Depends(needs(OPERATE))]

_FILE: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}

# Files and versions


@router.post("/missing", tags=["versions"])
def missing(body: api.Files, common: Common, actor: Publisher) -> api.Missing:
    """Which of these files are not there yet."""
    del actor
    blobs = common.fleet.blobs
    return api.Missing(missing=[each for each in body.sha256 if blobs.size(f"blobs/{each}") is None])


@router.put("/uploads/{sha256}", tags=["versions"], openapi_extra=_FILE)
async def upload(
    sha256: Annotated[str, Path(pattern=api.ID)], common: Common, actor: Publisher, request: Request
) -> api.Uploaded:
    """Keep a file of a release under its hash, which it has to have."""
    del actor
    parts = _Parts(request, common.fleet.settings.body_s)

    def put() -> int:
        return common.fleet.blobs.put(f"blobs/{sha256}", iter(parts), max_bytes=MAX_FILE_BYTES, sha256=sha256)

    try:
        size = await run_in_threadpool(put)
    except FleetError as error:
        raise answered(error, close=True) from error
    return api.Uploaded(sha256=sha256, size_bytes=size)


@router.post("/versions", status_code=201, tags=["versions"])
def propose(body: api.Proposal, common: Common, actor: Publisher) -> api.Version:
    """Publish a version; devices may take it once enough keys signed it. The same again changes nothing."""
    found = registry.propose(
        common.fleet, actor, release=body.release, report=body.report, parent=body.parent, notes=body.notes
    )
    return _version(found)


@router.get("/versions", tags=["versions"])
def versions(common: Common, actor: Reader, model: api.Search = "", version: api.Search = "") -> api.Versions:
    """Versions, newest first."""
    del actor
    with common.fleet.database.reading() as connection:
        found = registry.listed(connection, model)
    return api.Versions(versions=[_version(each) for each in found if version in {"", each.version}])


@router.get("/versions/{release}", tags=["versions"])
def version_of(release: api.Id, common: Common, actor: Reader) -> api.Version:
    """One version."""
    del actor
    with common.fleet.database.reading() as connection:
        return _version(registry.by_id(connection, release))


@router.get("/versions/{release}/report", tags=["versions"])
def report(release: api.Id, common: Common, actor: Reader) -> dict[str, Any]:
    """The report of a version, as its bundle has it."""
    del actor
    with common.fleet.database.reading() as connection:
        registry.by_id(connection, release)
        return registry.report_of(connection, release)


@router.get("/versions/{release}/against/{other}", tags=["versions"])
def against(release: api.Id, other: api.Id, common: Common, actor: Reader) -> api.Differences:
    """The figures of a version against those of another."""
    del actor
    with common.fleet.database.reading() as connection:
        before, after = registry.by_id(connection, other), registry.by_id(connection, release)
    found = registry.compared(before, after)
    return api.Differences(figures=[api.Difference(**asdict(each)) for each in found])


@router.post("/versions/{release}/retire", tags=["versions"])
def retire(release: api.Id, body: api.Why, common: Common, actor: Publisher) -> api.Version:
    """Let no device take a version any more, once that is signed."""
    with common.fleet.database.reading() as connection:
        found = registry.by_id(connection, release)
    return _version(registry.retire(common.fleet, actor, found.model, found.version, why=body.why))


# Signatures


@router.get(
    "/targets/pending",
    tags=["signatures"],
    responses={204: {"description": "Nothing waits."}},
    response_model=api.Waiting,
)
def pending(common: Common, actor: Reader) -> Any:
    """What waits for signatures; `edgekit fleet sign` shows and signs it."""
    del actor
    found = signing.proposal(common.fleet)
    if found is None:
        return Response(status_code=204)
    return api.Waiting(
        document=found.to_bytes().decode(), lines=list(proposals.describe(found)),
        missing=[_missing(each) for each in proposals.missing(found)],
    )  # fmt: skip


@router.post("/targets", tags=["signatures"])
def sign(body: api.Document, common: Common, actor: Publisher) -> api.Signed:
    """Take signatures in; once there are enough, devices may take what they sign."""
    try:
        content = body.document.encode()
    except UnicodeEncodeError:
        content = b""
    found = signing.submit(common.fleet, actor, content)
    return api.Signed(published=found.published, missing=[_missing(each) for each in found.missing])


# Channels and rollouts


@router.get("/channels", tags=["rollouts"])
def channels(common: Common, actor: Reader) -> api.Channels:
    """Channels, and what they are settled on."""
    del actor
    with common.fleet.database.reading() as connection:
        found = views.channels_listed(connection)
    return api.Channels(channels=[api.Channel(**each) for each in found])


@router.post("/channels/{name}/settle", status_code=204, tags=["rollouts"])
def settle(
    name: Annotated[str, Path(pattern=r"^[0-9A-Za-z][0-9A-Za-z._-]{0,127}$")],
    body: api.Settle,
    common: Common,
    actor: Operator,
) -> None:
    """Settle a channel on a version: the way back after a rollout that completed."""
    steering.return_to(
        common.fleet, actor, channel=name, release=body.release, cohort=body.cohort, why=body.why
    )
    _published(common)


@router.post("/rollouts", status_code=201, tags=["rollouts"])
def create(body: api.RolloutAsked, common: Common, actor: Operator) -> api.Created:
    """Begin a rollout of a version that is signed; whether its cohort is large enough for a verdict is said."""
    plan, fleet = body.plan(), common.fleet
    found = steering.create(
        fleet, actor, model=body.model, version=body.version, channel=body.channel, plan=plan
    )
    _published(common)
    with fleet.database.reading() as connection:
        size = cohort_size(connection, found, fleet.now(), fleet.settings)
        warnings = at_creation(plan, size, baseline=bool(found.baseline))
        return api.Created(**views.rollout(connection, found.id), warnings=list(warnings))


@router.get("/rollouts", tags=["rollouts"])
def rollouts(
    common: Common,
    actor: Reader,
    model: api.Search = "",
    only_open: Annotated[bool, Query(alias="open", description="those that are not over")] = False,
    limit: api.Limit = 50,
) -> api.Rollouts:
    """Rollouts, newest first."""
    del actor
    with common.fleet.database.reading() as connection:
        found = views.rollouts_listed(connection, model=model, states=OPEN if only_open else (), limit=limit)
    return api.Rollouts(rollouts=[api.Rollout(**each) for each in found])


@router.get("/rollouts/{rollout}", tags=["rollouts"])
def rollout_of(rollout: api.RolloutId, common: Common, actor: Reader) -> api.RolloutWithLook:
    """A rollout, and what its gates said last."""
    del actor
    return _rollout(common, rollout)


@router.get("/rollouts/{rollout}/looks", tags=["rollouts"])
def looks(rollout: api.RolloutId, common: Common, actor: Reader, limit: api.Limit = 100) -> api.Looks:
    """What the gates said, newest first."""
    del actor
    with common.fleet.database.reading() as connection:
        views.rollout(connection, rollout)
        found = views.looks_of(connection, rollout, limit=limit)
    return api.Looks(looks=[api.Look(**each) for each in found])


@router.get("/rollouts/{rollout}/decisions", tags=["rollouts"])
def decisions(rollout: api.RolloutId, common: Common, actor: Reader, limit: api.Limit = 100) -> api.Decisions:
    """What was decided, newest first."""
    del actor
    with common.fleet.database.reading() as connection:
        views.rollout(connection, rollout)
        found = views.decisions_of(connection, rollout, limit=limit)
    return api.Decisions(decisions=[api.Decision(**each) for each in found])


def _said(word: str, says: str) -> None:
    def said(rollout: api.RolloutId, body: api.Why, common: Common, actor: Operator) -> api.RolloutWithLook:
        steering.said(common.fleet, actor, rollout, word, why=body.why)
        _published(common)
        return _rollout(common, rollout)

    router.add_api_route(
        f"/rollouts/{{rollout}}/{word}", said, methods=["POST"], tags=["rollouts"], name=word, description=says,
        operation_id=f"rollout_{word}",
    )  # fmt: skip


_said("pause", "Take no further step; who has the version keeps it, unless a gate fails.")
_said("resume", "Go on after a pause, or where no verdict came in time.")
_said("promote", "Take the next step without waiting for the gates.")
_said("abort", "End it; devices return to what is settled.")

for part in (api_comparison, api_devices, api_disagreements, api_operations):
    router.include_router(part.router)


class _Parts:
    """The body of a request, for a thread that writes it.

    Args:
        request: of the server's loop.
        seconds: of waiting at most; what comes gives time for more, at `UPLOAD_BYTES_S`.
    """

    def __init__(self, request: Request, seconds: float) -> None:
        self._stream, self._seconds, self._left_s = request.stream(), seconds, seconds

    def __iter__(self) -> Iterator[bytes]:
        while part := anyio.from_thread.run(self._next):
            yield part

    async def _next(self) -> bytes:
        began_s = anyio.current_time()
        try:
            with anyio.fail_after(max(0.0, self._left_s)):
                async for part in self._stream:
                    if part:
                        left_s = self._left_s - (anyio.current_time() - began_s) + len(part) / UPLOAD_BYTES_S
                        self._left_s = min(left_s, self._seconds)
                        return part
        except TimeoutError:
            raise _cut("a body that comes too slowly", "slow_body", 408) from None
        except ClientDisconnect:
            raise _cut("the connection ended within the body", "disconnected", 400) from None
        return b""


def _cut(found: str, code: str, status: int) -> InvalidError:
    return InvalidError(found, expected="all of it", way_out="Send it again.", code=code, status=status)


def _published(common: Common) -> None:
    """Let devices see at once what a person decided; where that fails the conductor does it soon."""
    try:
        publication.publish(common.fleet)
    except FleetError as error:
        publication.log.warning("not published yet: %s", error.what)


def _version(found: registry.Version) -> api.Version:
    return api.Version(**found.to_tree())


def _rollout(common: Common, rollout: str) -> api.RolloutWithLook:
    with common.fleet.database.reading() as connection:
        return api.RolloutWithLook(**views.rollout(connection, rollout))


def _missing(found: Missing) -> api.MissingSignatures:
    return api.MissingSignatures(role=found.role, count=found.count, keys=list(found.keys))
