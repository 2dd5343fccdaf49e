"""A change of root or targets that people sign one after the other, as one file that goes from machine to machine.

The file carries all roots and the targets that are published, so that a machine that is offline can see for itself what
changes. Whoever made the file may lie about both. So each person keeps the first root, as a device does, and hands it
in: what is not led to by that root is not signed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any, Final, TypeVar

from securesystemslib.signer import CryptoSigner  # type: ignore[attr-defined] # no `__all__`
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root, Targets  # type: ignore[attr-defined] # no `__all__`

from edgekit.fleet.errors import InvalidError
from edgekit.fleet.trust import describe as differences
from edgekit.fleet.trust import rules
from edgekit.fleet.trust.layout import LIFE
from edgekit.fleet.trust.repository import as_version
from edgekit_runtime.strict_json import ContractError, Fields, parse

S = TypeVar("S", Root, Targets)
SCHEMA: Final = 1
_AGAIN: Final = "Propose the change again from what is published now."
_KEYS: Final = ("schema", "roots", "targets", "new_root", "new_targets", "gap")


@dataclass(frozen=True, slots=True)
class Pending:
    """What is proposed, what it follows, and the signatures so far.

    Attributes:
        roots: that are published, from the first to the one that holds now; none before the first.
        targets: that are published; None before the first.
        new_root: proposed; None where it stays.
        new_targets: proposed; None where they stay.
        gap: the keys of targets are lost. The new targets are signed by the new root's keys alone, and devices refuse
            the moment between the two writes.
    """

    roots: tuple[Metadata[Root], ...]
    targets: Metadata[Targets] | None
    new_root: Metadata[Root] | None
    new_targets: Metadata[Targets] | None
    gap: bool = False

    @property
    def root(self) -> Metadata[Root] | None:
        """The one that holds now."""
        return self.roots[-1] if self.roots else None

    def to_bytes(self) -> bytes:
        """The file."""
        tree = {
            "schema": SCHEMA,
            "roots": [each.to_dict() for each in self.roots],
            "targets": _tree(self.targets),
            "new_root": _tree(self.new_root),
            "new_targets": _tree(self.new_targets),
            "gap": self.gap,
        }
        return (json.dumps(tree, sort_keys=True, indent=1) + "\n").encode()

    @classmethod
    def from_bytes(cls, content: bytes) -> Pending:
        """Read the file; `check` says whether it holds.

        Raises:
            InvalidError: it is none.
        """
        try:
            top = Fields(parse(content), "", _KEYS)
            if (schema := top.whole("schema")) != SCHEMA:
                raise ContractError("schema", str(schema), f"{SCHEMA}; a newer edgekit may read it")  # noqa: TRY301
            roots, gap = top.take("roots"), top.take("gap")
            if not isinstance(roots, list) or not isinstance(gap, bool):
                raise ContractError("roots, gap", "other kinds of value", "a list, and true or false")  # noqa: TRY301
            pending = cls(
                tuple(_read(each, Root) for each in roots),
                _maybe(top.take("targets"), Targets),
                _maybe(top.take("new_root"), Root),
                _maybe(top.take("new_targets"), Targets),
                gap,
            )
        except (ContractError, RepositoryError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise _wrong(f"no proposal: {error}", "the file that `edgekit fleet` made") from error
        if pending.new_root is None and pending.new_targets is None:
            raise _wrong("a proposal of nothing", "a new root or new targets")
        return pending

    def new_parts(self) -> dict[str, tuple[Metadata[Any], tuple[Root, ...]]]:
        """Role to what is proposed, and the roots that say who has to sign it."""
        held = (self.root.signed,) if self.root else ()
        new = (self.new_root.signed,) if self.new_root else ()
        parts: dict[str, tuple[Metadata[Any], tuple[Root, ...]]] = {}
        if self.new_root:
            parts["root"] = (self.new_root, (*held, *new))
        if self.new_targets:
            parts["targets"] = (self.new_targets, new if self.gap else (*held, *new))
        return parts


@dataclass(frozen=True, slots=True)
class Missing:
    """Signatures that a proposal still needs.

    Attributes:
        role: that is to be signed.
        root: version of the root that asks for them.
        count: how many.
        keys: ids of those that may give them.
    """

    role: str
    root: int
    count: int
    keys: tuple[str, ...]


def propose(
    roots: Sequence[Metadata[Root]],
    targets: Metadata[Targets] | None,
    now: datetime,
    *,
    new_root: Root | None = None,
    new_targets: Targets | None = None,
    gap: bool = False,
    lives: Mapping[str, timedelta] = LIFE,
) -> Pending:
    """Make a proposal, one version later than what is published, that nobody has signed yet.

    Args:
        roots: all that are published.
        targets: that are published.
        now: in UTC.
        new_root: what root should say, made from what it says now; None where it stays.
        new_targets: what targets should say, likewise.
        gap: as `Pending.gap`.
        lives: of what is signed.

    Raises:
        InvalidError: it may not follow what is published.
    """
    pending = Pending(
        tuple(roots),
        targets,
        _next(roots[-1] if roots else None, new_root, "root", now, lives),
        _next(targets, new_targets, "targets", now, lives),
        gap,
    )
    check(pending, now)
    return pending


def check(pending: Pending, now: datetime, first_root: bytes | None = None) -> None:
    """Check that a proposal follows what is published, and that the root vouches for what is said to be published.

    Args:
        pending: the proposal.
        now: in UTC.
        first_root: a root that this person trusts, from elsewhere than the file: any one of the chain.

    Raises:
        InvalidError: it does not.
    """
    _check_roots(pending.roots, first_root)
    held, new_root = pending.root, pending.new_root
    if held and pending.targets:
        rules.check_signed(pending.targets, "targets", [held.signed])
    if new_root:
        rules.check_root(held.signed if held else None, new_root.signed, now)
    authorities = [each.signed for each in (held, new_root) if each]
    if not authorities:
        raise _wrong("targets without a root", "the root first")
    if pending.gap and not (new_root and pending.new_targets):
        raise _wrong("a gap without a new root and new targets", "both, where the keys of targets are lost")
    for authority in authorities:
        if pending.new_targets:
            before = pending.targets.signed if pending.targets else None
            rules.check_targets(
                before, pending.new_targets.signed, authority, now, delegation_may_change=True
            )
        elif pending.targets:
            rules.check_apart(authority, pending.targets.signed)
            # A root with other keys of targets voids what the old ones signed.
            rules.check_signed(pending.targets, "targets", [authority])


def describe(pending: Pending) -> tuple[str, ...]:
    """What a person signs with this, line by line."""
    lines: list[str] = []
    if pending.new_root:
        lines += differences.describe(pending.root.signed if pending.root else None, pending.new_root.signed)
    if pending.new_targets:
        before = pending.targets.signed if pending.targets else None
        lines += differences.describe(before, pending.new_targets.signed)
    if pending.gap:
        lines.append(
            "gap: the old keys of targets do not sign; devices refuse until both files are published"
        )
    return tuple(lines)


def sign(
    pending: Pending, signer: CryptoSigner, now: datetime, *, first_root: bytes | None = None
) -> Pending:
    """Add one person's signatures; show `describe` first.

    Args:
        pending: stays as it is.
        signer: of a key that root or targets has, or will have.
        now: in UTC.
        first_root: as in `check`.

    Raises:
        InvalidError: the proposal does not follow, or needs nothing of this key.
    """
    check(pending, now, first_root)
    keyid, used = signer.public_key.keyid, False
    signed: dict[str, Metadata[Any]] = {}
    for role, (metadata, authorities) in pending.new_parts().items():
        signed[role] = deepcopy(metadata)
        if any(keyid in authority.roles[role].keyids for authority in authorities):
            signed[role].sign(signer, append=True)
            used = True
    if not used:
        may = {keyid for each in missing(pending) for keyid in each.keys}
        raise InvalidError(
            f"key {keyid[:16]}: has no part in this",
            expected=f"one of {', '.join(sorted(each[:16] for each in may))}" if may else "nothing more",
            way_out="Take the file of another key.",
            code="trust_key",
        )
    return replace(pending, new_root=signed.get("root"), new_targets=signed.get("targets"))


def missing(pending: Pending) -> tuple[Missing, ...]:
    """Which signatures are still needed; none where the proposal may be published."""
    found = []
    for role, (metadata, authorities) in pending.new_parts().items():
        for authority in authorities:
            _, count, keys = rules.signers_of(metadata, role, authority)
            if count:
                found.append(Missing(role, authority.version, count, keys))
    return tuple(found)


def merge(one: Pending, other: Pending) -> Pending:
    """Bring together what two people signed at the same time.

    Raises:
        InvalidError: they signed different things.
    """
    mine, theirs = one.new_parts(), other.new_parts()
    if {role: each[0].signed for role, each in mine.items()} != {
        role: each[0].signed for role, each in theirs.items()
    }:
        raise _wrong("two different proposals", "copies of one")
    merged: dict[str, Metadata[Any]] = {}
    for role, (metadata, authorities) in mine.items():
        both = Metadata(metadata.signed, metadata.signatures | theirs[role][0].signatures)
        # A broken signature of one copy must not hide a good one of the other.
        for each in (metadata, theirs[role][0]):
            both.signatures |= rules.without_strangers(each, role, authorities).signatures
        merged[role] = both
    return replace(one, new_root=merged.get("root"), new_targets=merged.get("targets"))


def _next(
    held: Metadata[Any] | None, new: S | None, role: str, now: datetime, lives: Mapping[str, timedelta]
) -> Metadata[S] | None:
    version = held.signed.version + 1 if held else 1
    return None if new is None else Metadata(as_version(new, version, role, now, lives[role]))


def _check_roots(roots: Sequence[Metadata[Root]], first_root: bytes | None) -> None:
    for before, after in pairwise(roots):
        if after.signed.version != before.signed.version + 1:
            raise _wrong("a root is missing", "all of them, one after the other")
        rules.check_signed(after, "root", [before.signed, after.signed])
    if roots:
        rules.check_signed(roots[0], "root", [roots[0].signed])
    if first_root is None:
        return
    known = rules.read(first_root, Root, "root").signed
    if not any(each.signed == known for each in roots):
        raise InvalidError(
            f"the root that you trust, version {known.version}, is not among those in the file",
            expected="a proposal for the fleet of that root",
            way_out="Do not sign. Ask by another way who made this file, and for which fleet.",
            code="trust_root",
        )


def _tree(metadata: Metadata[Any] | None) -> dict[str, Any] | None:
    return None if metadata is None else metadata.to_dict()


def _maybe(tree: object, kind: type[Any]) -> Metadata[Any] | None:
    return None if tree is None else _read(tree, kind)


def _read(tree: object, kind: type[Any]) -> Metadata[Any]:
    if not isinstance(tree, dict):
        raise ContractError(kind.type, "no object", "metadata of TUF")
    found: Metadata[Any] = Metadata.from_dict(tree)
    if not isinstance(found.signed, kind):
        raise ContractError(kind.type, found.signed.type, f"metadata of {kind.type}")
    return found


def _wrong(found: str, expected: str) -> InvalidError:
    return InvalidError(found, expected=expected, way_out=_AGAIN, code="trust_content")
