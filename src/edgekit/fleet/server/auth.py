"""Who asks: a bearer token to a person, a program or a device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Final

from fastapi import Depends
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.concurrency import run_in_threadpool

from edgekit.fleet.errors import DeniedError
from edgekit.fleet.identity.access import Actor, Device, authenticated, device_of, hashed
from edgekit.fleet.server.state import Shared, shared

_API: Final = HTTPBearer(
    auto_error=False, scheme_name="token", description="`edgk_…`, of a person or a program"
)
_DEVICE: Final = HTTPBearer(auto_error=False, scheme_name="device", description="`edgd_…`, of a device")

Common = Annotated[Shared, Depends(shared)]


def needs(permission: str) -> Callable[..., Actor]:
    """A dependency: the actor, where the role of the token allows something.

    Args:
        permission: one of those of `edgekit.fleet.identity.access`.
    """

    def actor(
        common: Common, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_API)]
    ) -> Actor:
        token = _token(credentials)
        with common.fleet.database.reading() as connection:
            found = authenticated(connection, token, common.fleet.now())
        common.api_rates.spend(hashed(token))
        found.check(permission)
        return found

    return actor


async def device(
    common: Common, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_DEVICE)]
) -> Device:
    """A dependency: the device whose token it is, or was a while ago; `ingest.store` looks again."""
    token = _token(credentials)
    found = common.senders.get(hashed(token))
    if found is None:
        found = await run_in_threadpool(_device, common, token)
        common.senders.add(found)
    common.device_rates.spend(found.id)
    return found


def _device(common: Shared, token: str) -> Device:
    with common.fleet.database.reading() as connection:
        return device_of(connection, token)


def _token(credentials: HTTPAuthorizationCredentials | None) -> str:
    if credentials is None:
        raise DeniedError(
            "no token",
            expected="a header `Authorization: Bearer …`",
            way_out="Give the token that the fleet gave out; a device enrols first.",
            code="unauthorized",
            status=401,
        )
    return credentials.credentials
