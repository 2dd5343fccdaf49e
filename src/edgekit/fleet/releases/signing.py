"""What devices may run: the change of the signed targets that waits for people, and its publication once they signed.

The server proposes: versions that were published and are not signed yet come in, those that were retired go, and what
is about to expire is to be signed as it is. The proposal stays the same while that stays the same, so that several
people can sign it one after the other, each on a machine of their own. A change of keys (`rotation`) waits in the same
place, before anything else. The rows of versions follow what is published, never the other way round.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from sqlalchemy import Connection, select, update
from tuf.api.metadata import Root, Targets  # type: ignore[attr-defined] # no `__all__`

from edgekit.fleet.context import Fleet
from edgekit.fleet.errors import ConflictError, InvalidError
from edgekit.fleet.identity.access import ADMINISTER, PUBLISH, Actor
from edgekit.fleet.releases import policies
from edgekit.fleet.releases.documents import BlobDocuments
from edgekit.fleet.releases.registry import PENDING, RETIRED, SIGNED
from edgekit.fleet.storage import audit
from edgekit.fleet.storage.tables import versions
from edgekit.fleet.trust import pending as proposals
from edgekit.fleet.trust import publishing, repository
from edgekit.fleet.trust.keys import Online, load_online
from edgekit.fleet.trust.pending import Missing, Pending
from edgekit.fleet.trust.published import Published, due, load
from edgekit_runtime.agent.fetch import release_path
from edgekit_runtime.contract import Release
from edgekit_runtime.policies import Policy

# Not below `metadata/`: what nobody signed yet is shown to nobody but people who sign.
PROPOSAL: Final = "pending/proposal.json"
MAX_PROPOSAL_BYTES: Final = 8 << 20
ATTEMPTS: Final = 5
CONDUCTOR: Final = Actor("conductor", "admin")


@dataclass(frozen=True, slots=True)
class Signed:
    """What came of signatures.

    Attributes:
        missing: that are still needed; none where it is published.
    """

    missing: tuple[Missing, ...]

    @property
    def published(self) -> bool:
        """Whether devices can see it."""
        return not self.missing


def documents_of(fleet: Fleet) -> BlobDocuments:
    """Where the signed documents of a fleet lie."""
    return BlobDocuments(fleet.blobs, fleet.database)


def online_of(fleet: Fleet) -> Online:
    """The keys that this server signs with; read each time, so that new ones take hold without a new start."""
    return load_online(fleet.settings.folder / "keys" / "online")


def moment(fleet: Fleet) -> datetime:
    """Now, in UTC."""
    return datetime.fromtimestamp(fleet.now(), UTC)


def proposal(fleet: Fleet) -> Pending | None:
    """The change of targets that waits for signatures, with those that it has; None where nothing waits.

    Raises:
        ConflictError: others changed it all the time.
    """
    documents, now = documents_of(fleet), moment(fleet)
    for _ in range(ATTEMPTS):
        stored = documents.read(PROPOSAL)
        published = load(documents)
        known = _read(stored)
        if known is not None and changes_keys(known) and _follows(known, published, now):
            # Whatever else waits is proposed again once the keys are others.
            return known
        root, targets = _wanted(fleet, published, now)
        if root is None and targets is None:
            return None
        if known is not None and _still_holds(known, root, targets, published, now):
            return known
        made = proposals.propose(
            published.roots, published.newest_targets, now, new_root=root, new_targets=targets
        )
        try:
            documents.write(PROPOSAL, made.to_bytes(), replaces=stored)
        except ConflictError:
            continue
        return made
    raise _raced()


def submit(fleet: Fleet, actor: Actor, content: bytes) -> Signed:
    """Take signatures in; once there are enough, publish what they sign.

    Args:
        fleet: of the server.
        actor: a publisher; an admin where root or the keys of policies change.
        content: of the file that was signed.

    Raises:
        DeniedError: the actor may not.
        InvalidError: it is no proposal, does not follow, or has no signature that counts.
        ConflictError: what is published or proposed is another by now.
    """
    actor.check(PUBLISH)
    if len(content) > MAX_PROPOSAL_BYTES:
        raise InvalidError(
            f"{len(content):,} bytes", expected=f"a proposal, at most {MAX_PROPOSAL_BYTES:,}",
            way_out="Send the file that `edgekit fleet sign` wrote.", code="trust_content",
        )  # fmt: skip
    offered, now = Pending.from_bytes(content), moment(fleet)
    proposals.check(offered, now)
    if offered.new_root is not None or changes_keys(offered):
        actor.check(ADMINISTER)
    documents = documents_of(fleet)
    merged = _merged(documents, offered)
    if (missing := proposals.missing(merged)) == ():
        _publish(fleet, actor, merged)
    return Signed(missing)


def _publish(fleet: Fleet, actor: Actor, pending: Pending) -> None:
    keys = changes_keys(pending)
    before = load(documents_of(fleet))
    publishing.submit(
        documents_of(fleet), online_of(fleet), pending, moment(fleet), releases=_documents(fleet, pending),
        delegation_may_change=actor.may(ADMINISTER),
        # New keys sign what the database says, not what somebody with the old ones may have published.
        policies=_policies(fleet, before, pending) if keys else None, anew=keys,
    )  # fmt: skip
    follow(fleet, actor)
    if keys and (before.roots, before.newest_targets) == (pending.roots, pending.targets):
        note(fleet, actor, "keys.changed", pending)


def note(fleet: Fleet, actor: Actor, action: str, pending: Pending) -> None:
    """Tell the audit log of a change of keys."""
    parts = {role: each.signed.version for role, (each, _) in pending.new_parts().items()}
    detail = {"lines": [line[:200] for line in proposals.describe(pending)[:100]], **parts}
    subject, now_s = " ".join(parts), int(fleet.now())
    fleet.database.write(
        lambda connection: audit.append(connection, actor.name, action, subject, detail, now_s)
    )


def _policies(fleet: Fleet, published: Published, pending: Pending) -> Mapping[str, Policy]:
    targets = pending.new_targets or published.newest_targets
    with fleet.database.reading() as connection:
        rules = policies.rules_of(connection, disagreements=fleet.settings.disagreements_per_device > 0)
    return policies.wanted(rules, targets.signed.targets if targets else {}).policies


def follow(fleet: Fleet, actor: Actor = CONDUCTOR) -> None:
    """Bring the states of versions up to what is published, after a server that was cut off in between, too."""
    published = load(documents_of(fleet))
    if published.targets is None:
        return
    now_s, known = int(fleet.now()), published.targets.signed.targets

    def work(connection: Connection) -> None:
        rows = connection.execute(select(versions.c.id).where(versions.c.state == PENDING))
        signed = [row.id for row in rows if release_path(row.id) in known]
        for each in signed:
            connection.execute(update(versions).where(versions.c.id == each).values(state=SIGNED))
            audit.append(connection, actor.name, "version.signed", each, {}, now_s)

    with fleet.database.reading() as connection:
        waiting = connection.scalars(select(versions.c.id).where(versions.c.state == PENDING)).all()
    if any(release_path(each) in known for each in waiting):
        fleet.database.write(work)


def _wanted(fleet: Fleet, published: Published, now: datetime) -> tuple[Root | None, Targets | None]:
    """What people should sign: versions, else what is about to expire; root by itself, so that no version waits."""
    targets = _by_versions(fleet, published)
    ends = due(published, now)
    if targets is None and "targets" in ends and published.newest_targets is not None:
        targets = published.newest_targets.signed
    return (published.root.signed if targets is None and "root" in ends else None), targets


def _by_versions(fleet: Fleet, published: Published) -> Targets | None:
    """What targets should say by the table of versions; None where they say it."""
    if published.newest_targets is None:
        published.root  # noqa: B018 - says that nothing is published
        return None
    targets = published.newest_targets.signed
    query = select(versions.c.id, versions.c.state, versions.c.release).order_by(
        versions.c.published_s, versions.c.id
    )
    with fleet.database.reading() as connection:
        rows = connection.execute(query.where(versions.c.state.in_((PENDING, RETIRED)))).all()
    new = [row for row in rows if row.state == PENDING and release_path(row.id) not in targets.targets]
    gone = [row.id for row in rows if row.state == RETIRED and release_path(row.id) in targets.targets]
    if not new and not gone:
        return None
    for row in new:
        targets = repository.add_release(targets, Release.from_json(row.release))
    return repository.retire(targets, gone)


def changes_keys(pending: Pending) -> bool:
    """Whether a proposal names other keys than those that hold, and not only new versions or a new expiry."""
    root, new_root = pending.root, pending.new_root
    targets, new_targets = pending.targets, pending.new_targets
    if new_root is not None and (
        root is None or (root.signed.roles, root.signed.keys) != (new_root.signed.roles, new_root.signed.keys)
    ):
        return True
    return bool(targets and new_targets and targets.signed.delegations != new_targets.signed.delegations)


def _still_holds(
    known: Pending, root: Root | None, targets: Targets | None, published: Published, now: datetime
) -> bool:
    new = known.new_targets
    return (
        not changes_keys(known)
        and (known.new_root is None) == (root is None)
        and (new is None) == (targets is None)
        and (new is None or targets is None or new.signed.targets == targets.targets)
        and _follows(known, published, now)
    )


def _read(stored: bytes | None) -> Pending | None:
    """What waits; None where nothing does, or what somebody wrote there is no proposal."""
    try:
        return Pending.from_bytes(stored) if stored else None
    except InvalidError:
        return None


def _follows(known: Pending, published: Published, now: datetime) -> bool:
    """Whether a proposal is of what is published now, and what it says is to live long enough."""
    return (
        known.roots == published.roots
        and known.targets == published.newest_targets
        and not any(
            repository.is_due(each.signed, role, now) for role, (each, _) in known.new_parts().items()
        )
    )


def _merged(documents: BlobDocuments, offered: Pending) -> Pending:
    """The signatures of all, kept for those who sign later."""
    for _ in range(ATTEMPTS):
        stored = documents.read(PROPOSAL)
        known = _read(stored)
        if known is None or _parts(known) != _parts(offered):
            # Whole as it is it needs no other's signature; else it would put what the server proposed aside.
            if proposals.missing(offered):
                raise ConflictError(
                    "what was signed is not what waits for signatures now",
                    expected="the proposal as the server has it",
                    way_out="Fetch it again, look at it and sign it: `edgekit fleet sign`.",
                    code="proposal_changed",
                )
            return offered
        merged = proposals.merge(known, offered)
        content = merged.to_bytes()
        if content == stored:
            return merged
        try:
            documents.write(PROPOSAL, content, replaces=stored)
        except ConflictError:
            continue
        return merged
    raise _raced()


def _parts(pending: Pending) -> dict[str, object]:
    return {role: each[0].signed for role, each in pending.new_parts().items()}


def _documents(fleet: Fleet, pending: Pending) -> Mapping[str, bytes]:
    with fleet.database.reading() as connection:
        rows = connection.execute(
            select(versions.c.id, versions.c.release).where(versions.c.state == PENDING)
        ).all()
    known = pending.new_targets.signed.targets if pending.new_targets else {}
    return {row.id: row.release.encode() for row in rows if release_path(row.id) in known}


def _raced() -> ConflictError:
    return ConflictError(
        "others changed what waits for signatures all the time", expected="a moment of quiet",
        way_out="Try again.", code="proposal_changed",
    )  # fmt: skip
