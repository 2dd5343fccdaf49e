"""Who signs from now on: (what is published, a change of keys) → the root and the targets to be proposed. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from securesystemslib.signer import Key  # type: ignore[attr-defined] # no `__all__`
from tuf.api.metadata import Root, Targets  # type: ignore[attr-defined] # no `__all__`

from edgekit.fleet.errors import InvalidError
from edgekit.fleet.trust import repository, rules
from edgekit.fleet.trust.layout import ROLES
from edgekit.fleet.trust.published import Published, empty

D = TypeVar("D", Root, Targets)
# Of a key id, for a person to name it by.
LEAST_PREFIX: Final = 8


@dataclass(frozen=True, slots=True)
class KeyChange:
    """Other keys for a role.

    Attributes:
        role: one of `ROLES`.
        add: keys that it gets.
        remove: ids of keys that it loses, or their first characters.
        threshold: of signatures; None as before.
    """

    role: str
    add: tuple[Key, ...] = ()
    remove: tuple[str, ...] = ()
    threshold: int | None = None


def rotated(
    published: Published, changes: Sequence[KeyChange], *, lost: bool = False
) -> tuple[Root | None, Targets | None]:
    """What root and targets should say, for `pending.propose`.

    Targets that their new keys did not sign are signed anew as they are: else all that was signed would be void.

    Args:
        published: what holds now.
        changes: of roles, each once.
        lost: the keys of targets are lost, so new ones alone sign.

    Returns:
        Root and targets, each None where it stays.

    Raises:
        InvalidError: a change of nothing, or of keys that are not there.
        NotFoundError: nothing is published yet.
    """
    if published.newest_targets is None:
        raise empty()
    old = published.newest_targets
    root, targets = published.root.signed, old.signed
    for each in changes:
        if each.role == "rollout":
            targets = _changed(targets, each)
        else:
            root = _changed(root, each)
    new_root = root if root != published.root.signed else None
    new_targets = targets if targets != old.signed else None
    if new_root is not None and (lost or not rules.is_signed(old, "targets", new_root)):
        new_targets = targets
    return new_root, new_targets


def keys_of(delegator: Root | Targets, role: str) -> dict[str, Key]:
    """Id to key, of a role.

    Raises:
        InvalidError: there is no such role.
    """
    held = delegator.delegations.keys if isinstance(delegator, Targets) and delegator.delegations else None
    known = delegator.keys if isinstance(delegator, Root) else held or {}
    if role not in ROLES:
        raise _wrong(f"the role {role[:40]!r}", f"one of {', '.join(ROLES)}")
    return {keyid: known[keyid] for keyid in delegator.get_delegated_role(role).keyids}


def _changed(delegator: D, change: KeyChange) -> D:
    held = keys_of(delegator, change.role)
    gone = {_named(held, each, change.role) for each in change.remove}
    if again := [each.keyid for each in change.add if each.keyid in held]:
        raise _wrong(f"{change.role} has the key {again[0][:16]} already", "another key")
    kept: list[Key] = [key for keyid, key in held.items() if keyid not in gone]
    threshold = delegator.get_delegated_role(change.role).threshold
    if not change.add and not gone and change.threshold in {None, threshold}:
        raise _wrong(f"no change of {change.role}", "a key to add or remove, or another threshold")
    given = threshold if change.threshold is None else change.threshold
    count = len({each.keyid for each in (*kept, *change.add)})
    if not 1 <= given <= count:
        raise _wrong(
            f"{change.role} with {count} keys and a threshold of {given}",
            "at least as many keys as signatures that are needed",
        )
    return repository.rotate(delegator, change.role, [*kept, *change.add], given)


def _named(held: dict[str, Key], prefix: str, role: str) -> str:
    found = [each for each in held if each.startswith(prefix)] if len(prefix) >= LEAST_PREFIX else []
    if len(found) != 1:
        raise _wrong(
            f"key {prefix[:16]!r} of {role}",
            f"{LEAST_PREFIX} characters or more of one of {', '.join(each[:16] for each in held)}",
        )
    return found[0]


def _wrong(found: str, expected: str) -> InvalidError:
    return InvalidError(
        found, expected=expected, way_out="`edgekit fleet keys` lists roles and keys.", code="trust_key"
    )
