"""What a role says next: (what it says now, a change) → what it says then. No disk, no network, no keys that sign.

Changes leave version and expiry as they are, so that several of them make one new version: `as_version`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from datetime import datetime, timedelta
from typing import TypeVar

from securesystemslib.signer import Key  # type: ignore[attr-defined] # no `__all__`
from tuf.api.metadata import (  # type: ignore[attr-defined] # no `__all__`
    DelegatedRole,
    Delegations,
    MetaFile,
    Role,
    Root,
    Signed,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

from edgekit.fleet.errors import InvalidError, NotFoundError
from edgekit.fleet.trust.layout import LIFE, ROLLOUT_PATHS, policy_path, target_name
from edgekit_runtime.agent.fetch import release_path
from edgekit_runtime.contract import Release
from edgekit_runtime.policies import Policy
from edgekit_runtime.trusted_time import SIGNED_AT, TIME_FORMAT

S = TypeVar("S", bound=Signed)
D = TypeVar("D", Root, Targets)


def first_root(keys: Mapping[str, Sequence[Key]], thresholds: Mapping[str, int]) -> Root:
    """The root that devices are provisioned with.

    Args:
        keys: of `root`, `targets`, `snapshot` and `timestamp`.
        thresholds: of signatures; one where a role is not named.
    """
    names = ("root", "timestamp", "snapshot", "targets")
    root = Root(roles={role: Role([], thresholds.get(role, 1)) for role in names}, consistent_snapshot=True)
    for role in names:
        for key in keys.get(role, ()):
            root.add_key(key, role)
    return root


def first_targets(keys: Sequence[Key], threshold: int = 1) -> Targets:
    """Targets without a release, which hand `rollout/*` to the role `rollout`.

    Args:
        keys: of `rollout`.
        threshold: of their signatures.
    """
    role = DelegatedRole("rollout", [], threshold, True, list(ROLLOUT_PATHS))
    targets = Targets(delegations=Delegations({}, {"rollout": role}))
    for key in keys:
        targets.add_key(key, "rollout")
    return targets


def as_version(signed: S, version: int, role: str, now: datetime, life: timedelta | None = None) -> S:
    """The same as a version of its own, valid from now for as long as the role's signatures live.

    Args:
        signed: what the role says.
        version: of the result.
        role: name; what `rollout` says is of the type of `targets`.
        now: in UTC.
        life: instead of `LIFE[role]`.
    """
    new = deepcopy(signed)
    new.version = version
    new.expires = now.replace(microsecond=0) + (life or LIFE[role])
    return new


# Releases and policies


def release_target(release: Release) -> TargetFile:
    """How targets name a release. Its model, version and size are for people; devices read the document."""
    document = release.to_json().encode()
    custom = {"model": release.name, "version": release.version, "size": release.size_bytes}
    return TargetFile(len(document), {"sha256": release.id}, release_path(release.id), {"custom": custom})


def release_document(release: Release) -> tuple[str, bytes]:
    """Name and content of the document of a release."""
    return target_name(release_path(release.id), release.id), release.to_json().encode()


def add_release(targets: Targets, release: Release) -> Targets:
    """Let devices run a release, once a policy names it."""
    new = deepcopy(targets)
    new.targets[release_path(release.id)] = release_target(release)
    return new


def retire(targets: Targets, ids: Iterable[str]) -> Targets:
    """Let devices take these releases no more; those that run one already keep it until a policy names another.

    Raises:
        NotFoundError: one is not signed now.
    """
    new = deepcopy(targets)
    for each in ids:
        if new.targets.pop(release_path(each), None) is None:
            raise NotFoundError(
                f"release {each[:16]!r}: targets do not sign it",
                expected="the id of a release that is signed now",
                way_out="Look at the list of releases.",
                code="release",
            )
    return new


def set_policies(rollout: Targets, policies: Mapping[str, Policy | None]) -> Targets:
    """Select a release for these channels; others stay as they are.

    Args:
        rollout: what the role says now.
        policies: channel to policy; None takes the channel away.
    """
    new = deepcopy(rollout)
    for channel, policy in policies.items():
        path = policy_path(channel)
        if policy is None:
            new.targets.pop(path, None)
        else:
            new.targets[path] = TargetFile.from_data(path, policy.to_json().encode(), ["sha256"])
    return new


def policy_documents(policies: Mapping[str, Policy | None]) -> dict[str, bytes]:
    """Names and contents of the documents of policies."""
    found = {}
    for channel, policy in policies.items():
        if policy is not None:
            content = policy.to_json().encode()
            found[target_name(policy_path(channel), hashlib.sha256(content).hexdigest())] = content
    return found


# Keys


def rotate(delegator: D, role: str, keys: Sequence[Key], threshold: int | None = None) -> D:
    """Give a role other keys.

    Args:
        delegator: root for its four roles, targets for `rollout`.
        role: name.
        keys: all that it has from now on.
        threshold: of signatures; as before where it is None.
    """
    new = deepcopy(delegator)
    of = _role(new, role)
    for keyid in list(of.keyids):
        new.revoke_key(keyid, role)
    for key in keys:
        new.add_key(key, role)
    of.threshold = of.threshold if threshold is None else threshold
    return new


def remove_key(delegator: D, role: str, keyid: str) -> D:
    """Take one key from a role.

    Raises:
        NotFoundError: the role has no such key.
    """
    new = deepcopy(delegator)
    if keyid not in _role(new, role).keyids:
        raise NotFoundError(
            f"key {keyid[:16]!r} of {role}",
            expected=f"one of {', '.join(each[:16] for each in _role(new, role).keyids)}",
            way_out="Look at the keys of the role.",
            code="trust_key",
        )
    new.revoke_key(keyid, role)
    return new


def _role(delegator: Root | Targets, name: str) -> Role:
    roles: Mapping[str, Role] = delegator.roles if isinstance(delegator, Root) else {}
    if isinstance(delegator, Targets) and delegator.delegations and delegator.delegations.roles:
        roles = delegator.delegations.roles
    if name not in roles:
        raise InvalidError(
            f"{delegator.type} has no role {name!r}",
            expected=f"one of {', '.join(roles)}",
            way_out="Keys of rollout are in targets, those of the other roles in root.",
            code="trust_key",
        )
    return roles[name]


# What the server signs by itself


def snapshot(
    previous: Snapshot | None, version: int, signed: Mapping[str, tuple[int, bytes]], now: datetime
) -> Snapshot:
    """Which versions belong together.

    Args:
        previous: the one before.
        version: that is free, later than that.
        signed: `targets` and `rollout` to their version and bytes. The hash keeps who has stolen a key of one role,
            but not of the snapshot, from showing another document under the same version.
        now: in UTC.
    """
    meta = {f"{role}.json": _meta(of, content) for role, (of, content) in signed.items()}
    new = Snapshot(meta=meta) if previous is None else deepcopy(previous)
    new.meta = meta
    return as_version(new, version, "snapshot", now)


def timestamp(previous: Timestamp | None, version: int, content: bytes, now: datetime) -> Timestamp:
    """Which snapshot is the newest, and when that was so.

    Args:
        previous: the one before.
        version: of the snapshot.
        content: of the snapshot.
        now: in UTC; a device takes it for the earliest time that it can be.
    """
    meta = _meta(version, content)
    new = Timestamp(snapshot_meta=meta) if previous is None else deepcopy(previous)
    new.snapshot_meta = meta
    new.unrecognized_fields[SIGNED_AT] = f"{now:{TIME_FORMAT}}"
    return as_version(new, previous.version + 1 if previous else 1, "timestamp", now)


def _meta(version: int, content: bytes) -> MetaFile:
    return MetaFile(version, len(content), {"sha256": hashlib.sha256(content).hexdigest()})


def is_due(signed: Signed, role: str, now: datetime) -> bool:
    """Whether it is time to sign anew: half of the life of a role is left, or of what people sign, a quarter."""
    part = 4 if role in {"root", "targets"} else 2
    left: timedelta = signed.expires - now
    return left <= LIFE[role] / part
