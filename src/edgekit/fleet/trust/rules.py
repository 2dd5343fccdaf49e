"""What may follow a root or a targets, and which signatures count.

The server asks here before it publishes, and a person's machine before it signs. A document is held against one that
is built anew from what may be in it, so that nothing rides along that nobody looked at.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, Final, TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from securesystemslib.signer import Key, SSlibKey  # type: ignore[attr-defined] # no `__all__`
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import (  # type: ignore[attr-defined] # no `__all__`
    DelegatedRole,
    Delegations,
    Metadata,
    Role,
    Root,
    Signed,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

from edgekit.fleet.errors import InvalidError
from edgekit.fleet.trust.layout import LIFE, RELEASE_ID, ROLLOUT_PATHS, say_day
from edgekit_runtime.agent.fetch import release_path
from edgekit_runtime.contract import ContractError
from edgekit_runtime.store import MAX_RELEASE_BYTES
from edgekit_runtime.strict_json import check_pattern, check_text, check_whole
from edgekit_runtime.trust import CONFIG

# As python-tuf has it.
S = TypeVar("S", Root, Timestamp, Snapshot, Targets)
_VERSION: Final = re.compile(r"[0-9A-Za-z][0-9A-Za-z.+_-]{0,63}")
_AGAIN: Final = "Propose the change again from what is published now."
_LIMITS: Final = {"root": CONFIG.root_max_length, "targets": CONFIG.targets_max_length}


def read(content: bytes, kind: type[S], role: str) -> Metadata[S]:
    """Read signed metadata, whoever signed it.

    Raises:
        InvalidError: they are no metadata of that kind, or larger than a device takes.
    """
    limit = _LIMITS.get(role, CONFIG.targets_max_length)
    if len(content) > limit:
        raise _wrong(role, f"{len(content):,} bytes", f"at most {limit:,}, which devices take")
    try:
        found: Metadata[S] = Metadata.from_bytes(content)
    except (RepositoryError, ValueError, RecursionError) as error:
        raise _wrong(role, str(error), "metadata of TUF") from error
    if not isinstance(found.signed, kind):
        raise _wrong(role, f"metadata of {found.signed.type}", f"metadata of {role}")
    return found


# Signatures


def signers_of(
    metadata: Metadata[S], role: str, authority: Root | Targets
) -> tuple[tuple[str, ...], int, tuple[str, ...]]:
    """Ids of the keys that signed, how many signatures are missing, and ids of those that may still sign."""
    result = authority.get_verification_result(role, metadata.signed_bytes, metadata.signatures)
    return tuple(sorted(result.signed)), result.missing, tuple(sorted(result.unsigned))


def is_signed(metadata: Metadata[S], role: str, authority: Root | Targets) -> bool:
    """Whether enough of the keys signed that the authority names for a role."""
    return signers_of(metadata, role, authority)[1] == 0


def check_signed(metadata: Metadata[S], role: str, authorities: Iterable[Root | Targets]) -> None:
    """Check that enough keys signed by the word of each authority.

    Raises:
        InvalidError: they did not.
    """
    for authority in authorities:
        signed, missing, unsigned = signers_of(metadata, role, authority)
        if missing:
            raise InvalidError(
                f"{role} version {metadata.signed.version}: {len(signed)} signatures that count by"
                f" {authority.type} version {authority.version}",
                expected=f"{missing} more, by {', '.join(each[:16] for each in unsigned)}",
                way_out="Let their owners sign it: `edgekit fleet sign`.",
                code="trust_signatures",
            )


def without_strangers(metadata: Metadata[S], role: str, authorities: Iterable[Root | Targets]) -> Metadata[S]:
    """The same with those signatures only that count."""
    known = {each for authority in authorities for each in signers_of(metadata, role, authority)[0]}
    kept = {keyid: each for keyid, each in metadata.signatures.items() if keyid in known}
    return Metadata(metadata.signed, kept)


# Content


def check_root(previous: Root | None, new: Root, now: datetime) -> None:
    """Check that a root may follow another.

    Raises:
        InvalidError: it may not.
    """
    _check_follows(previous, new, "root", now)
    for name, role in new.roles.items():
        _check_role("root", name, role)
    used = {keyid for role in new.roles.values() for keyid in role.keyids}
    roles = {name: Role(list(role.keyids), role.threshold) for name, role in new.roles.items()}
    canonical = Root(
        new.version, new.spec_version, new.expires, _canonical_keys("root", new.keys, used), roles, True
    )
    _check_same("root", new, canonical)
    apart = [{*new.roles[name].keyids} for name in ("timestamp", "snapshot")]
    if shared := (apart[0] | apart[1]) & {*new.roles["root"].keyids, *new.roles["targets"].keyids}:
        raise _shared("root", shared)


def check_targets(
    previous: Targets | None, new: Targets, root: Root, now: datetime, *, delegation_may_change: bool
) -> None:
    """Check that a targets may follow another.

    Args:
        previous: what is published; None for the first.
        new: what is proposed.
        root: that it will be held against.
        now: in UTC.
        delegation_may_change: whether the keys of `rollout` may be others than before.

    Raises:
        InvalidError: it may not.
    """
    _check_follows(previous, new, "targets", now)
    role = (new.delegations.roles or {}).get("rollout") if new.delegations else None
    if new.delegations is None or role is None:
        raise _wrong("targets", "no delegation to rollout", "one, of rollout/*")
    _check_role("targets", "rollout", role)
    delegated = DelegatedRole("rollout", list(role.keyids), role.threshold, True, list(ROLLOUT_PATHS))
    keys = _canonical_keys("targets", new.delegations.keys, set(role.keyids))
    canonical = Targets(
        new.version,
        new.spec_version,
        new.expires,
        {path: _canonical_release(path, target) for path, target in new.targets.items()},
        Delegations(keys, {"rollout": delegated}),
    )
    _check_same("targets", new, canonical)
    if shared := {*role.keyids} & {*root.roles["root"].keyids, *root.roles["targets"].keyids}:
        raise _shared("targets", shared)
    if previous is None:
        return
    if not delegation_may_change and new.delegations != previous.delegations:
        raise _wrong(
            "targets", "other keys of rollout than before", "the same ones, unless that is asked for"
        )
    for path in new.targets.keys() & previous.targets.keys():
        if new.targets[path] != previous.targets[path]:
            raise _wrong("targets", f"{path} said otherwise than before", "releases that never change")


def check_apart(root: Root, targets: Targets) -> None:
    """Check that no key of `rollout`, which a server holds, may sign root or targets.

    Raises:
        InvalidError: one may.
    """
    online = set(targets.delegations.keys) if targets.delegations else set()
    if shared := online & {*root.roles["root"].keyids, *root.roles["targets"].keyids}:
        raise _shared("root", shared)


def accept_root(current: Metadata[Root] | None, submitted: bytes, now: datetime) -> Metadata[Root]:
    """Take a root in that people signed.

    Args:
        current: what is published; None for the first.
        submitted: content.
        now: in UTC.

    Returns:
        It, with the signatures that count.

    Raises:
        InvalidError: it does not follow, or is not signed by enough of its own keys and those before.
    """
    new = read(submitted, Root, "root")
    check_root(current.signed if current else None, new.signed, now)
    authorities = [new.signed] if current is None else [current.signed, new.signed]
    check_signed(new, "root", authorities)
    return without_strangers(new, "root", authorities)


def accept_targets(
    root: Metadata[Root],
    current: Metadata[Targets] | None,
    submitted: bytes,
    now: datetime,
    *,
    next_root: Metadata[Root] | None = None,
    delegation_may_change: bool = False,
) -> Metadata[Targets]:
    """Take a targets in that people signed.

    Args:
        root: what is published.
        current: what is published; None for the first.
        submitted: content.
        now: in UTC.
        next_root: that comes with it, by which it has to be signed, too.
        delegation_may_change: whether the keys of `rollout` may be others than before.

    Returns:
        It, with the signatures that count.

    Raises:
        InvalidError: it does not follow, or is not signed by enough keys of targets.
    """
    new = read(submitted, Targets, "targets")
    authorities = [root.signed] if next_root is None else [root.signed, next_root.signed]
    for authority in authorities:
        check_targets(
            current.signed if current else None, new.signed, authority, now,
            delegation_may_change=delegation_may_change,
        )  # fmt: skip
    check_signed(new, "targets", authorities)
    return without_strangers(new, "targets", authorities)


def _check_follows(previous: Signed | None, new: Signed, role: str, now: datetime) -> None:
    expected = previous.version + 1 if previous else 1
    if new.version != expected:
        raise InvalidError(
            f"{role} version {new.version}",
            expected=f"version {expected}, which follows what is published",
            way_out=_AGAIN,
            code="trust_version",
        )
    if new.is_expired(now):
        raise InvalidError(
            f"{role} version {new.version}: expired at {say_day(new.expires)}",
            expected=f"metadata that are valid now, {say_day(now)}",
            way_out=f"{_AGAIN} If that time is wrong, set the clock.",
            code="trust_expired",
        )
    if new.expires > now + 2 * LIFE[role]:
        raise InvalidError(
            f"{role} version {new.version}: valid until {say_day(new.expires)}",
            expected=f"at most {2 * LIFE[role].days} days, which is for how long a thief could hold devices to it",
            way_out=_AGAIN,
            code="trust_expired",
        )


def _check_role(where: str, name: str, role: Role) -> None:
    if not 1 <= role.threshold <= len(role.keyids):
        raise _wrong(
            where, f"{name} with {len(role.keyids)} keys and a threshold of {role.threshold}", "enough keys"
        )


def _canonical_keys(where: str, keys: Mapping[str, Key], used: set[str]) -> dict[str, Key]:
    """The keys, each under its own id: else one key could count as several, or look like another."""
    if used != set(keys):
        raise _wrong(
            where, "keys without a role, or roles without their keys", "one entry for each key in use"
        )
    found: dict[str, Key] = {}
    for keyid, key in keys.items():
        try:
            public = bytes.fromhex(key.keyval["public"])
            own = SSlibKey.from_crypto(Ed25519PublicKey.from_public_bytes(public))
        except (KeyError, TypeError, ValueError) as error:
            raise _wrong(where, f"key {keyid[:16]}: {error}", "an Ed25519 key") from error
        if own.keyid != keyid or own.to_dict() != key.to_dict():
            raise _wrong(
                where, f"key {keyid[:16]} under a name that is not its own", "Ed25519 keys by their id"
            )
        found[keyid] = own
    return found


def _canonical_release(path: str, target: TargetFile) -> TargetFile:
    release = path.removeprefix("releases/").removesuffix(".json")
    if not RELEASE_ID.fullmatch(release) or path != release_path(release):
        raise _wrong("targets", f"a target {path[:100]!r}", "releases/<id>.json")
    custom: Any = target.custom
    if not isinstance(custom, dict) or set(custom) != {"model", "version", "size"}:
        raise _wrong("targets", f"{path[:25]}… without its model, version and size", "these three")
    try:
        check_text("model", custom["model"], empty=False)
        if not custom["model"].isprintable():
            raise ContractError("model", ascii(custom["model"]), "text that can be shown")  # noqa: TRY301
        check_pattern("version", custom["version"], _VERSION, "letters, digits and .+_-, at most 64")
        check_whole("size", custom["size"], 0, 2**53)
        check_whole("length", target.length, 1, MAX_RELEASE_BYTES)
    except ContractError as error:
        raise _wrong(
            "targets", f"{path[:25]}… {error}", "what `edgekit publish` says of a release"
        ) from error
    return TargetFile(target.length, {"sha256": release}, path, {"custom": custom})


def _check_same(role: str, new: Signed, canonical: Signed) -> None:
    if new.to_dict() != canonical.to_dict():
        given, plain = new.to_dict(), canonical.to_dict()
        odd = sorted(key for key in {*given, *plain} if given.get(key) != plain.get(key))
        raise _wrong(
            role, f"more or other than belongs there, in {', '.join(odd)}", "what this program writes"
        )


def _shared(where: str, keyids: set[str]) -> InvalidError:
    return _wrong(
        where, f"key {min(keyids)[:16]} both offline and on the server", "keys of their own for each"
    )


def _wrong(role: str, found: str, expected: str) -> InvalidError:
    return InvalidError(f"{role}: {found}", expected=expected, way_out=_AGAIN, code="trust_content")
