"""Publishes: what is stored → what is stored next, so that devices find something whole at every moment.

Only `timestamp.json` ever changes. Everything that it leads to is written before it, under names that are new, and it
is then swapped for the one that was read: of two servers that publish at once one begins again, from what the other
wrote. What a killed server left behind under a version is never touched again; the next one takes the version after it.
New targets are the exception: people signed exactly that version, so whoever publishes next goes on with them.

A new root is written last, and snapshot and timestamp are signed by the online keys before and after it, as far as the
server holds them: they are right for devices that have the new root already and for those that do not.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Final

from tuf.api.metadata import Metadata, Root, Targets  # type: ignore[attr-defined] # no `__all__`

from edgekit.fleet.errors import ConflictError, InvalidError
from edgekit.fleet.trust import repository, rules
from edgekit.fleet.trust.documents import Documents, taken
from edgekit.fleet.trust.keys import Online
from edgekit.fleet.trust.layout import TIMESTAMP, target_name
from edgekit.fleet.trust.pending import Pending
from edgekit.fleet.trust.published import Published, load
from edgekit.fleet.trust.step import Change, Step
from edgekit_runtime.agent.fetch import release_path
from edgekit_runtime.contract import ContractError, Release
from edgekit_runtime.policies import Policy
from edgekit_runtime.trusted_time import signed_at

ATTEMPTS: Final = 20
PAUSE_S: Final = 0.01


def set_policies(
    documents: Documents,
    online: Online,
    policies: Mapping[str, Policy | None],
    now: datetime,
    *,
    anew: bool = False,
) -> Published:
    """Select releases for channels.

    Args:
        documents: of the repository.
        online: keys of this server.
        policies: channel to policy; None takes a channel away.
        now: in UTC.
        anew: forget the policies of all other channels, and do not ask who signed them.

    Raises:
        InvalidError: a policy names a release that targets do not sign.
        ConflictError: others published all the time.
    """

    def decide(published: Published) -> Change:
        targets = published.newest_targets
        for channel, policy in policies.items():
            signed = targets.signed.targets if targets else {}
            for rule in policy.rules if policy else ():
                if release_path(rule.release) not in signed:
                    raise InvalidError(
                        f"the policy of {channel} names release {rule.release[:16]}…",
                        expected="a release that targets sign now",
                        way_out="Publish and sign it first, or name another.",
                        code="release",
                    )
        return Change(policies=policies, anew=anew, files=repository.policy_documents(policies))

    return publish(documents, online, decide, now)


def submit(
    documents: Documents,
    online: Online,
    pending: Pending,
    now: datetime,
    *,
    releases: Mapping[str, bytes] | None = None,
    delegation_may_change: bool = False,
    policies: Mapping[str, Policy | None] | None = None,
    anew: bool = False,
) -> Published:
    """Publish what people signed. The same again changes nothing.

    Args:
        documents: of the repository.
        online: keys of this server; of a new root's, too.
        pending: signed; only what is proposed in it is looked at.
        now: in UTC.
        releases: id to document, of new releases whose documents are not stored yet.
        delegation_may_change: whether new targets may name other keys of `rollout`.
        policies: to publish with it, as in `set_policies`: new keys of `rollout` should not sign what a thief wrote.
        anew: as in `set_policies`.

    Raises:
        InvalidError: it does not follow what is published, lacks signatures or documents, or the server lacks a key.
        ConflictError: others published all the time.
    """
    chosen = policies or {}

    def decide(published: Published) -> Change:
        root, targets = _accepted(published, pending, now, delegation_may_change=delegation_may_change)
        known = published.newest_targets
        files = _documents_of(documents, targets, known, releases or {}) if targets else {}
        return Change(
            root, targets, chosen, anew, {**files, **repository.policy_documents(chosen)},
            root_first=pending.gap or not published.roots,
        )  # fmt: skip

    return publish(documents, online, decide, now)


def renew(documents: Documents, online: Online, now: datetime) -> Published:
    """Sign anew what a server signs and what is about to expire, or what a root with other keys voids.

    Raises:
        InvalidError: the server lacks a key.
        ConflictError: others published all the time.
    """
    return publish(documents, online, lambda _: Change(), now)


def publish(
    documents: Documents,
    online: Online,
    decide: Callable[[Published], Change],
    now: datetime,
    *,
    attempts: int = ATTEMPTS,
) -> Published:
    """Publish a change; where another server was quicker, decide again from what it wrote.

    Args:
        documents: of the repository.
        online: keys of this server.
        decide: from what is published.
        now: in UTC.
        attempts: before it gives up.

    Returns:
        What is published now.

    Raises:
        InvalidError: it may not be published, or the server lacks a key.
        ConflictError: others published all the time.
    """
    for attempt in range(attempts):
        published = load(documents)
        change = _with_waiting(published, decide(published))
        try:
            Step(documents, online, published, change, _no_earlier(published, now)).run()
        except ConflictError:
            if attempt == attempts - 1:
                raise
            time.sleep(random.uniform(0, PAUSE_S * 2 ** min(attempt, 6)))  # noqa: S311 - only parts rivals
            continue
        if change.root is not None:
            # Another server may have signed with the old keys only, after our timestamp and before our root.
            return renew(documents, online, now)
        return load(documents)
    raise taken(TIMESTAMP)


def _no_earlier(published: Published, now: datetime) -> datetime:
    """Now, but no time before what was signed: devices remember that, and to them anything older has expired.

    As on the device, a time is believed only where what people signed is valid at it.
    """
    if published.timestamp is None or published.newest_targets is None:
        return now
    before = signed_at(published.timestamp.signed.unrecognized_fields)
    vouching = (published.root.signed, published.newest_targets.signed)
    if before is None or before <= now or any(each.is_expired(before) for each in vouching):
        return now
    return before


# What people signed


def _accepted(
    published: Published, pending: Pending, now: datetime, *, delegation_may_change: bool
) -> tuple[Metadata[Root] | None, Metadata[Targets] | None]:
    """What of a proposal is new and right."""
    held = published.roots[-1] if published.roots else None
    root, targets, known = pending.new_root, pending.new_targets, published.newest_targets
    if root and any(root.signed == each.signed for each in published.roots):
        root = None
    root = None if root is None else rules.accept_root(held, root.to_bytes(), now)
    if targets is None or (known and targets.signed == known.signed):
        return root, None
    base = held if held and not (pending.gap and root) else root
    return root, rules.accept_targets(
        base or published.root, known, targets.to_bytes(), now,
        next_root=root if base is not root else None, delegation_may_change=delegation_may_change,
    )  # fmt: skip


def _documents_of(
    documents: Documents,
    targets: Metadata[Targets],
    known: Metadata[Targets] | None,
    given: Mapping[str, bytes],
) -> dict[str, bytes]:
    """Documents of the new releases that are not stored yet, each held against what is signed."""
    files = {}
    for path in targets.signed.targets.keys() - (known.signed.targets.keys() if known else set()):
        release = path.removeprefix("releases/").removesuffix(".json")
        name = target_name(path, release)
        stored = documents.read(name)
        content = stored if stored is not None else given.get(release)
        try:
            if content is None:
                raise ContractError("", "no document", "its document, stored or given")  # noqa: TRY301
            found = Release.from_json(content)
            if found.id != release or repository.release_target(found) != targets.signed.targets[path]:
                raise ContractError("", f"{found.name} {found.version}", "what the document says")  # noqa: TRY301
        except ContractError as error:
            raise InvalidError(
                f"release {release[:16]}…: {error}",
                expected="the document of each release that targets sign",
                way_out="Publish the bundle first: `edgekit publish`.",
                code="release",
            ) from error
        if stored is None:
            files[name] = content
    return files


def _with_waiting(published: Published, change: Change) -> Change:
    """Go on with targets that a killed server stored; other ones of that version come too late."""
    waiting = published.waiting
    if waiting is None or change.targets is not None:
        return change
    return replace(change, targets=waiting)
