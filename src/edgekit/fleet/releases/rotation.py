"""Other keys for a role: proposed by an admin, signed by the owners of the offline keys, like any other change.

```
rotate ──→ proposal waits ── enough keys of root, old and new, and of targets signed ──→ published
                │
                └── the new key of the server lies in keys/online, beside the old one, and signs with it
```

Until it is published the old keys count, from then on the new ones, and at no moment neither: both sign all the time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from securesystemslib.signer import Key  # type: ignore[attr-defined] # no `__all__`
from tuf.api.metadata import Root, Targets  # type: ignore[attr-defined] # no `__all__`

from edgekit.fleet.context import Fleet
from edgekit.fleet.errors import ConflictError, InvalidError, NotFoundError
from edgekit.fleet.identity.access import ADMINISTER, Actor
from edgekit.fleet.releases import signing
from edgekit.fleet.trust import keys as trust_keys
from edgekit.fleet.trust import pending as proposals
from edgekit.fleet.trust import rotation
from edgekit.fleet.trust.keys import Online
from edgekit.fleet.trust.layout import OFFLINE, ONLINE, ROLES
from edgekit.fleet.trust.pending import Pending
from edgekit.fleet.trust.published import Published, empty, load
from edgekit.fleet.trust.rotation import KeyChange

FOLDER: Final = Path("keys", "online")


@dataclass(frozen=True, slots=True)
class RoleKeys:
    """Who signs a role.

    Attributes:
        role: one of `ROLES`.
        version: of its metadata.
        expires_s: seconds since 1970.
        threshold: of signatures.
        keys: ids.
        held: ids of the keys that this server holds for it; those that `keys` does not name count nothing.
    """

    role: str
    version: int
    expires_s: int
    threshold: int
    keys: tuple[str, ...]
    held: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Proposed:
    """A change of keys that waits for signatures.

    Attributes:
        pending: as people sign it.
        made: files of new keys in the folder of this server, which other servers of the fleet need, too.
    """

    pending: Pending
    made: tuple[str, ...]


def listed(fleet: Fleet) -> list[RoleKeys]:
    """Who signs what.

    Raises:
        NotFoundError: nothing is published yet.
    """
    published, online = load(signing.documents_of(fleet)), signing.online_of(fleet)
    if published.targets is None or published.rollout is None:
        raise empty()
    found = []
    for role in ROLES:
        metadata = getattr(published, role)
        named = _delegator(published, role).get_delegated_role(role)
        held = tuple(each.public_key.keyid for each in online.get(role, ()))
        expires_s = int(metadata.signed.expires.timestamp())
        found.append(
            RoleKeys(role, metadata.signed.version, expires_s, named.threshold, tuple(named.keyids), held)
        )
    return found


def propose(
    fleet: Fleet,
    actor: Actor,
    roles: Sequence[str],
    *,
    add: Sequence[Key] = (),
    remove: Sequence[str] = (),
    threshold: int | None = None,
    lost: bool = False,
) -> Proposed:
    """Propose other keys; what waited for signatures before is put aside, and proposed again afterwards.

    Of a role that the server signs all keys are replaced, by those of `add` or by one that this server makes.

    Args:
        fleet: of the server.
        actor: an admin.
        roles: one, or several that the server signs.
        add: public keys.
        remove: ids of keys, of `root` or `targets`; their first characters are enough.
        threshold: of signatures, of `root` or `targets`; None as before.
        lost: too few keys of `targets` are left to sign: the new ones do alone, and devices refuse for the moment
            between two writes.

    Raises:
        DeniedError: the actor is no admin.
        InvalidError: no such role or key, a change of nothing, or one that may not be.
        ConflictError: the server holds too many keys, or others propose all the time.
        NotFoundError: nothing is published yet.
    """
    actor.check(ADMINISTER)
    _check(roles, add, remove, threshold, lost=lost)
    published = load(signing.documents_of(fleet))
    if published.newest_targets is None:
        raise empty()
    made: list[Path] = []
    try:
        changes = []
        for role in roles:
            new, gone = tuple(add), tuple(remove)
            if role in ONLINE:
                gone = tuple(rotation.keys_of(_delegator(published, role), role))
                new = new or (_make(fleet, role, made),)
            changes.append(KeyChange(role, new, gone, threshold))
        new_root, new_targets = rotation.rotated(published, changes, lost=lost)
        pending = proposals.propose(
            published.roots, published.newest_targets, signing.moment(fleet), new_root=new_root,
            new_targets=new_targets, gap=lost,
        )  # fmt: skip
        _store(fleet, pending)
    except BaseException:
        for path in made:
            path.unlink(missing_ok=True)
            path.with_suffix(".pub").unlink(missing_ok=True)
        raise
    signing.note(fleet, actor, "keys.proposed", pending)
    return Proposed(pending, tuple(str(each.relative_to(fleet.settings.folder)) for each in made))


def withdraw(fleet: Fleet, actor: Actor) -> None:
    """Take back a change of keys that waits.

    Raises:
        DeniedError: the actor is no admin.
        NotFoundError: none waits.
    """
    actor.check(ADMINISTER)
    waiting = signing.proposal(fleet)
    if waiting is None or not signing.changes_keys(waiting):
        raise NotFoundError(
            "no change of keys waits", expected="one that was proposed and is not published",
            way_out="`edgekit fleet pending` shows what waits.", code="no_rotation",
        )  # fmt: skip
    fleet.blobs.delete(signing.PROPOSAL)
    signing.note(fleet, actor, "keys.withdrawn", waiting)


def lacking(fleet: Fleet) -> Mapping[str, int]:
    """Role to the number of keys that this server would need beside those that it has, to sign it alone."""
    published, online = load(signing.documents_of(fleet)), signing.online_of(fleet)
    if published.targets is None:
        return {}
    found = {role: _missing(published, online, role) for role in ONLINE}
    return {role: count for role, count in found.items() if count > 0}


def _missing(published: Published, online: Online, role: str) -> int:
    named = _delegator(published, role).get_delegated_role(role)
    held = {each.public_key.keyid for each in online.get(role, ())}
    return int(named.threshold) - len(held & set(named.keyids))


def _check(
    roles: Sequence[str], add: Sequence[Key], remove: Sequence[str], threshold: int | None, *, lost: bool
) -> None:
    if strange := [each for each in roles if each not in ROLES]:
        raise _usage(f"the role {strange[0][:40]!r}", f"one of {', '.join(ROLES)}")
    if not roles or len(set(roles)) != len(roles):
        raise _usage(f"{len(roles)} roles", "each role once")
    offline = [each for each in roles if each in OFFLINE]
    if len(roles) > 1 and (offline or add):
        raise _usage(
            f"{' and '.join(roles)} at once", f"one role, or several of {', '.join(ONLINE)} without --add"
        )
    if not offline and (remove or threshold is not None):
        raise _usage(f"keys of {roles[0]} to remove, or a threshold", "none: all its keys are replaced")
    if lost and list(roles) != ["targets"]:
        raise _usage(f"lost keys of {roles[0]}", "those of targets; root that is lost cannot be replaced")


def _make(fleet: Fleet, role: str, made: list[Path]) -> Key:
    path = trust_keys.free_online(fleet.settings.folder / FOLDER, role)
    key = trust_keys.create(path, None)
    made.append(path)
    return key


def _delegator(published: Published, role: str) -> Root | Targets:
    if role != "rollout":
        return published.root.signed
    assert published.newest_targets is not None
    return published.newest_targets.signed


def _store(fleet: Fleet, pending: Pending) -> None:
    documents = signing.documents_of(fleet)
    for attempt in range(signing.ATTEMPTS):
        try:
            documents.write(signing.PROPOSAL, pending.to_bytes(), replaces=documents.read(signing.PROPOSAL))
        except ConflictError:
            if attempt == signing.ATTEMPTS - 1:
                raise
            continue
        return


def _usage(found: str, expected: str) -> InvalidError:
    return InvalidError(
        found, expected=expected, way_out="See `edgekit fleet rotate --help`.", code="rotation"
    )
