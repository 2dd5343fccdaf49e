"""What admins ask: tokens, keys, the audit log, webhooks."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Final

from fastapi import APIRouter, Depends, Path, Query

from edgekit.fleet.conduct import webhooks
from edgekit.fleet.identity import access
from edgekit.fleet.identity.access import ADMINISTER, READ, Actor
from edgekit.fleet.releases import rotation
from edgekit.fleet.server import api_models as api
from edgekit.fleet.server.auth import Common, needs
from edgekit.fleet.storage import audit
from edgekit.fleet.storage.audit import Head
from edgekit.fleet.trust import pending as proposals
from edgekit.fleet.trust.keys import read_public
from edgekit.fleet.windows import views

router: Final = APIRouter()

Admin = Annotated[Actor, Depends(needs(ADMINISTER))]
Made = Annotated[str, Path(pattern=api.SMALL_ID)]


@router.post("/tokens", status_code=201, tags=["tokens"])
def make_token(body: api.TokenAsked, common: Common, actor: Admin) -> api.NewToken:
    """Make a token."""
    token = access.make_token(common.fleet, actor, name=body.name, role=body.role, days=body.days)
    return api.NewToken(token=token)


@router.get("/tokens", tags=["tokens"])
def tokens(common: Common, actor: Admin) -> api.Tokens:
    """All tokens, newest first."""
    del actor
    with common.fleet.database.reading() as connection:
        found = access.listed_tokens(connection)
    return api.Tokens(tokens=[api.Token(**asdict(each)) for each in found])


@router.delete("/tokens/{token}", status_code=204, tags=["tokens"])
def revoke_token(token: Made, common: Common, actor: Admin) -> None:
    """Take a token back, for good."""
    access.revoke_token(common.fleet, actor, token)


@router.get("/keys", tags=["signatures"])
def keys(common: Common, actor: Annotated[Actor, Depends(needs(READ))]) -> api.Keys:
    """Who signs what."""
    del actor
    return api.Keys(roles=[api.RoleKeys(**asdict(each)) for each in rotation.listed(common.fleet)])


@router.post("/rotation", status_code=201, tags=["signatures"])
def rotate(body: api.KeysAsked, common: Common, actor: Admin) -> api.Rotation:
    """Propose other keys, for the owners of the offline keys to sign."""
    add = [read_public(each.encode("utf-8", "replace"), "add") for each in body.add]
    found = rotation.propose(
        common.fleet, actor, body.roles, add=add, remove=body.remove, threshold=body.threshold, lost=body.lost
    )
    return api.Rotation(lines=list(proposals.describe(found.pending)), made=list(found.made))


@router.delete("/rotation", status_code=204, tags=["signatures"])
def withdraw(common: Common, actor: Admin) -> None:
    """Take back a change of keys that waits."""
    rotation.withdraw(common.fleet, actor)


@router.get("/audit", tags=["audit"])
def log(
    common: Common,
    actor: Annotated[Actor, Depends(needs(READ))],
    before: api.Serial = 0,
    limit: api.Limit = 100,
) -> api.AuditRows:
    """Who did what, newest first."""
    del actor
    with common.fleet.database.reading() as connection:
        rows = views.audit_page(connection, before=before, limit=limit)
    return api.AuditRows(rows=[api.AuditRow(**each) for each in rows])


@router.get("/audit/verify", tags=["audit"])
def verify(
    common: Common,
    actor: Annotated[Actor, Depends(needs(READ))],
    sequence: api.Serial = 0,
    digest: Annotated[str, Query(alias="hash", pattern="^([0-9a-f]{64})?$")] = "",
) -> api.AuditVerdict:
    """Whether the log is whole, and still has a row that was noted before."""
    del actor
    known = Head(sequence, digest) if digest else None
    with common.fleet.database.reading() as connection:
        broken, end = audit.verify(connection, known), audit.head(connection)
    return api.AuditVerdict(
        whole=broken is None, sequence=end.sequence, hash=end.hash,
        broken_at=broken.sequence if broken else None, why=broken.why if broken else "",
    )  # fmt: skip


@router.post("/webhooks", status_code=201, tags=["webhooks"])
def add(body: api.WebhookAsked, common: Common, actor: Admin) -> api.NewWebhook:
    """Tell decisions to an address."""
    made = webhooks.add(common.fleet, actor, url=body.url, events=body.events)
    return api.NewWebhook(id=made.id, secret=made.secret)


@router.get("/webhooks", tags=["webhooks"])
def webhooks_listed(common: Common, actor: Admin) -> api.Webhooks:
    """All webhooks, and how the last deliveries went."""
    del actor
    with common.fleet.database.reading() as connection:
        found = webhooks.listed(connection)
    return api.Webhooks(webhooks=[api.Webhook(**asdict(each)) for each in found])


@router.delete("/webhooks/{webhook}", status_code=204, tags=["webhooks"])
def remove(webhook: Made, common: Common, actor: Admin) -> None:
    """Tell an address nothing more."""
    webhooks.remove(common.fleet, actor, webhook)
